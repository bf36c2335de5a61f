"""Checks of single values, worded alike wherever a value comes from."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown


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

    Returns
    -------
    int
        Python's own, whatever ``value`` is: callers compute with it, and not with ``value``.

    Raises
    ------
    RefgptError
        Of the type asked for, with ``name`` as its ``where``.
    """
    try:
        number = operator.index(value)
    except (TypeError, ValueError, OverflowError):  # the latter two from the __index__ of another library
        number = None
    if number is not None and not isinstance(value, bool) and least <= number and (most is None or number <= most):
        return number
    got = "NaN" if isinstance(value, float) and math.isnan(value) else shown(value)
    wanted = f"a whole number from {least}" + ("" if most is None else f" to {most}")
    raise error("cannot be used", where=name, got=got, wanted=wanted)


def number(name: str, value: Any, least: float, most: float | None, error: type[RefgptError]) -> float:
    """A finite number within limits, as Python's own float; True and texts will not do.

    Parameters and errors are those of ``whole_number``.
    """
    try:
        found = math.nan if isinstance(value, (bool, np.bool_, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if math.isfinite(found) and least <= found and (most is None or found <= most):
        return found
    wanted = f"a number from {least:g}" + ("" if most is None else f" to {most:g}")
    raise error("cannot be used", where=name, got=shown(value), wanted=wanted)


def keep_whole(
    record: object, name: str, least: int, most: int | None, error: type[RefgptError], optional: bool = False
) -> None:
    """Check a field of a frozen dataclass with ``whole_number`` and keep the result; ``optional`` allows None."""
    value = getattr(record, name)
    if not optional or value is not None:
        object.__setattr__(record, name, whole_number(name, value, least, most, error))


def flag(name: str, value: Any, error: type[RefgptError]) -> bool:
    """True or False, Python's or NumPy's; anything else is refused with ``name`` as the error's ``where``."""
    if not isinstance(value, (bool, np.bool_)):
        raise error("cannot be used", where=name, got=shown(value), wanted="True or False")
    return bool(value)


def function_of(name: str, value: Any, error: type[RefgptError]) -> None:
    """Refuse, with ``name`` as the error's ``where``, what cannot be called."""
    if not callable(value):
        raise error("cannot be used", where=name, got=shown(value), wanted="a function")


def instance_of(name: str, value: Any, kind: type, error: type[RefgptError]) -> None:
    """Refuse, with ``name`` as the error's ``where``, what is no ``kind``."""
    if not isinstance(value, kind):
        raise error("cannot be used", where=name, got=shown(value), wanted=f"a {kind.__name__}")


def collected(name: str, value: Any, wanted: str, error: type[RefgptError]) -> list[Any]:
    """The members of a collection, or of another finite thing that can be iterated over once.

    Parameters
    ----------
    name : str
        What to call it.
    value : object
        A text, bytes or a mapping is one thing and no collection here, nor is an array without axes.
    wanted : str
        For the error: what would have been right.
    error : type of RefgptError
        What to raise, with ``name`` as its ``where``.
    """
    single = isinstance(value, (str, bytes, bytearray, memoryview, Mapping))
    if not single and isinstance(value, Iterable):
        try:
            return list(value)
        except TypeError:  # an array without axes says that it can be iterated over
            pass
    raise error("cannot be used", where=name, got=shown(value), wanted=wanted)


def path_of(name: str, value: Any, error: type[RefgptError]) -> Path:
    """A path, from a text or whatever else stands for one; anything else is refused with ``name`` as its ``where``."""
    try:
        path = Path(value)
        raw = os.fsencode(path)
    except (TypeError, UnicodeEncodeError):
        raw = b"\0"
    if b"\0" in raw:  # which no file's name has
        raise error("cannot be used", where=name, got=shown(value), wanted="a path")
    return path


def one_of(name: str, value: object, choices: Sequence[str | None], error: type[RefgptError]) -> None:
    """Refuse, with ``name`` as the error's ``where``, what is none of the choices (and need not be a text)."""
    if not isinstance(value, str | None) or value not in choices:
        raise error("cannot be used", where=name, got=shown(value), wanted=", ".join(map(repr, choices)))
