"""The small files beside the weights: bounded in size, and JSON read without charity.

What two parsers could read differently is refused, because damage in these files shows only as odd numbers or odd text.
"""

from __future__ import annotations

import json
from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

from refgpt._common.errors import RefgptError
from refgpt._common.wording import FRESH_COPY, shown

#: Of configurations, indices of shards and the like: twenty-five times what a 6B model needs.
LARGEST_JSON = 1 << 20
MOST_DIGITS = 40
#: What one file may consist of, counted before parsing by the marks before and between values: an empty list is two
#: bytes there and many more in memory, and so is a number. A vocabulary of 200,000 tokens with as many merges, each of
#: them a list, has a million of these marks; GPT-2's has 200,000.
MOST_ITEMS = 1 << 20
MARKS = b"[{,:"


def read_bytes(path: Path, error: type[RefgptError], most_bytes: int) -> bytes:
    """A whole file.

    Parameters
    ----------
    path : Path
    error : type of RefgptError
        What to raise.
    most_bytes : int
        Far above what such a file can need.

    Raises
    ------
    RefgptError
        Of the type asked for, if the file is missing, no file, unreadable, empty or larger than ``most_bytes``.
    """
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "there is no such file"
            raise error(what, where=path, fix="check the path")
        n_bytes = path.stat().st_size
        if n_bytes > most_bytes:
            raise error(
                "the file is far too large for what it should say",
                where=path,
                got=f"{n_bytes} bytes",
                wanted=f"at most {most_bytes}",
                fix="check that this is the right file",
            )
        raw = path.read_bytes()
    except OSError as fault:
        raise error(f"the file cannot be read ({fault.strerror})", where=path, fix="check its permissions") from fault
    if not raw:
        raise error("the file is empty", where=path, fix=FRESH_COPY)
    return raw


def read_json(path: Path, error: type[RefgptError], most_bytes: int = LARGEST_JSON) -> dict[str, Any]:
    """Read a JSON file that holds one object: ``read_bytes`` and ``parse_json``."""
    return parse_json(read_bytes(path, error, most_bytes), path, error)


def parse_json(raw: bytes, where: object, error: type[RefgptError]) -> dict[str, Any]:
    """Parse one JSON object.

    Parameters
    ----------
    raw : bytes
        UTF-8 text.
    where : object
        Named in errors.
    error : type of RefgptError
        What to raise.

    Raises
    ------
    RefgptError
        Of the type asked for: bytes that are not UTF-8, a byte-order mark, a duplicate key, NaN or infinity, a number
        of absurd length, nesting too deep, far too many values, anything but one object.
    """

    def refuse(what: str, got: str | None = None) -> NoReturn:
        raise error(what, where=where, got=got, wanted="one JSON object in UTF-8", fix=FRESH_COPY)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            refuse("a key is given twice", shown(Counter(key for key, _ in pairs).most_common(1)[0][0]))
        return found

    def whole(digits: str) -> int:
        return int(digits) if len(digits) <= MOST_DIGITS else refuse("a number is absurdly long", shown(digits))

    def decimal(digits: str) -> float:
        value = float(digits)
        return value if isfinite(value) else refuse("a number is too large", shown(digits))

    def constant(word: str) -> NoReturn:
        refuse("a number is not finite", word)

    if (n_items := sum(map(raw.count, MARKS))) > MOST_ITEMS:
        refuse("there are absurdly many values", f"up to {n_items}")
    try:
        text = raw.decode("utf-8")
        found = json.loads(
            text, object_pairs_hook=unique, parse_int=whole, parse_float=decimal, parse_constant=constant
        )
    except UnicodeDecodeError as fault:
        refuse("the text is not UTF-8", fault.reason)
    except json.JSONDecodeError as fault:
        refuse(f"the text is not JSON: {fault.msg} at character {fault.pos}")
    except RecursionError:
        refuse("the nesting is absurdly deep")
    if not isinstance(found, dict):
        refuse("the text is JSON, but not an object", shown(found))
    return found
