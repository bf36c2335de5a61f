"""Checks of single values, worded alike wherever a value comes from."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from refgpt._common.errors import RefgptError


def whole_number(name: str, value: Any, least: int, most: int | None, error: type[RefgptError]) -> int:
    """A whole number within limits.

    Parameters
    ----------
    name : str
        What to call it.
    value : object
        A Python or NumPy integer will do; True and 1.0 will not.
    least, most : int
        The limits; ``most`` may be None for no limit.
    error : type of RefgptError
        What to raise.

    Raises
    ------
    RefgptError
        Of the type asked for, with ``name`` as its ``where``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is not None and not isinstance(value, bool) and least <= number and (most is None or number <= most):
        return number
    shown = "NaN" if isinstance(value, float) and math.isnan(value) else repr(value)
    wanted = f"a whole number from {least}" + ("" if most is None else f" to {most}")
    raise error("cannot be used", where=name, got=shown, wanted=wanted)


def path_of(name: str, value: Any, error: type[RefgptError]) -> Path:
    """A path, from a text or whatever else stands for one; anything else is refused with ``name`` as its ``where``."""
    try:
        return Path(value)
    except TypeError:
        raise error("cannot be used", where=name, got=repr(value), wanted="a path") from None


def one_of(name: str, value: object, choices: Sequence[str | None], error: type[RefgptError]) -> None:
    """Refuse, with ``name`` as the error's ``where``, what is none of the choices (and need not be a text)."""
    if not isinstance(value, str | None) or value not in choices:
        raise error("cannot be used", where=name, got=repr(value), wanted=", ".join(map(repr, choices)))
