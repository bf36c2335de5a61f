"""Passes in which texts have different adapters: one product with the base, and each adapter for its own rows.

The rows of a pass are grouped by adapter. A row's sums do not depend on the rows beside it, so it gets the same bits as
in a pass of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise

import numpy as np

from refgpt.numbers.adapted import Adapted, Mixed, RowsAdapter, Scratch
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.panels import Panels
from refgpt.numbers.tree import ParamTree

#: The rows of a pass: for each group of neighbouring rows, their adapter and their number.
Groups = tuple[tuple[str | None, int], ...]

#: How many recorded passes with adapters a session keeps, one for each mixture of adapters.
MOST_RECORDED = 32


def groups_of(adapters: Sequence[str | None], sizes: Sequence[int]) -> Groups:
    """Group the parts of a pass, which are sorted by adapter; () if none has an adapter."""
    if not any(name is not None for name in adapters):
        return ()
    pairs = groupby(zip(adapters, sizes, strict=True), key=lambda pair: pair[0])
    return tuple((name, sum(size for _, size in some)) for name, some in pairs)


class Mixer:
    """The weights of a session's passes with adapters.

    Parameters
    ----------
    base : ParamTree
        The packed weights.
    adapters : mapping of str to ParamTree
        For each adapter, the same weights with it.
    """

    def __init__(self, base: ParamTree, adapters: Mapping[str, ParamTree]) -> None:
        self._base = base
        self._panels = {
            name: {leaf: found.panels for leaf, found in tree.items() if isinstance(found, Adapted)}
            for name, tree in adapters.items()
        }
        pairs = [pair for panels in self._panels.values() for pair in panels.values() if pair is not None]
        self._widths = max(a.n_out for a, _ in pairs), max(b.n_out for _, b in pairs)
        self._n_rows, self._scratch = 0, Scratch(0, 0, 0)

    def params(self, groups: Groups, rows: slice | np.ndarray = slice(None)) -> ParamTree:
        """The weights for the rows of a pass, or for some of them.

        Parameters
        ----------
        groups : Groups
        rows : slice or ndarray, optional
            In ascending order; by default all.
        """
        stops = np.cumsum([size for _, size in groups])
        n_rows = int(stops[-1])
        if n_rows > self._n_rows:
            self._n_rows, self._scratch = n_rows, Scratch(n_rows, *self._widths)
        bounds = [0, *np.searchsorted(np.arange(n_rows)[rows], stops).tolist()]

        def mixed(name: str, leaf: Leaf) -> Leaf:
            parts = [
                RowsAdapter(start, stop, *pair)
                for (adapter, _), (start, stop) in zip(groups, pairwise(bounds), strict=True)
                if start < stop and (pair := self._pair(adapter, name)) is not None
            ]
            return Mixed(leaf, parts, self._scratch) if parts else leaf

        return self._base.map(mixed)

    def _pair(self, adapter: str | None, leaf: str) -> tuple[Panels, Panels] | None:
        return None if adapter is None else self._panels[adapter].get(leaf)
