"""What commands print: the one way to a terminal.

The lines of a report name files and quote what they say: every character in them that is no plain text is escaped,
wherever they go. Text that a model writes, and tables of results, are what was asked for: a pipe or a file gets them
as they are, and only on a terminal, which would obey them, control characters are escaped. New lines and tabs stay.
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
    """Of log records. Their messages are printable already; what libraries raised, which -v shows, quotes files too."""

    def formatException(self, ei: Any) -> str:
        """Where an error was found: indented, so that no line of what is quoted passes for one of a report."""
        return indent(displayable(shortened(super().formatException(ei), LONGEST_TRACEBACK)), "    ")


def print_line(text: str = "", file: TextIO | None = None) -> None:
    """Print a line of a report, at once, and of a very long one the ends. By default on standard output."""
    print(printable(shortened(text, LONGEST_LINE)), file=file or sys.stdout, flush=True)


def print_text(text: str, file: TextIO | None = None) -> None:
    """Print running text, at once and without a new line after it. By default on standard output."""
    file = file or sys.stdout
    print(displayable(text) if file.isatty() else text, end="", file=file, flush=True)
