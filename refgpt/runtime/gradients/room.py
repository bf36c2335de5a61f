"""Memory that the backward passes of blocks use in turns: small arrays cost less than fresh memory for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from refgpt.numbers.panels import LANES, aligned_zeros

T = TypeVar("T")

#: More than this is not worth keeping: beside so much arithmetic fresh memory costs nothing.
MOST_BYTES = 1 << 25


class Room:
    """Arrays that last until the block after the next.

    A block's backward pass reads what the block above left, which was taken before ``next_block``; so memory is that of
    two blocks, in turns.

    Parameters
    ----------
    n_floats : int
        What a block takes, about. If that is much, or a block takes more, arrays are new ones.

    Attributes
    ----------
    scratch : ndarray of bytes or None
        For the rows of linear layers: see ``refgpt.kernels.LinearInput``.
    """

    def __init__(self, n_floats: int) -> None:
        self.scratch: np.ndarray | None = None
        n_floats = n_floats if 4 * n_floats <= MOST_BYTES else 0
        self._halves = [aligned_zeros((n_floats,), np.dtype(np.float32)) for _ in range(2)]
        self._n_taken = 0

    def next_block(self) -> None:
        """Take arrays from the other half, whose former ones are over."""
        self._halves.reverse()
        self._n_taken = 0

    def array(self, *shape: int) -> np.ndarray:
        """Memory for a float32 array."""
        n = math.prod(shape)
        start, stop = self._n_taken, self._n_taken + n
        if stop > len(self._halves[0]):
            return np.empty(shape, np.float32)
        self._n_taken = -(-stop // LANES) * LANES
        return self._halves[0][start:stop].reshape(shape)


class StepMemory:
    """Memory of one step that the next ones use again: the first touch of fresh memory costs more than using it.

    No result lies in it when the step is over, apart from the gradients, which last until the next step.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[Any, int, Any]] = {}

    def get(self, name: str, key: Any, size: int, make: Callable[[], T]) -> T:
        """What was made under this name for the same key and at least this size, or else ``make()``."""
        held = self._held.get(name)
        if held is None or held[0] != key or held[1] < size:
            self._held.pop(name, None)  # first make room
            held = self._held[name] = key, size, make()
        found: T = held[2]
        return found

    def zeros(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """A float32 array of zeros; if it is large, a new one."""
        if 4 * math.prod(shape) > MOST_BYTES:
            return np.zeros(shape, np.float32)
        array = self.get(name, shape, 0, lambda: np.empty(shape, np.float32))
        array.fill(0)
        return array
