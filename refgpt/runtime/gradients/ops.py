"""Each operation's backward in kernels: the formulas are in ``refgpt/spec/gradients/ops.py``.

A product that sums over rows of activations, or over the outputs of a weight, needs its operands the other way round
than they lie: they are turned, and then multiplied by the kernel of the forward pass. So a weight of 8 or 4 bits, whose
blocks run along its inputs, is decoded into the panels of its transpose, in float32, for as long as it is used; no
weight is kept twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refgpt import kernels
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.leaves import Leaf, row_slices, widen
from refgpt.numbers.panels import LANES, Panels


@dataclass(frozen=True)
class Ops:
    """The operations, on so many threads; no bit depends on the number."""

    threads: int

    def product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """``x w^T``. x [t, n], w [m, n] -> [t, m]."""
        panels = kernels.pack(np.ascontiguousarray(w), threads=self.threads)
        return kernels.linear(np.ascontiguousarray(x), panels, threads=self.threads)

    def row_sum(self, x: np.ndarray) -> np.ndarray:
        """x [t, n] -> [t]."""
        return kernels.row_sum(np.ascontiguousarray(x), threads=self.threads)

    def embedding_backward(self, dy: np.ndarray, ids: np.ndarray, n_vocab: int) -> np.ndarray:
        """dy [t, c], ids [t] -> dtable [v, c]: row after row, in the order of the text."""
        dtable = np.zeros((n_vocab, dy.shape[1]), dy.dtype)  # [v, c]
        np.add.at(dtable, ids, dy)
        return dtable

    def linear_backward(self, dy: np.ndarray, w: Leaf) -> np.ndarray:
        """dy [t, n_out], w [n_out, n_in] -> dx [t, n_in]."""
        if not isinstance(w, Adapted):
            return kernels.linear(np.ascontiguousarray(dy), transposed(w), threads=self.threads)  # [t, n_in]
        low = self.product(dy, np.float32(w.scale) * w.b.T)  # [t, rank]
        return self.linear_backward(dy, w.base) + self.product(low, w.a.T)  # [t, n_in]

    def linear_weight_backward(self, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        """dy [t, n_out], x [t, n_in] -> dw [n_out, n_in]."""
        return self.product(dy.T, x.T)  # [n_out, n_in]

    def bias_backward(self, dy: np.ndarray) -> np.ndarray:
        """dy [t, n_out] -> db [n_out]."""
        return self.row_sum(dy.T)  # [n_out]

    def layer_norm_backward(
        self, dy: np.ndarray, x: np.ndarray, w: np.ndarray, eps: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """dy, x [t, c], w [c] -> dx [t, c], dw [c], db [c]."""
        n = np.float32(x.shape[1])
        centred = x - (self.row_sum(x) / n)[:, None]  # [t, c]
        scale = np.sqrt(self.row_sum(centred * centred) / n + np.float32(eps))[:, None]  # [t, 1]
        normed = centred / scale  # [t, c]
        dnormed = dy * w  # [t, c]
        along_ones = (self.row_sum(dnormed) / n)[:, None]  # [t, 1]
        along_normed = (self.row_sum(dnormed * normed) / n)[:, None]  # [t, 1]
        dx = (dnormed - along_ones - normed * along_normed) / scale  # [t, c]
        return dx, self.bias_backward(dy * normed), self.bias_backward(dy)

    def softmax_backward(self, dy: np.ndarray, y: np.ndarray) -> np.ndarray:
        """dy, y [t, n] -> dx [t, n]."""
        return y * (dy - self.row_sum(dy * y)[:, None])

    def gelu_backward(self, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        """dy, x [t, f] -> dx [t, f]."""
        return kernels.gelu_backward(x, dy, threads=self.threads)

    def rotate_pairs_backward(self, dy: np.ndarray, rotation: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """dy [t, h, d], cosines and sines as the forward pass has them -> dx [t, h, d]."""
        cos, sin = rotation
        positions = np.arange(len(dy), dtype=np.int64)
        return kernels.rotary(np.ascontiguousarray(dy), cos, -sin, positions, threads=self.threads)

    def cross_entropy_backward(self, dy: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """dy [n], logits [n, v], targets int [n] -> dlogits [n, v]."""
        dlogits = kernels.softmax(logits, threads=self.threads)  # [n, v]
        dlogits[np.arange(len(targets)), targets] -= 1
        return dlogits * dy[:, None]  # [n, v]


def transposed(w: Leaf) -> Panels:
    """The transpose of a matrix [n_out, n_in] as panels in float32, some rows of it at a time."""
    n_out, n_in = w.shape
    panels = Panels.zeros("f32", n_in, n_out)  # [panel, n_out, lane]
    whole, start = n_in // LANES, 0
    for rows in row_slices(w):
        stop = start + len(rows)
        wide = widen(rows)
        cut = wide[:, : whole * LANES].reshape(len(rows), whole, LANES)
        panels.data[:whole, start:stop] = cut.transpose(1, 0, 2)
        if n_in % LANES:
            panels.data[whole, start:stop, : n_in % LANES] = wide[:, whole * LANES :]
        start = stop
    return panels
