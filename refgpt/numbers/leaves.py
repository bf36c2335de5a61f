"""Leaves of a parameter tree: stored arrays or encoded matrices. Widens them and cuts them into rows.

A vector is always an array. A matrix may also be ``Encoded``: stored in blocks, shards or panels, and decoded when it
is used. ``widen`` turns any leaf into floats.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refgpt.numbers.dtypes import BFLOAT16, DTypeLike
from refgpt.numbers.encoded import Encoded

#: One parameter.
Leaf = np.ndarray | Encoded

#: Elements of a matrix that are processed at a time while it is read.
SLICE = 1 << 22


def widen(stored: Leaf, dtype: DTypeLike = np.float32) -> np.ndarray:
    """A stored array as plain floats; exact from any 16-bit dtype.

    Parameters
    ----------
    stored : ndarray or Encoded
        float16, bfloat16 (``BFLOAT16``), float32 or float64, or a matrix that decodes to one of them.
    dtype : dtype
        The floating dtype wanted.

    Returns
    -------
    ndarray
        Aligned, because NumPy multiplies unaligned matrices without BLAS: slowly, and in another order. A copy, or
        ``stored`` itself if it already has the dtype and is aligned.
    """
    if isinstance(stored, Encoded):
        stored = stored.rows(0, stored.shape[0])
    if stored.dtype == BFLOAT16:
        stored = (stored["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    return np.require(stored.astype(dtype, copy=False), requirements="A")


def row_slices(leaf: Leaf) -> Iterator[np.ndarray]:
    """Yield a leaf in pieces of whole rows, in order: a vector in one piece, a large matrix some megabytes at a time.

    Every piece but the last has a multiple of 64 rows, and therefore whole panels.
    """
    n_rows = max(64, SLICE // max(leaf.size // max(leaf.shape[0], 1), 1) // 64 * 64)
    for start in range(0, leaf.shape[0], n_rows):
        stop = min(start + n_rows, leaf.shape[0])
        yield leaf.rows(start, stop) if isinstance(leaf, Encoded) else leaf[start:stop]


class StoredRows(Encoded):
    """A matrix whose rows lie one after the other in a mapped file. The embedding kernels read this layout."""

    def __init__(self, data: np.ndarray, kind: str, place: str) -> None:
        self.data, self.encoding, self.place = data, kind, place
        self.shape, self.dtype, self.nbytes = (data.shape[0], data.shape[1]), data.dtype, data.nbytes

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See ``Encoded.rows``; a view."""
        return self.data[start:stop]
