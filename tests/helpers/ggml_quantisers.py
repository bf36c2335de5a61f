"""How ggml's reference quantisers round to its formats Q8_0 and Q4_0, and what is left of weights after it.

Both hold blocks of 32 with one float16 scale d: 8.5 and 4.5 bits a weight, as many as panels of 8 and 4 bits. Weights
are divided by d before it is rounded to float16. ggml has no format of 3.5 bits: ``q3_0`` is the rule of Q4_0.
"""

from __future__ import annotations

import numpy as np

from refgpt.numbers.leaves import Leaf, widen
from refgpt.numbers.packing import kept_kind
from refgpt.spec.gptj import Params


def q8_0(w: np.ndarray) -> np.ndarray:
    """d = largest magnitude / 127; q = round(x / d), halves away from zero."""
    x = w.reshape(-1, 32)
    d = np.abs(x).max(1, keepdims=True) / np.float32(127)
    scaled = x * _inverse(d)
    q = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    return (q * d.astype(np.float16).astype(np.float32)).reshape(w.shape)


def q4_0(w: np.ndarray, half: int = 8) -> np.ndarray:
    """d = the number of the largest magnitude / -8; q = min(15, trunc(x / d + 8.5)) - 8."""
    x = w.reshape(-1, 32)
    d = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1) / np.float32(-half)
    q = np.minimum(2 * half - 1, np.trunc(x * _inverse(d) + np.float32(half + 0.5))) - half
    return (q * d.astype(np.float16).astype(np.float32)).reshape(w.shape)


def q3_0(w: np.ndarray) -> np.ndarray:
    """d = the number of the largest magnitude / -4; q = min(7, trunc(x / d + 4.5)) - 4."""
    return q4_0(w, 4)


def _inverse(d: np.ndarray) -> np.ndarray:
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


GGML = {"q8": q8_0, "q4": q4_0, "q3": q3_0}


def with_ggml(params: Params, dtype: str) -> Params:
    """The weights after ggml's rounding, matrix for matrix in as many bits as ``dtype`` gives them."""

    def rounded(name: str, leaf: Leaf) -> Leaf:
        return GGML[kept_kind(name, dtype) or ""](widen(leaf)) if leaf.ndim == 2 else leaf

    return params.map(rounded)
