"""How things are worded. Names from damaged files are shortened and escaped before anybody prints them."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from pathlib import Path

MOST_LISTED = 40

#: What stands for a blank where it must be seen.
VISIBLE_BLANKS = {" ": "␣", "\n": "↵", "\r": "␍", "\t": "⇥"}
#: The way out of a file that is not what its author wrote.
FRESH_COPY = "the file is damaged or its download was cut short: fetch it again from where the model came from"

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 120


def shown(value: object) -> str:
    """``repr``, cut to a readable length."""
    try:
        return _short.repr(value)
    except ValueError:  # Python writes no whole number of more than some thousands of digits
        return f"{type(value).__name__} too large to be printed"


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
    units = ["B", "kB", "MB", "GB", "TB"]
    while n_bytes >= 999.5 and len(units) > 1:
        n_bytes /= 1000
        del units[0]
    return f"{n_bytes:.3g} {units[0]}"
