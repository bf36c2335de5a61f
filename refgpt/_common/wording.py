"""How things are worded, and the gate for all that is printed.

What a file, an argument or a model says may be as long as it likes and hold characters that a terminal obeys instead of
showing: escape sequences, bells, new lines, and those that turn the direction of the text around them. Errors, the log
and the lines that commands print pass through ``printable``; text that a model writes passes through ``displayable``.
"""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Iterable
from math import inf
from pathlib import Path
from unicodedata import category

MOST_LISTED = 40
#: Characters of one part of a message.
MOST_TEXT = 900
#: Items of a collection that are written out in a message; of a larger one only the first are.
MOST_ITEMS = 100
#: Bits of the largest whole number that is written out. (Python itself writes no more than some thousands of digits.)
MOST_BITS = 2000

#: What stands for a blank where it must be seen.
VISIBLE_BLANKS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
#: The way out of a file that is not what its author wrote.
FRESH_COPY = "the file is damaged or its download was cut short: fetch it again from where the model came from"

#: What a terminal obeys in running text: controls other than the new line and the tab, and what turns directions.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text for one line: whatever does not show, or would be obeyed, is escaped as Python does; spaces stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or category(c) == "Zs" else _escaped(c) for c in text)


def displayable(text: str) -> str:
    """Running text for a terminal: new lines, tabs and all that shows stay, what the terminal would obey is escaped."""
    return _OBEYED.sub(lambda found: _escaped(found[0]), text)


def shortened(text: str, most: int = MOST_TEXT) -> str:
    """A text of ``most`` characters or little more: of a longer one the beginning and the end."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} [{len(text) - 2 * (most // 2):,} characters left out] {text[-(most // 2) :]}"


def told(value: object) -> str:
    """Any value as a part of a message: ``str`` of it, short, on one line, and printable."""
    try:
        if isinstance(value, list | tuple | set | frozenset | dict | bytes | bytearray) and len(value) > MOST_ITEMS:
            text = shown(value)
        else:
            text = str(value)
    except Exception:  # a number of too many digits, or somebody's class that cannot say what it is
        text = shown(value)
    return shortened(printable(shortened(text)))


class _Short(reprlib.Repr):
    """``repr`` of the first items and of both ends of what is long."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 120

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > MOST_BITS:
            return f"a whole number of about {int(value.bit_length() * 0.30103):,} digits"
        return super().repr_int(value, level)


_short = _Short()


def shown(value: object) -> str:
    """``repr``, cut to a readable length; the name of the type where there is none."""
    try:
        return printable(shortened(_short.repr(value)))
    except Exception:  # somebody's class
        return f"<{printable(shortened(type(value).__name__, 120))}>"


class PrintableRecords(logging.Filter):
    """Makes what is logged printable, whoever handles it."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = told(record.getMessage()), None
        return True


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def listed(names: Iterable[str]) -> str:
    """Names, comma-separated; beyond the first forty only their number is given."""
    names = list(names)
    text = ", ".join(name if name.isprintable() and len(name) <= 120 else shown(name) for name in names[:MOST_LISTED])
    return text if len(names) <= MOST_LISTED else f"{text} and {len(names) - MOST_LISTED} more"


def tensor_at(path: Path, name: str) -> str:
    """The place of a fault that sits in one tensor."""
    return f"{path}, tensor {shown(name)}"


def size(n_bytes: float) -> str:
    """Bytes in decimal units, three digits."""
    try:
        n_bytes = float(n_bytes)  # NumPy's narrow numbers overflow
    except OverflowError:
        n_bytes = inf
    units = ["B", "kB", "MB", "GB", "TB"]
    while n_bytes >= 999.5 and len(units) > 1:
        n_bytes /= 1000
        del units[0]
    return f"{n_bytes:.3g} {units[0]}"
