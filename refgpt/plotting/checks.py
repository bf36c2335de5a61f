"""Checks of arguments: arrays of numbers with the right axes, and the right number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown

MOST = 1e300  # beyond it matplotlib's own arithmetic overflows
LABELS = "refgpt.plotting.token_labels(tokenizer, ids) makes them of the same ids"


def numbers(name: str, value: Any, axes: str) -> np.ndarray:
    """Check that a value is an array of numbers with the given axes, none of them empty; return it in float64.

    Parameters
    ----------
    name : str
        What to call it.
    value : object
    axes : str
        One word for each axis, such as "layer, head". They give the number of axes, and are named in the error.

    Raises
    ------
    RefgptError
    """
    wanted = f"numbers [{axes}]"
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise RefgptError("is no array of numbers", where=name, got=type(value).__name__, wanted=wanted) from None
    if array.ndim != len(axes.split(", ")) or not array.size:
        raise RefgptError(
            "has other axes than can be drawn", where=name, got=f"an array {list(array.shape)}", wanted=wanted
        )
    return array


def positive(name: str, value: Any) -> float | None:
    """A finite number above 0, or None.

    Raises
    ------
    RefgptError
    """
    if value is None:
        return None
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and 0 < value < MOST:
        return float(value)
    raise RefgptError("cannot be used", where=name, got=shown(value), wanted="a number above 0, or None")


def tokenizer_or_none(value: Any) -> Any:
    """Check that a value is a tokenizer (has the methods that plotting uses) or None."""
    if value is not None and not all(callable(getattr(value, ask, None)) for ask in ("has", "token_bytes")):
        raise RefgptError("is no tokenizer", where="tokenizer", got=shown(value), wanted="model.tokenizer, or None")
    return value


def title(name: str, value: Any) -> str:
    """Check that a value is a text."""
    if not isinstance(value, str):
        raise RefgptError("cannot be used", where=name, got=shown(value), wanted="a text")
    return value


def instance(name: str, value: Any, kind: type, maker: str) -> None:
    """Refuse a value that is not the result of a function of ``refgpt.tracing``.

    Raises
    ------
    RefgptError
    """
    if not isinstance(value, kind):
        raise RefgptError(
            "cannot be drawn",
            where=name,
            got=type(value).__name__,
            wanted=f"what refgpt.tracing.{maker} returns",
        )


def as_many(name: str, labels: Sequence[Any], n: int, of: str, fix: str = "") -> None:
    """Refuse a wrong number of labels.

    Raises
    ------
    RefgptError
    """
    try:
        got = "one text" if isinstance(labels, str) else f"{len(labels)} labels"
    except TypeError:
        got = type(labels).__name__
    if got != f"{n} labels":
        raise RefgptError(f"must have one for each {of}", where=name, got=got, wanted=f"a list of {n}", fix=fix)


def texts(name: str, labels: Sequence[Any], n: int, of: str) -> None:
    """Refuse a wrong number of labels, and labels that are not texts, such as ids.

    Raises
    ------
    RefgptError
    """
    as_many(name, labels, n, of, LABELS)
    if other := [label for label in labels if not isinstance(label, str)]:
        raise RefgptError(
            "are no texts",
            where=name,
            got=f"{type(other[0]).__name__} {shown(other[0])}",
            wanted=f"a text for each {of}",
            fix=LABELS,
        )
