"""Checks of single arguments, with the same wording everywhere."""

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

#: Limits of ``number`` that exclude 0 and 1 themselves.
ABOVE_ZERO, BELOW_ONE = math.ulp(0), math.nextafter(1, 0)


def whole_number(name: str, value: Any, least: int, most: int | None, error: type[RefgptError]) -> int:
    """A whole number within limits.

    Parameters
    ----------
    name : str
        What to call it.
    value : object
        A Python or NumPy integer is accepted; True and 1.0 are not.
    least, most : int
        The limits; ``most`` may be None for no limit.
    error : type of RefgptError
        What to raise.

    Returns
    -------
    int
        A Python int, whatever the type of ``value``. Callers compute with it, not with ``value``.

    Raises
    ------
    RefgptError
        Of the type asked for, with ``name`` as its ``where``.
    """
    try:
        number = operator.index(value)
    except (TypeError, ValueError, OverflowError):  # the latter two come from __index__ of other libraries
        number = None
    if number is not None and not isinstance(value, bool) and least <= number and (most is None or number <= most):
        return number
    got = "NaN" if isinstance(value, float) and math.isnan(value) else shown(value)
    wanted = f"a whole number from {least}" + ("" if most is None else f" to {most}")
    raise error("cannot be used", where=name, got=got, wanted=wanted)


def number(name: str, value: Any, least: float, most: float | None, error: type[RefgptError]) -> float:
    """A finite number within limits, as Python's own float; True and texts will not do.

    Parameters and errors are those of ``whole_number``. ``ABOVE_ZERO`` and ``BELOW_ONE`` exclude 0 and 1.
    """
    try:
        found = math.nan if isinstance(value, (bool, np.bool_, str, bytes)) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if math.isfinite(found) and least <= found and (most is None or found <= most):
        return found
    wanted = "a number " + ("above 0" if least == ABOVE_ZERO else f"from {least:g}")
    if most is not None:
        wanted += ", below 1" if most == BELOW_ONE else f" to {most:g}"
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
    """Refuse a value that cannot be called; ``name`` is the error's ``where``."""
    if not callable(value):
        raise error("cannot be used", where=name, got=shown(value), wanted="a function")


def instance_of(name: str, value: Any, kind: type, error: type[RefgptError]) -> None:
    """Refuse a value that is not a ``kind``; ``name`` is the error's ``where``."""
    if not isinstance(value, kind):
        raise error("cannot be used", where=name, got=shown(value), wanted=f"a {kind.__name__}")


def collected(name: str, value: Any, wanted: str, error: type[RefgptError]) -> list[Any]:
    """The members of a collection or another finite iterable, as a list.

    Parameters
    ----------
    name : str
        What to call it.
    value : object
        A text, bytes, a mapping and an array without axes do not count as collections.
    wanted : str
        What would have been accepted, for the error.
    error : type of RefgptError
        What to raise, with ``name`` as its ``where``.
    """
    single = isinstance(value, (str, bytes, bytearray, memoryview, Mapping))
    if not single and isinstance(value, Iterable):
        try:
            return list(value)
        except TypeError:  # an array without axes has __iter__ but cannot be iterated over
            pass
    raise error("cannot be used", where=name, got=shown(value), wanted=wanted)


def floating_dtype(name: str, value: Any, error: type[RefgptError]) -> np.dtype:
    """A dtype of floating-point numbers, by whatever name NumPy knows it; anything else is refused."""
    try:
        dtype = np.dtype(value)
    except Exception:  # NumPy raises several kinds
        dtype = None
    if dtype is None or not np.issubdtype(dtype, np.floating):
        raise error("cannot be used", where=name, got=shown(value), wanted="a floating-point dtype")
    return dtype


def path_of(name: str, value: Any, error: type[RefgptError]) -> Path:
    """A path, from a text or whatever else stands for one; anything else is refused with ``name`` as its ``where``.

    So is an empty text: for Python it is the current directory, but who gives one has most often lost a name.
    """
    try:
        path = Path(value)
        raw = os.fsencode(path)
    except (TypeError, UnicodeEncodeError):
        raw = b"\0"
    if b"\0" in raw or (isinstance(value, str) and not value):  # no file's name has a NUL
        raise error("cannot be used", where=name, got=shown(value), wanted="a path")
    return path


def directory_of(name: str, value: Any, error: type[RefgptError]) -> Path:
    """A directory, made if it is not there; the errors are those of ``path_of``, and that it cannot be made."""
    place = path_of(name, value, error)
    try:
        place.mkdir(exist_ok=True)
    except OSError as fault:
        raise error(f"cannot be made ({fault.strerror})", where=place) from fault
    return place


def one_of(name: str, value: object, choices: Sequence[str | None], error: type[RefgptError]) -> None:
    """Refuse a value that is not one of the choices (it may be of any type); ``name`` is the error's ``where``."""
    if not isinstance(value, str | None) or value not in choices:
        raise error("cannot be used", where=name, got=shown(value), wanted=", ".join(map(repr, choices)))
