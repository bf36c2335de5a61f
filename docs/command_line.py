"""The directive ``command-line``: what ``--help`` says, of refgpt and of each command, asked of the parser itself.

Options become a list of definitions instead of the two columns of a terminal, so that they can be read on a telephone.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from typing import Any
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from refgpt.cli import build_parser

COLUMNS = 100
#: An option in brackets, which may have brackets inside.
OPTIONAL = re.compile(r" \[-[^\[\]]*(?:\[[^\]]*\][^\[\]]*)*\]")
#: What ``argparse`` reads, so that texts have this width and no colours.
TERMINAL = {"COLUMNS": str(COLUMNS), "NO_COLOR": "1"}


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Each command's own parser, by name, in the order of ``--help``."""
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


def help_of(parser: argparse.ArgumentParser) -> str:
    """What ``--help`` prints in a terminal of ``COLUMNS`` columns, without colours."""
    with mock.patch.dict(os.environ, TERMINAL):
        return parser.format_help()


def usage_of(parser: argparse.ArgumentParser) -> str:
    """The usage line of a command, without the options that can be left out."""
    with mock.patch.dict(os.environ, TERMINAL):
        usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    shorter = OPTIONAL.sub("", usage)
    return shorter.replace(parser.prog, f"{parser.prog} [options]", 1) if shorter != usage else usage


def options_of(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """The groups of a parser's arguments: a title, and for each argument how it is written and what it means."""
    with mock.patch.dict(os.environ, TERMINAL):
        formatter: Any = parser._get_formatter()
        for group in parser._action_groups:
            arguments = []
            for action in group._group_actions:
                commands = action._choices_actions if isinstance(action, argparse._SubParsersAction) else [action]
                arguments += [
                    (formatter._format_action_invocation(one), formatter._expand_help(one) if one.help else "")
                    for one in commands
                    if one.help != argparse.SUPPRESS
                ]
            if arguments:
                yield group.title or "", arguments


class CommandLine(Directive):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        parser = build_parser()
        return [*_listing(parser), *(_section(name, command) for name, command in commands(parser).items())]


def _section(name: str, parser: argparse.ArgumentParser) -> nodes.section:
    title = f"refgpt {name}"
    section = nodes.section(ids=[nodes.make_id(title)], names=[title])
    section += [nodes.title(title, "", nodes.literal(title, title)), *_listing(parser)]
    return section


def _listing(parser: argparse.ArgumentParser) -> Iterator[nodes.Node]:
    if parser.description:
        yield nodes.paragraph("", parser.description)
    usage = usage_of(parser)
    yield nodes.literal_block(usage, usage, language="text")
    for title, arguments in options_of(parser):
        yield nodes.rubric("", title[:1].upper() + title[1:])
        yield nodes.definition_list("", *(_definition(*one) for one in arguments), classes=["arguments"])
    if parser.epilog:
        examples = parser.epilog.strip()
        yield nodes.literal_block(examples, examples, language="text")


def _definition(written: str, meaning: str) -> nodes.definition_list_item:
    term = nodes.term("", "", nodes.literal(written, written))
    return nodes.definition_list_item("", term, nodes.definition("", nodes.paragraph("", meaning)))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
