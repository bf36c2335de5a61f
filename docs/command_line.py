"""The directive ``command-line``: what ``--help`` prints, of refgpt and of each command, asked of the parser itself."""

from __future__ import annotations

import argparse
import os
from typing import Any
from unittest import mock

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from refgpt.cli import build_parser

COLUMNS = 100


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Each command's own parser, by name, in the order of ``--help``."""
    (subparsers,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


def help_of(parser: argparse.ArgumentParser) -> str:
    """What ``--help`` prints in a terminal of ``COLUMNS`` columns, without colours."""
    with mock.patch.dict(os.environ, {"COLUMNS": str(COLUMNS), "NO_COLOR": "1"}):
        return parser.format_help()


class CommandLine(Directive):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        parser = build_parser()
        return [_listing(parser), *(_section(name, command) for name, command in commands(parser).items())]


def _section(name: str, parser: argparse.ArgumentParser) -> nodes.section:
    title = f"refgpt {name}"
    section = nodes.section(ids=[nodes.make_id(title)], names=[title])
    section += [nodes.title(title, "", nodes.literal(title, title)), _listing(parser)]
    return section


def _listing(parser: argparse.ArgumentParser) -> nodes.literal_block:
    text = help_of(parser)
    return nodes.literal_block(text, text, language="text")


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
