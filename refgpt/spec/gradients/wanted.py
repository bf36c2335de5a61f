"""Where a backward pass leaves the gradients of the weights: those that somebody wants, one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

import numpy as np


class Addend(Protocol):
    """A gradient that is not an array yet, and is added to one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def add_to(self, into: np.ndarray) -> None: ...


#: The gradient of a leaf.
Gradient = np.ndarray | Addend


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

    def __init__(self, wanted: Collection[str], take: Callable[[str, Gradient], object], prefix: str = "") -> None:
        self._wanted, self._take, self._prefix = frozenset(wanted), take, prefix

    def add(self, name: str, compute: Callable[[], Gradient]) -> None:
        """Compute a leaf's gradient and hand it on, if it is wanted."""
        if self._prefix + name in self._wanted:
            self._take(self._prefix + name, compute())

    def wants(self, *prefixes: str) -> bool:
        """Whether a leaf is wanted whose name begins with one of these."""
        full = tuple(self._prefix + prefix for prefix in prefixes)
        return any(name.startswith(full) for name in self._wanted)

    def within(self, prefix: str) -> LeafGradients:
        """The same for a part of the model, whose names begin with ``prefix``."""
        return LeafGradients(self._wanted, self._take, self._prefix + prefix)
