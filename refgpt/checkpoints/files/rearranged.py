"""Matrices made of the rows or the columns of others, put together while they are read.

Formats differ in whether queries, keys and values are one matrix, in what order its rows come, and on which side
matrices lie. None of it is undone in memory: a part of a tensor, or several leaves as one tensor, is again a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refgpt.numbers.dtypes import STORED_DTYPES
from refgpt.numbers.encoded import Encoded
from refgpt.numbers.leaves import Leaf, widen
from refgpt.numbers.mapped import release


def joint_dtype(leaves: Sequence[Leaf]) -> np.dtype:
    """The dtype in which leaves can be put together: the one that they share, else one that holds them all."""
    dtypes = {leaf.dtype for leaf in leaves}
    if len(dtypes) == 1:
        return leaves[0].dtype
    return STORED_DTYPES["f64" if STORED_DTYPES["f64"] in dtypes else "f32"]


def rows_of(leaf: Leaf, start: int, stop: int, dtype: np.dtype) -> np.ndarray:
    """Some rows in the dtype that ``joint_dtype`` gave."""
    rows = leaf.rows(start, stop) if isinstance(leaf, Encoded) else leaf[start:stop]
    return rows if rows.dtype == dtype else widen(rows, dtype)


class PickedRows(Encoded):
    """Rows of a matrix, in another order.

    Parameters
    ----------
    whole : Leaf [rows, n_in]
    order : ndarray [n_out]
        Which of its rows each row is.
    place : str
        See ``Encoded``.
    """

    def __init__(self, whole: Leaf, order: np.ndarray, place: str) -> None:
        self.whole, self.order, self.place = whole, order, place
        self.encoding = whole.encoding if isinstance(whole, Encoded) else "reordered"
        self.shape, self.dtype = (len(order), whole.shape[1]), whole.dtype
        self.nbytes = whole.nbytes // whole.shape[0] * len(order)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See ``Encoded.rows``."""
        return self.whole[self.order[start:stop]]

    def release(self) -> None:
        """See ``Encoded.release``."""
        release(self.whole)


class Stacked(Encoded):
    """Matrices of the same width, one below the other."""

    encoding = "stacked"

    def __init__(self, parts: Sequence[Leaf], place: str) -> None:
        self.parts, self.place = list(parts), place
        self.shape = sum(part.shape[0] for part in parts), parts[0].shape[1]
        self.dtype, self.nbytes = joint_dtype(parts), sum(part.nbytes for part in parts)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See ``Encoded.rows``."""
        found, at = [], 0
        for part in self.parts:
            first, last = max(start - at, 0), min(stop - at, part.shape[0])
            if first < last:
                found.append(rows_of(part, first, last, self.dtype))
            at += part.shape[0]
        return np.concatenate(found) if found else np.empty((0, self.shape[1]), self.dtype)

    def release(self) -> None:
        """See ``Encoded.release``."""
        for part in self.parts:
            release(part)


class ByHead(Stacked):
    """Matrices of the same shape, head by head: of the first head the rows of each, then of the second, and on.

    Parameters
    ----------
    n_head : int
        Divides the number of rows of each.
    """

    encoding = "by head"

    def __init__(self, parts: Sequence[Leaf], n_head: int, place: str) -> None:
        super().__init__(parts, place)
        self.d_head = parts[0].shape[0] // n_head

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See ``Encoded.rows``."""
        n_rows = len(self.parts) * self.d_head  # of a head
        first, last = start // n_rows, -(-stop // n_rows)
        heads = [rows_of(part, first * self.d_head, last * self.d_head, self.dtype) for part in self.parts]
        joined = np.stack([part.reshape(last - first, self.d_head, -1) for part in heads], axis=1)
        return joined.reshape(-1, self.shape[1])[start - first * n_rows : stop - first * n_rows]


class Turned(Encoded):
    """A matrix on its side, for formats that have [in, out]. While it is read the whole of it is in memory."""

    encoding = "turned"

    def __init__(self, leaf: Leaf, place: str) -> None:
        self.leaf, self.place = leaf, place
        self.shape, self.dtype, self.nbytes = (leaf.shape[1], leaf.shape[0]), leaf.dtype, leaf.nbytes
        self._whole: np.ndarray | None = None

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See ``Encoded.rows``."""
        if self._whole is None:
            self._whole = rows_of(self.leaf, 0, self.leaf.shape[0], self.dtype)
        return np.ascontiguousarray(self._whole[:, start:stop].T)

    def release(self) -> None:
        """See ``Encoded.release``."""
        self._whole = None
        release(self.leaf)
