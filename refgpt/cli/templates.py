"""The options that choose the prompt format of a conversation."""

from __future__ import annotations

import argparse

from refgpt.generation.chat_templates import TEMPLATES, ChatTemplate, chat_template


def listing() -> str:
    """A line for each template, for a command's help."""
    return "\n".join(f"  {name:<11} {template.about}" for name, template in TEMPLATES.items())


def add_template(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that ``template_of`` reads."""
    add = parser.add_argument
    add("--template", choices=TEMPLATES, default="base", help="prompt format of conversations (default: base)")
    add(
        "--character",
        metavar="NAME",
        help="name of the character that answers, with --template pygmalion (default: Assistant)",
    )
    add("--persona", metavar="TEXT", help="a few sentences that describe the character, with --template pygmalion")


def template_of(arguments: argparse.Namespace) -> ChatTemplate:
    """The template that the arguments name."""
    if arguments.template != "pygmalion" and (arguments.character, arguments.persona) != (None, None):
        arguments.parser.error("--character and --persona are for --template pygmalion")
    return chat_template(arguments.template, arguments.character or "Assistant", arguments.persona or "")
