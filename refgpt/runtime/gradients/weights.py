"""Gradients of weights, kept as what they are sums of until it is known what of them is wanted.

The gradient of a matrix is a sum of outer products over the rows of a text. It is added to the sums of other texts in
one pass, without an array of its own; and where only an adapter of the matrix is trained, its factors are much smaller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refgpt import kernels


@dataclass(frozen=True, eq=False)
class MatrixGradient:
    """Of ``w`` in ``y = x w^T``: ``dy^T x``. dy [t, n_out], x [t, n_in]."""

    dy: np.ndarray
    x: np.ndarray
    threads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the matrix."""
        return self.dy.shape[1], self.x.shape[1]

    def add_to(self, into: np.ndarray) -> None:
        """Add it to an array [n_out, n_in]."""
        kernels.linear_weight_backward(self.dy, self.x, into, threads=self.threads)

    def of_adapter(self, a: np.ndarray, b: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """The gradients of a [rank, n_in] and b [n_out, rank] where the matrix has ``scale * b a`` added to it."""
        low = self._product(self.dy, np.float32(scale) * b.T)  # [t, rank]
        read = self._product(self.x, np.float32(scale) * a)  # [t, rank]
        da, db = np.zeros(a.shape, np.float32), np.zeros(b.shape, np.float32)
        MatrixGradient(low, self.x, self.threads).add_to(da)
        MatrixGradient(self.dy, read, self.threads).add_to(db)
        return da, db

    def _product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        panels = kernels.pack(np.ascontiguousarray(w), threads=self.threads)
        return kernels.linear(x, panels, threads=self.threads)


@dataclass(frozen=True, eq=False)
class BiasGradient:
    """Of ``b`` in ``y = x w^T + b``: the sum of the rows of dy [t, n]."""

    dy: np.ndarray
    threads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the bias."""
        return self.dy.shape[1:]

    def add_to(self, into: np.ndarray) -> None:
        """Add it to an array [n]."""
        kernels.column_sum(self.dy, into, threads=self.threads)


@dataclass(frozen=True, eq=False)
class TableGradient:
    """Of a table of which ``ids`` [t] name rows: dy [t, c], each added to its row, in the order of the text."""

    dy: np.ndarray
    ids: np.ndarray
    n_rows: int
    threads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the table."""
        return self.n_rows, self.dy.shape[1]

    def add_to(self, into: np.ndarray) -> None:
        """Add it to an array [n_rows, c]."""
        kernels.embedding_backward(self.dy, self.ids, into, threads=self.threads)


class NormGradients:
    """Of the weight and bias of a LayerNorm: one pass over dy and x [t, c], when either is first asked for."""

    def __init__(self, dy: np.ndarray, x: np.ndarray, moments: np.ndarray, threads: int) -> None:
        self._given, self._threads = (dy, x, moments), threads
        self._found: tuple[np.ndarray, np.ndarray] | None = None

    def weight(self) -> np.ndarray:
        """[c]."""
        return self._both()[0]

    def bias(self) -> np.ndarray:
        """[c]."""
        return self._both()[1]

    def _both(self) -> tuple[np.ndarray, np.ndarray]:
        if self._found is None:
            n = self._given[1].shape[1]
            self._found = np.zeros(n, np.float32), np.zeros(n, np.float32)
            kernels.layer_norm_weight_backward(*self._given, *self._found, threads=self._threads)
        return self._found
