"""Each operation's backward in kernels: the formulas are in ``refgpt/spec/gradients/ops.py``.

Weights are read as the forward pass keeps them, in any dtype: nothing is kept twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refgpt import kernels
from refgpt.kernels import LinearInput
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.cached import rounded_kv
from refgpt.numbers.dtypes import Compute, KVDtype
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.panels import Panels
from refgpt.runtime.gradients.room import Room
from refgpt.runtime.gradients.texts import Texts
from refgpt.runtime.gradients.weights import BiasGradient, MatrixGradient, NormGradient, TableGradient, product
from refgpt.spec.ops import ACTIVATIONS, gelu_erf
from refgpt.spec.taps import Tap, no_tap


def linear_backward(
    dy: np.ndarray, w: Leaf, threads: int, scratch: np.ndarray | None = None, out: np.ndarray | None = None
) -> np.ndarray:
    """dy [t, n_out], w [n_out, n_in], with or without an adapter -> dx [t, n_in]. ``scratch``: see ``LinearInput``."""
    rows = LinearInput(dy, scratch, threads=threads)
    if not isinstance(w, Adapted):
        assert isinstance(w, Panels)
        return kernels.linear_backward(rows, w, out, threads=threads)  # [t, n_in]
    assert isinstance(w.base, Panels)
    low = product(rows, np.float32(w.scale) * w.b.T, threads)  # [t, rank]
    dx, through_adapter = kernels.linear_backward(rows, w.base, out, threads=threads), product(low, w.a.T, threads)
    return kernels.add(dx, through_adapter, dx, threads=threads)  # [t, n_in]


@dataclass(frozen=True)
class Ops:
    """The operations on the rows of some texts. No bit depends on the number of threads.

    Attributes
    ----------
    texts : Texts
    threads : int
    kv_dtype : "f32", "f16" or "q8"
        What the forward pass rounds keys and values to.
    compute : "f32" or "bf16"
        What the factors of products with dy are rounded to.
    window : int or None
        How many keys a row of a local layer sees.
    room : Room, optional
        Memory for results. With it, gradients of activations are not shown to taps, so a result may overwrite its
        input.
    """

    texts: Texts
    threads: int
    kv_dtype: KVDtype = "f32"
    compute: Compute = "f32"
    window: int | None = None
    room: Room | None = None

    def scratch_shape(self, d_head: int) -> tuple[int, int]:
        """The shape of the memory that ``attention_backward`` needs beside its results."""
        return self.threads, kernels.attention_backward_scratch(self.texts.n_longest, d_head)

    def next_block(self) -> None:
        """Begin the backward pass of another block; results of the block before the last may be overwritten."""
        if self.room is not None:
            self.room.next_block()

    def add(self, x: np.ndarray, a: np.ndarray) -> np.ndarray:
        """The sum of two gradients, in the place of the first. x, a [t, c] -> [t, c]."""
        return kernels.add(x, a, x, threads=self.threads)

    def embedding_backward(self, dy: np.ndarray, ids: np.ndarray, n_vocab: int) -> TableGradient:
        """dy [t, c], ids [t] -> the gradient of a table [v, c]."""
        return TableGradient(dy, ids, n_vocab, self.threads)

    def linear_backward(self, dy: np.ndarray, w: Leaf) -> np.ndarray:
        """dy [t, n_out], w [n_out, n_in] -> dx [t, n_in]."""
        scratch = None if self.room is None else self.room.scratch
        return linear_backward(dy, w, self.threads, scratch, self._new((len(dy), w.shape[1])))

    def linear_weight_backward(self, dy: np.ndarray, x: np.ndarray) -> MatrixGradient:
        """dy [t, n_out], x [t, n_in] -> the gradient of a matrix [n_out, n_in]."""
        return MatrixGradient(dy, x, self.texts.starts, self.threads, self.compute)

    def bias_backward(self, dy: np.ndarray) -> BiasGradient:
        """dy [t, n_out] -> the gradient of a bias [n_out]."""
        return BiasGradient(dy, self.texts.starts, self.threads)

    def layer_norm_backward(
        self, dy: np.ndarray, x: np.ndarray, w: np.ndarray, eps: float
    ) -> tuple[np.ndarray, NormGradient]:
        """dy, x [t, c], w [c] -> dx [t, c], and the gradient of the weight [c]; that of the bias is
        ``bias_backward``."""
        out = self._new(dy.shape), np.empty((len(dy), 2), np.float32)
        dx, moments = kernels.layer_norm_backward(dy, x, w, eps, out, threads=self.threads)
        return dx, NormGradient(dy, x, moments, self.texts.starts, self.threads)

    def gelu_backward(self, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        """dy, x [t, f] -> dx [t, f]."""
        return kernels.gelu_backward(x, dy, self._in_place(dy), threads=self.threads)

    def activation_backward(self, name: str, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The backward pass of the MLP's activation of this name. dy, x [t, f] -> dx [t, f]."""
        return self.gelu_erf_backward(dy, x) if ACTIVATIONS[name] is gelu_erf else self.gelu_backward(dy, x)

    def gelu_erf_backward(self, dy: np.ndarray, x: np.ndarray) -> np.ndarray:
        """dy, x [t, f] -> dx [t, f]."""
        return kernels.gelu_erf_backward(x, dy, self._in_place(dy), threads=self.threads)

    def rotate_pairs_backward(self, dy: np.ndarray, rotation: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """dy [t, h, d], cosines and sines as the forward pass has them -> dx [t, h, d]."""
        return self._turned_back(kernels.rotary, dy, rotation)

    def rotate_halves_backward(self, dy: np.ndarray, rotation: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        """The same for ``rotate_halves``."""
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

        Scores are computed again, so that no memory grows with the square of the text's length. A ``tap``, which needs
        a single text, sees the gradient of "pattern" and cannot change it.
        """
        (n_rows, n_head, _), texts = q.shape, self.texts
        first = None if not local or self.window is None else np.maximum(texts.positions + 1 - self.window, 0)
        k, v = (rounded_kv(x, self.kv_dtype) for x in (k, v))
        dpattern = None if tap is no_tap else np.empty((n_head, n_rows, n_rows), np.float32)
        found = kernels.attention_backward(
            dz,
            q,
            k,
            v,
            texts.n_visible,
            first_visible=first,
            divisor=divisor,
            dpattern=dpattern,
            out=(self._new(q.shape), self._new(q.shape), self._new(q.shape)),
            scratch=None if self.room is None else self.room.array(*self.scratch_shape(q.shape[2])),
            starts=texts.starts,
            threads=self.threads,
        )
        if dpattern is not None:
            tap("pattern", dpattern)
        return found

    def _turned_back(
        self, turn: Callable[..., np.ndarray], dy: np.ndarray, rotation: tuple[np.ndarray, np.ndarray]
    ) -> np.ndarray:
        (cos, sin), dy = rotation, np.ascontiguousarray(dy)
        return turn(dy, cos, -sin, self.texts.positions, self._in_place(dy), threads=self.threads)

    def _in_place(self, dy: np.ndarray) -> np.ndarray | None:
        """Memory for a result of dy's shape."""
        return None if self.room is None else dy

    def _new(self, shape: tuple[int, ...]) -> np.ndarray:
        """Memory for a result."""
        return np.empty(shape, np.float32) if self.room is None else self.room.array(*shape)
