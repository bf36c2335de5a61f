"""Memory that the backward passes of blocks use in turns: small arrays cost less than fresh memory for them."""

from __future__ import annotations

import math

import numpy as np

from refgpt.numbers.panels import LANES, aligned_zeros

#: More than this is not worth keeping: beside so much arithmetic fresh memory costs nothing.
MOST_BYTES = 1 << 24


class Room:
    """Arrays that last until the block after the next.

    A block's backward pass reads what the block above left, which was taken before ``next_block``; so memory is that of
    two blocks, in turns.

    Parameters
    ----------
    scratch : ndarray of bytes or None
        For the rows of linear layers: see ``refgpt.kernels.LinearInput``.
    n_floats : int
        What a block takes, about. If that is much, or a block takes more, arrays are new ones.
    """

    def __init__(self, scratch: np.ndarray | None, n_floats: int) -> None:
        self.scratch = scratch
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
