"""Each operation's backward in kernels: the formulas are in ``refgpt/spec/gradients/ops.py``.

Weights are read as the forward pass keeps them, in any dtype: nothing is kept twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refgpt import kernels
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.cached import rounded_kv
from refgpt.numbers.dtypes import KVDtype
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.panels import Panels
from refgpt.runtime.gradients.weights import BiasGradient, MatrixGradient, NormGradients, TableGradient
from refgpt.spec.ops import ACTIVATIONS, gelu_erf
from refgpt.spec.taps import Tap, no_tap


@dataclass(frozen=True)
class Ops:
    """The operations on one text, on so many threads; no bit depends on the number.

    Attributes
    ----------
    threads : int
    kv_dtype : "f32", "f16" or "q8"
        What the forward pass rounds keys and values to.
    prefix_len : int
        So many leading positions see one another.
    window : int or None
        How many keys a row of a local layer sees.
    """

    threads: int
    kv_dtype: KVDtype = "f32"
    prefix_len: int = 0
    window: int | None = None

    def product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """``x w^T``. x [t, n], w [m, n] -> [t, m]."""
        panels = kernels.pack(np.ascontiguousarray(w), threads=self.threads)
        return kernels.linear(np.ascontiguousarray(x), panels, threads=self.threads)

    def add(self, x: np.ndarray, a: np.ndarray) -> np.ndarray:
        """The sum of two gradients, in the place of the first. x, a [t, c] -> [t, c]."""
        return kernels.add(x, a, x, threads=self.threads)

    def embedding_backward(self, dy: np.ndarray, ids: np.ndarray, n_vocab: int) -> TableGradient:
        """dy [t, c], ids [t] -> the gradient of a table [v, c]."""
        return TableGradient(dy, ids, n_vocab, self.threads)

    def linear_backward(self, dy: np.ndarray, w: Leaf) -> np.ndarray:
        """dy [t, n_out], w [n_out, n_in] -> dx [t, n_in]."""
        if isinstance(w, Adapted):
            low = self.product(dy, np.float32(w.scale) * w.b.T)  # [t, rank]
            return self.add(self.linear_backward(dy, w.base), self.product(low, w.a.T))  # [t, n_in]
        assert isinstance(w, Panels)
        return kernels.linear_backward(dy, w, threads=self.threads)  # [t, n_in]

    def linear_weight_backward(self, dy: np.ndarray, x: np.ndarray) -> MatrixGradient:
        """dy [t, n_out], x [t, n_in] -> the gradient of a matrix [n_out, n_in]."""
        return MatrixGradient(dy, x, self.threads)

    def bias_backward(self, dy: np.ndarray) -> BiasGradient:
        """dy [t, n_out] -> the gradient of a bias [n_out]."""
        return BiasGradient(dy, self.threads)

    def layer_norm_backward(
        self, dy: np.ndarray, x: np.ndarray, w: np.ndarray, eps: float
    ) -> tuple[np.ndarray, NormGradients]:
        """dy, x [t, c], w [c] -> dx [t, c], and the gradients of weight and bias [c]."""
        dx, moments = kernels.layer_norm_backward(dy, x, w, eps, threads=self.threads)
        return dx, NormGradients(dy, x, moments, self.threads)

    def gelu_backward(self, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        """dy, x [t, f] -> dx [t, f]."""
        return kernels.gelu_backward(x, dy, threads=self.threads)

    def activation_backward(self, name: str, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Of the MLP's activation of this name. dy, x [t, f] -> dx [t, f]."""
        return self.gelu_erf_backward(dy, x) if ACTIVATIONS[name] is gelu_erf else self.gelu_backward(dy, x)

    def gelu_erf_backward(self, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        """dy, x [t, f] -> dx [t, f]."""
        return kernels.gelu_erf_backward(x, dy, threads=self.threads)

    def rotate_pairs_backward(self, dy: np.ndarray, rotation: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """dy [t, h, d], cosines and sines as the forward pass has them -> dx [t, h, d]."""
        return self._turned_back(kernels.rotary, dy, rotation)

    def rotate_halves_backward(self, dy: np.ndarray, rotation: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """The same where the pairs are the halves of what turns."""
        return self._turned_back(kernels.rotary_halves, dy, rotation)

    def attention_backward(
        self,
        dz: np.ndarray,
        q: np.ndarray,
        k: np.ndarray,
        v: np.ndarray,
        tap: Tap = no_tap,
        divisor: float | None = None,
        local: bool = False,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The gradients of queries, keys and values: rotated, if the family rotates them. All [t, h, d].

        Scores are computed again: nothing is kept that grows with the square of the text. Only a ``tap`` is shown the
        gradient of "pattern", which it cannot change.
        """
        n_rows, n_head, _ = q.shape
        positions = np.arange(n_rows, dtype=np.int64)
        n_visible = np.maximum(positions + 1, self.prefix_len)
        first = None if not local or self.window is None else np.maximum(positions + 1 - self.window, 0)
        k, v = (rounded_kv(x, self.kv_dtype) for x in (k, v))
        dpattern = None if tap is no_tap else np.empty((n_head, n_rows, n_rows), np.float32)
        found = kernels.attention_backward(
            dz, q, k, v, n_visible, first_visible=first, divisor=divisor, dpattern=dpattern, threads=self.threads
        )
        if dpattern is not None:
            tap("pattern", dpattern)
        return found

    def _turned_back(
        self, turn: Callable[..., np.ndarray], dy: np.ndarray, rotation: tuple[np.ndarray, np.ndarray]
    ) -> np.ndarray:
        cos, sin = rotation
        positions = np.arange(len(dy), dtype=np.int64)
        return turn(np.ascontiguousarray(dy), cos, -sin, positions, threads=self.threads)
