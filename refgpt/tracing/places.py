"""Selecting activations by patterns of names, and rows, heads and neurons along their axes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import filter as matching

import numpy as np

from refgpt._common.arguments import collected, whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.wording import listed, shown
from refgpt.spec import tap_axes

Names = str | Collection[str]
#: Most characters of a name or pattern; matching a longer one takes longer.
LONGEST_PATTERN = 200
#: One place on an axis, several, or a slice; negative ones count from the end. None is all of them.
Indices = int | slice | Sequence[int] | np.ndarray | None


def find_names(asked: Names | None, known: Sequence[str], where: str = "names") -> list[str]:
    """The known names that match the requested names or patterns, in the order of ``known``.

    Parameters
    ----------
    asked : str, collection of str, or None
        Names, or patterns of them as in ``fnmatch``: ``*`` is anything, ``?`` one character, ``[0-3]`` one of four.
        None is all of them.
    known : sequence of str
        All existing names.
    where : str
        For the error.

    Raises
    ------
    RefgptError
        Lists the requests that match no name.
    """
    if asked is None:
        return list(known)
    wanted = "texts, as 'blocks.*.pattern'"
    patterns = [asked] if isinstance(asked, str) else collected(where, asked, wanted, RefgptError)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise RefgptError("is no name", where=where, got=shown(pattern), wanted=wanted)
        if len(pattern) > LONGEST_PATTERN:
            raise RefgptError(
                "is too long for a name",
                where=where,
                got=f"{len(pattern)} characters",
                wanted=f"at most {LONGEST_PATTERN}",
            )
    names = frozenset(known)
    found = {pattern: [pattern] if pattern in names else matching(known, pattern) for pattern in patterns}
    unknown = sorted(pattern for pattern, names in found.items() if not names)
    if unknown:
        wanted = "names of refgpt.spec.tap_names(config), or patterns as 'blocks.*.pattern'"
        raise RefgptError("there is no such activation", where=where, got=listed(unknown), wanted=wanted)
    chosen = {name for names in found.values() for name in names}
    return [name for name in known if name in chosen]


def find_indices(asked: Indices, n: int, where: str) -> np.ndarray | None:
    """Indices on an axis of length ``n``, counted from its beginning, in the requested order.

    Returns
    -------
    ndarray of int64, or None
        None is all of them.

    Raises
    ------
    RefgptError
        If an index does not exist, or none is selected.
    """
    if asked is None:
        return None
    if isinstance(asked, slice):
        try:
            places = list(range(n))[asked]
        except (TypeError, ValueError) as error:
            raise RefgptError("is no slice", where=where, got=shown(asked), wanted=str(error)) from None
    else:
        try:
            several = [asked] if np.ndim(asked) == 0 else list(asked)  # type: ignore[arg-type]
        except ValueError:  # ragged
            several = [asked]
        places = [whole_number(where, place, -n, n - 1, RefgptError) % n for place in several]
    if not places:
        raise RefgptError("selects nothing", where=where, got=shown(asked), wanted=f"at least one of {n}")
    return np.array(places, np.int64)


def row_axis(name: str) -> int:
    """The axis of positions of an activation: queries, or keys if it has only keys."""
    axes = tap_axes(name)
    return axes.index("t" if "t" in axes else "s")


def rows_of(name: str, value: np.ndarray, positions: np.ndarray | None) -> np.ndarray:
    """A copy of the rows of an activation at some positions. The axis is kept even for a single one."""
    return value.copy() if positions is None else value.take(positions, axis=row_axis(name))
