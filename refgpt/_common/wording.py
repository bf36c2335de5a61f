"""Wording of messages, and escaping of everything that is printed.

Text from a file, an argument or a model can have any length and contain characters that a terminal interprets instead
of showing: escape sequences, bells, new lines, and characters that change the direction of text. Errors, log messages
and lines that commands print pass through ``printable``; generated text passes through ``displayable``.
"""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from math import inf
from pathlib import Path
from unicodedata import category

MOST_LISTED = 40
#: Most characters of one part of a message.
MOST_TEXT = 900
#: Most items of a collection that a message lists; a larger collection is cut after these.
MOST_ITEMS = 100
#: Largest whole number, in bits, that is printed in full. (Python itself refuses more than some thousands of digits.)
MOST_BITS = 2000

#: Shown instead of a blank where it must be visible.
VISIBLE_BLANKS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
#: Advice for a damaged file.
FRESH_COPY = "the file is damaged or its download was cut short: fetch it again from where the model came from"

#: Characters of running text that a terminal interprets: controls except new line and tab, and direction marks.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """A text for one line: invisible and control characters are escaped as in Python; spaces stay."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or category(c) == "Zs" else _escaped(c) for c in text)


def displayable(text: str) -> str:
    """Running text for a terminal: new lines, tabs and visible characters stay; control characters are escaped."""
    return _OBEYED.sub(lambda found: _escaped(found[0]), text)


def shortened(text: str, most: int = MOST_TEXT) -> str:
    """A text shortened to about ``most`` characters: its beginning and its end."""
    if len(text) <= most:
        return text
    return f"{text[: most // 2]} [{len(text) - 2 * (most // 2):,} characters left out] {text[-(most // 2) :]}"


def told(value: object) -> str:
    """Any value as part of a message: its ``str``, short, on one line, and printable."""
    try:
        if isinstance(value, list | tuple | set | frozenset | dict | bytes | bytearray) and len(value) > MOST_ITEMS:
            text = shown(value)
        else:
            text = str(value)
    except Exception:  # a number with too many digits, or a class whose __str__ fails
        text = shown(value)
    return shortened(printable(shortened(text)))


class _Short(reprlib.Repr):
    """``repr`` that shows the first items of collections and both ends of long texts."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 120

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > MOST_BITS:
            return f"a whole number of about {int(value.bit_length() * 0.30103):,} digits"
        return super().repr_int(value, level)


_short = _Short()


def shown(value: object) -> str:
    """``repr``, shortened to a readable length; the name of the type if ``repr`` fails."""
    try:
        return printable(shortened(_short.repr(value)))
    except Exception:  # a class whose __repr__ fails
        return f"<{printable(shortened(type(value).__name__, 120))}>"


class PrintableRecords(logging.Filter):
    """Makes log messages printable, for every handler."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = told(record.getMessage()), None
        return True


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def listed(names: Iterable[str]) -> str:
    """Names, separated by commas; after the first forty, only the number of the others is given."""
    names = list(names)
    text = ", ".join(name if name.isprintable() and len(name) <= 120 else shown(name) for name in names[:MOST_LISTED])
    return text if len(names) <= MOST_LISTED else f"{text} and {len(names) - MOST_LISTED} more"


def difference(found: Mapping[str, object], wanted: Mapping[str, object]) -> tuple[str, str, str]:
    """The first key whose values differ, the value that was found, and the wanted one. Some key has to differ."""
    pairs = ((key, (key in found, found.get(key)), (key in wanted, wanted.get(key))) for key in [*wanted, *found])
    key = next(key for key, a, b in pairs if a != b)
    return key, shown(found.get(key)), shown(wanted.get(key))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' if a known name resembles this one, otherwise ''."""
    close = get_close_matches(name[:100].lower(), list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def tensor_at(path: Path, name: str) -> str:
    """The ``where`` of an error in one tensor."""
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
