"""Gradients of weights, kept as what they are sums of until it is known what of them is wanted.

The gradient of a matrix is a sum of outer products over the rows of a text. It is added to the sums of other texts in
one pass, without an array of its own; and where only an adapter of the matrix is trained, its factors are much smaller.
Rows may be those of several texts: ``starts`` says where each begins (see ``refgpt.kernels.gradients``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refgpt import kernels
from refgpt.kernels import LinearInput
from refgpt.numbers.dtypes import Compute


@dataclass(frozen=True, eq=False)
class MatrixGradient:
    """The gradient of ``w`` in ``y = x w^T``: ``dy^T x``, both factors rounded to ``compute``.

    dy is [t, n_out], x is [t, n_in]. Products with an adapter are in float32.
    """

    dy: np.ndarray
    x: np.ndarray
    starts: np.ndarray
    threads: int
    compute: Compute = "f32"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the matrix."""
        return self.dy.shape[1], self.x.shape[1]

    def add_to(self, into: np.ndarray) -> None:
        """Add it to an array [n_out, n_in]."""
        kernels.linear_weight_backward(
            self.dy, self.x, into, starts=self.starts, compute=self.compute, threads=self.threads
        )

    def of_adapter(self, a: np.ndarray, b: np.ndarray, scale: float) -> tuple[MatrixGradient, MatrixGradient]:
        """The gradients of a [rank, n_in] and b [n_out, rank] where the matrix has ``scale * b a`` added to it."""
        low = product(self.dy, np.float32(scale) * b.T, self.threads)  # [t, rank]
        read = product(self.x, np.float32(scale) * a, self.threads)  # [t, rank]
        return (
            MatrixGradient(low, self.x, self.starts, self.threads),
            MatrixGradient(self.dy, read, self.starts, self.threads),
        )


@dataclass(frozen=True, eq=False)
class BiasGradient:
    """The gradient of ``b`` in ``y = x w^T + b``: the sum of the rows of dy [t, n]."""

    dy: np.ndarray
    starts: np.ndarray
    threads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the bias."""
        return self.dy.shape[1:]

    def add_to(self, into: np.ndarray) -> None:
        """Add it to an array [n]."""
        kernels.column_sum(self.dy, into, starts=self.starts, threads=self.threads)


@dataclass(frozen=True, eq=False)
class TableGradient:
    """The gradient of a table: row i of dy [t, c] is added to the table's row ``ids[i]``, in the order of the text."""

    dy: np.ndarray
    ids: np.ndarray
    n_rows: int
    threads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the table."""
        return self.n_rows, self.dy.shape[1]

    def add_to(self, into: np.ndarray) -> None:
        """Add it to an array [n_rows, c]."""
        kernels.embedding_backward(self.dy, self.ids, into, threads=self.threads)


@dataclass(frozen=True, eq=False)
class NormGradient:
    """The gradient of the weight of a LayerNorm: the sum of the rows of dy times the normed x, both [t, c]."""

    dy: np.ndarray
    x: np.ndarray
    moments: np.ndarray  # [t, 2]
    starts: np.ndarray
    threads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight."""
        return self.dy.shape[1:]

    def add_to(self, into: np.ndarray) -> None:
        """Add it to an array [c]."""
        of = self.dy, self.x, self.moments
        kernels.layer_norm_weight_backward(*of, into, starts=self.starts, threads=self.threads)


def product(x: np.ndarray | LinearInput, w: np.ndarray, threads: int) -> np.ndarray:
    """``x w^T``. x [t, n], w [m, n] -> [t, m]."""
    rows = x if isinstance(x, LinearInput) else np.ascontiguousarray(x)
    return kernels.linear(rows, kernels.pack(np.ascontiguousarray(w), threads=threads), threads=threads)
