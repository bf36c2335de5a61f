"""Where a backward pass leaves the gradients of the weights: those that somebody wants, one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np


class LeafGradients:
    """Hands the gradient of each leaf that is wanted to a function; no other is computed.

    Parameters
    ----------
    wanted : collection of str
        Names of leaves, as ``ParamTree.items`` has them.
    take : callable
        ``take(name, gradient)``. A gradient is its own from there on.
    prefix : str
        What stands before the names that ``add`` is given.
    """

    def __init__(self, wanted: Collection[str], take: Callable[[str, np.ndarray], object], prefix: str = "") -> None:
        self._wanted, self._take, self._prefix = frozenset(wanted), take, prefix

    def add(self, name: str, compute: Callable[[], np.ndarray]) -> None:
        """Compute a leaf's gradient and hand it on, if it is wanted."""
        if self._prefix + name in self._wanted:
            self._take(self._prefix + name, compute())

    def within(self, prefix: str) -> LeafGradients:
        """The same for a part of the model, whose names begin with ``prefix``."""
        return LeafGradients(self._wanted, self._take, self._prefix + prefix)
