"""The operations that the models are made of, except rotation (``positions.py``).

Weights are ``[out, in]`` and may be stored in a narrower dtype than ``x``: each is widened to the dtype of ``x`` when
it is used, so a 16-bit checkpoint needs memory for one wide matrix at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np

from refgpt.numbers.casting import narrowed
from refgpt.numbers.dtypes import Compute, DTypeLike
from refgpt.numbers.leaves import Leaf, widen

_COMPUTE: ContextVar[Compute] = ContextVar("compute", default="f32")


@contextmanager
def products_in(compute: Compute) -> Iterator[None]:
    """Within the block, linear layers and their gradients round the factors of products as kernels do.

    With "bf16", factors are rounded to bfloat16 and products added in the dtype of the rows; numbers that are so small
    that kernels take them for 0 are 0. This is for float weights. "f32" rounds nothing.
    """
    token = _COMPUTE.set(compute)
    try:
        yield
    finally:
        _COMPUTE.reset(token)


def current_compute() -> Compute:
    """The dtype that ``products_in`` has set."""
    return _COMPUTE.get()


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16, ties to even, in its own dtype. Any shape."""
    return widen(narrowed(x, "bf16"), x.dtype)


def embedding(ids: np.ndarray, table: Leaf, dtype: DTypeLike) -> np.ndarray:
    """The table's row of each id. ids [t], table [v, c] -> [t, c]."""
    return widen(table[ids], dtype)


def linear_factors(x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and weights as ``linear`` multiplies them: rounded as ``products_in`` says. Any shapes."""
    if current_compute() == "f32":
        return x, w
    x, w = bfloat16(x), bfloat16(w)
    return np.where(np.abs(x) < 2.0**-56, 0, x), np.where(np.abs(w) < 2.0**-56, 0, w)


def linear(x: np.ndarray, w: Leaf, b: np.ndarray | None = None) -> np.ndarray:
    """``x w^T + b``. x [t, n_in], w [n_out, n_in], b [n_out] -> [t, n_out]."""
    x, w = linear_factors(x, widen(w, x.dtype))  # [t, n_in], [n_out, n_in]
    y = x @ w.T  # [t, n_out]
    return y if b is None else y + widen(b, y.dtype)


def layer_norm(x: np.ndarray, w: np.ndarray, b: np.ndarray, eps: float) -> np.ndarray:
    """Each row shifted to mean 0, scaled to variance 1, then given a learnt scale and shift. x [t, c] -> [t, c].

    The variance is the mean square (over c, not c - 1), and ``eps`` is added to it before the root. A row whose
    variance overflows becomes NaN: divided by an infinite root it would be 0, as if it were an ordinary number.
    """
    centred = x - x.mean(axis=-1, keepdims=True)  # [t, c]
    variance = (centred * centred).mean(axis=-1, keepdims=True)  # [t, 1]
    variance = np.where(np.isinf(variance), np.nan, variance)
    return centred / np.sqrt(variance + eps) * widen(w, x.dtype) + widen(b, x.dtype)  # [t, c]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Positive numbers that sum to 1 along the last axis, in proportion to ``exp(scores)``; -inf becomes 0."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))  # the largest is exp(0): nothing overflows
    return powers / powers.sum(axis=-1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    """A smooth step from 0 to ``x``: the tanh form of GELU, which GPT-J was trained with ("gelu_new")."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def gelu_erf(x: np.ndarray) -> np.ndarray:
    """GELU itself ("gelu"): ``x`` times the normal distribution's share below it, ``(1 + erf(x / sqrt 2)) / 2``.

    The share is written ``erfc(-x / sqrt 2) / 2``, which loses nothing where it is small, and computed in float64.
    """
    share = np.vectorize(lambda value: math.erfc(-value / math.sqrt(2)) / 2, otypes=[np.float64])(x)
    return x * share.astype(x.dtype)


#: The MLP's activation by the name that transformers has for it.
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu_new": gelu,
    "gelu_fast": gelu,
    "gelu_pytorch_tanh": gelu,
    "gelu_accurate": gelu,
    "gelu": gelu_erf,
    "gelu_python": gelu_erf,
}
