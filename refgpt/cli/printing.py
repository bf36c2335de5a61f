"""Printing: all output of commands goes through this module.

Lines of a report name files and quote their contents, so control characters in them are always escaped. Generated text
and tables of results are the output proper: a pipe or a file gets them unchanged, and only on a terminal, which would
interpret control characters, these are escaped. New lines and tabs stay.
"""

from __future__ import annotations

import logging
import sys
from textwrap import indent
from typing import Any, TextIO

from refgpt._common.wording import displayable, printable, shortened

#: Characters of a line: a file may say what is as long as it likes.
LONGEST_LINE = 4000
LONGEST_TRACEBACK = 20_000


class Formatter(logging.Formatter):
    """Formats log records. Their messages are printable already, but a traceback, which -v shows, may quote files."""

    def formatException(self, ei: Any) -> str:
        """The traceback, indented, so that no quoted line looks like a line of a report."""
        return indent(displayable(shortened(super().formatException(ei), LONGEST_TRACEBACK)), "    ")


def print_line(text: str = "", file: TextIO | None = None) -> None:
    """Print a line of a report, at once, and of a very long one the ends. By default on standard output."""
    print(printable(shortened(text, LONGEST_LINE)), file=file or sys.stdout, flush=True)


def print_text(text: str, file: TextIO | None = None) -> None:
    """Print running text without a new line after it, and flush it. The default is standard output."""
    file = file or sys.stdout
    print(displayable(text) if file.isatty() else text, end="", file=file, flush=True)
