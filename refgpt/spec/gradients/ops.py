"""The backward of each operation: from the gradient of what it gave to the gradients of what it was given.

The gradient of an array is an array of its shape: by how much the loss changes with each of its numbers. ``dy`` is the
gradient of an operation's result, ``dx`` that of its input, ``dw`` and ``db`` those of its weights. Each formula stands
below the one that it differentiates, which is that of ``refgpt.spec.ops``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from refgpt.numbers.leaves import Leaf, widen
from refgpt.spec.ops import ACTIVATIONS, bfloat16, current_compute, gelu_erf, softmax
from refgpt.spec.positions import rotate_halves, rotate_pairs

#: sqrt(2 / pi), by which the tanh form of GELU scales its argument.
GELU_SCALE = math.sqrt(2 / math.pi)


def embedding_backward(dy: np.ndarray, ids: np.ndarray, n_vocab: int) -> np.ndarray:
    """``y = table[ids]``: each row of the table gets the gradients of all places where its id stands, in their order.

    dy [t, c], ids [t] -> dtable [v, c]
    """
    dtable = np.zeros((n_vocab, dy.shape[1]), dy.dtype)  # [v, c]
    np.add.at(dtable, ids, dy)
    return dtable


def factors(dy: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The factors of a gradient's products, dy and weights or activations, rounded as ``products_in`` says."""
    if current_compute() == "f32":
        return dy, other
    dy, other = bfloat16(dy), bfloat16(other)
    return np.where(np.abs(dy) < 2.0**-80, 0, dy), np.where(np.abs(other) < 2.0**-32, 0, other)


def linear_backward(dy: np.ndarray, w: Leaf) -> np.ndarray:
    """``y = x w^T + b``: the gradient of its input. dy [t, n_out], w [n_out, n_in] -> dx [t, n_in]."""
    dy, w = factors(dy, widen(w, dy.dtype))
    return dy @ w  # [t, n_in]


def linear_weight_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``y = x w^T + b``: the gradient of its matrix. dy [t, n_out], x [t, n_in] -> dw [n_out, n_in]."""
    dy, x = factors(dy, x)
    return dy.T @ x  # [n_out, n_in]


def bias_backward(dy: np.ndarray) -> np.ndarray:
    """``y = x w^T + b``: the gradient of its bias. dy [t, n_out] -> db [n_out]."""
    return dy.sum(axis=0)  # [n_out]


def layer_norm_backward(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``y = normed w + b`` with ``normed = (x - mean) / sqrt(variance + eps)``.

    Mean and variance depend on the whole row: what of ``dy w`` lies along the ones and along ``normed`` itself does not
    reach ``x``.

    dy, x [t, c], w [c] -> dx [t, c], dw [c], db [c]
    """
    centred = x - x.mean(axis=-1, keepdims=True)  # [t, c]
    scale = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)  # [t, 1]
    normed = centred / scale  # [t, c]
    dnormed = dy * widen(w, dy.dtype)  # [t, c]
    along_ones = dnormed.mean(axis=-1, keepdims=True)  # [t, 1]
    along_normed = (dnormed * normed).mean(axis=-1, keepdims=True)  # [t, 1]
    dx = (dnormed - along_ones - normed * along_normed) / scale  # [t, c]
    return dx, (dy * normed).sum(axis=0), dy.sum(axis=0)


def softmax_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``y = exp(x) / sum(exp(x))`` along the last axis, from its result. dy, y [..., n] -> dx [..., n]."""
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


def gelu_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``y = x (1 + tanh u) / 2`` with ``u = sqrt(2 / pi) (x + 0.044715 x^3)``. dy, x [t, f] -> dx [t, f]."""
    tanh = np.tanh(GELU_SCALE * (x + 0.044715 * x * x * x))  # [t, f]
    slope = GELU_SCALE * (1 + 3 * 0.044715 * x * x)  # [t, f], of u
    return dy * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh * tanh) * slope)  # [t, f]


def gelu_erf_backward(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``y = x P(x)`` with the normal distribution's share ``P`` below ``x``, whose slope is its density.

    dy, x [t, f] -> dx [t, f]
    """
    share = np.vectorize(lambda value: math.erfc(-value / math.sqrt(2)) / 2, otypes=[np.float64])(x)  # [t, f]
    density = np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)  # [t, f]
    return dy * (share.astype(x.dtype) + x * density)  # [t, f]


#: The backward of the MLP's activation, by its name: that of ``refgpt.spec.ops.ACTIVATIONS``.
ACTIVATIONS_BACKWARD: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    name: gelu_erf_backward if formula is gelu_erf else gelu_backward for name, formula in ACTIVATIONS.items()
}


def rotate_pairs_backward(dy: np.ndarray, positions: np.ndarray, d_rotary: int) -> np.ndarray:
    """A rotation is undone by turning as far the other way. dy [t, h, d], positions [t] -> dx [t, h, d]."""
    return rotate_pairs(dy, -positions, d_rotary)


def rotate_halves_backward(dy: np.ndarray, positions: np.ndarray, d_rotary: int, base: float) -> np.ndarray:
    """The same for ``rotate_halves``. dy [t, h, d], positions [t] -> dx [t, h, d]."""
    return rotate_halves(dy, -positions, d_rotary, base)


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """``-log softmax(logits)[target]`` of each row, in nats. logits [n, v], targets int [n] -> [n]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)  # [n, v]; the largest is 0: nothing overflows
    return np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(targets)), targets]  # [n]


def cross_entropy_backward(dy: np.ndarray, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """What the model expects, less what came. dy [n], logits [n, v], targets int [n] -> dlogits [n, v]."""
    dlogits = softmax(logits)  # [n, v]
    dlogits[np.arange(len(targets)), targets] -= 1
    return dlogits * dy[:, None]  # [n, v]
