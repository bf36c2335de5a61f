"""JSON read without charity: what two parsers could read differently is refused."""

from __future__ import annotations

import json
from collections import Counter
from math import isfinite
from pathlib import Path
from typing import Any, NoReturn

from refgpt.checkpoints.report import shown
from refgpt.errors import RefgptError

#: Twenty-five times what a 6B model needs.
LARGEST_JSON = 1 << 20
MOST_DIGITS = 40


def read_json(path: Path, error: type[RefgptError]) -> dict[str, Any]:
    """Read a JSON file that holds one object. See ``parse_json``."""
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise error(
                "the file is far too large for what it should say",
                where=path,
                got=f"{size} bytes",
                wanted=f"at most {LARGEST_JSON}",
                fix="check that this is the right file",
            )
        raw = path.read_bytes()
    except OSError as fault:
        raise error(f"the file cannot be read ({fault.strerror})", where=path) from fault
    return parse_json(raw, path, error)


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
        of absurd length, nesting too deep, anything but one object.
    """

    def refuse(what: str, got: object = None) -> NoReturn:
        raise error(
            what,
            where=where,
            got=None if got is None else shown(got),
            wanted="one JSON object in UTF-8",
            fix="the file is damaged: download it again",
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            refuse("a key is given twice", Counter(key for key, _ in pairs).most_common(1)[0][0])
        return found

    def whole(digits: str) -> int:
        return int(digits) if len(digits) <= MOST_DIGITS else refuse("a number is absurdly long", digits)

    def decimal(digits: str) -> float:
        value = float(digits)
        return value if isfinite(value) else refuse("a number is too large", digits)

    def constant(word: str) -> NoReturn:
        refuse("a number is not finite", word)

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
        refuse("the text is JSON, but not an object", found)
    return found
