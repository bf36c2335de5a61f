"""Elementwise bounds for the rounding errors of float32 arithmetic, derived for any order of the sums.

One rounded operation gives ``(a op b)(1 + e)`` with ``|e| <= U = 2^-24``, and ``n`` of them in a row stay within
``gamma(n) = n U / (1 - n U)`` (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3). A fused multiply-add
rounds once where two are counted, so it only helps. Products that underflow add at most ``TINY`` each.

Inputs count as exact: each bound is for one operation on the given float32 arrays. Use it as
``abs(got - want) <= bound`` with ``want`` from the spec in float64. That comparison is False for NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from refgpt.numbers.dtypes import Compute, KVDtype
from refgpt.numbers.leaves import Leaf, widen
from refgpt.numbers.panels import BLOCK, FLOATS, Panels
from refgpt.spec.ops import ACTIVATIONS, gelu, gelu_erf, softmax
from refgpt.spec.positions import rotary_angles

#: Unit roundoff of float32: half the distance from 1 to the next number.
U = 2.0**-24
#: The smallest positive float32.
TINY = 2.0**-149
#: Allowed relative error of ``expf``: 4 units in the last place.
EXP_ERROR = 8 * U
#: What an ``expf`` that clamps its argument or flushes subnormals may add (e^-86, a little above the smallest normal).
EXP_FLUSH = 2.0**-124
#: Unit roundoff of bfloat16, and the size below which its linear layers treat a number as zero.
BFLOAT16_ERROR, BFLOAT16_FLUSH = 2.0**-8, 2.0**-56
#: A block whose activations are all at most this large is rounded to zeros.
SMALLEST_BLOCK = 2.0**-100
#: Rounding error of a key or value in the cache: relative, and absolute where it becomes subnormal.
KV_ROUNDING = {"f32": (0.0, 0.0), "f16": (2.0**-11, 2.0**-25)}


def gamma(n: int) -> float:
    """Largest relative error of ``n`` rounded float32 operations in a row."""
    return n * U / (1 - n * U)


def depth(n: int, chunk: int | None = None) -> int:
    """The largest number of additions that one of ``n`` terms goes through in a sum with a bias.

    In any order this is ``n``. If partial sums of ``chunk`` terms are added up one by one, as in the C kernels
    (``refgpt.kernels.CHUNK``), it is the additions within a chunk plus one for each chunk. Starting at 0 rounds
    nothing, so it is one fewer without a bias.
    """
    return n if chunk is None or n <= chunk else chunk - 1 + -(-n // chunk)


def linear_bound(
    x: np.ndarray, w: Leaf, b: np.ndarray | None = None, chunk: int | None = None, compute: Compute = "f32"
) -> np.ndarray:
    """Bound of ``linear``. x [t, n_in], w [n_out, n_in], b [n_out] -> [t, n_out].

    A term is rounded once as a product and at most ``depth`` times in sums, each time relative to the sum of absolute
    terms. Kernels round rows before multiplying them with weights of 8, 4 and 3 bits: see ``quantised_linear_bound``.
    With ``compute`` "bf16" they round them to bfloat16: then a row is off by at most ``bfloat16_bound``, which
    propagates through the weights, and a weight by at most ``BFLOAT16_FLUSH``, which propagates through the rows.
    """
    if chunk is not None and isinstance(w, Panels) and w.kind not in FLOATS:
        return quantised_linear_bound(x, w, b)
    n_in, rows, weights = x.shape[-1], _size(x), _size(w)
    lost: np.ndarray | float = 0.0
    if compute == "bf16":
        off = bfloat16_bound(x)
        rows = rows + off
        lost = off @ weights.T + BFLOAT16_FLUSH * rows.sum(-1, keepdims=True)  # [t, n_out]
    terms = rows @ weights.T  # [t, n_out]
    if b is not None:
        terms = terms + _size(b)
    return lost + gamma(depth(n_in, chunk) + 1) * terms + (n_in + 1) * TINY


def bfloat16_bound(x: np.ndarray) -> np.ndarray:
    """Bound of rows rounded to bfloat16, which has 8 significant bits, where sizes below 2^-56 become 0. Any shape."""
    size = _size(x)
    return np.where(size < BFLOAT16_FLUSH, size, size * BFLOAT16_ERROR)


def activation_bound(x: np.ndarray) -> np.ndarray:
    """Bound of rows rounded to 8 bits by blocks of 32, as a kernel's ``scale * integer``. x [t, n_in] -> [t, n_in].

    A block whose largest size is ``127 s`` has the scale ``s`` and takes steps of it, each off by one rounding. In
    steps, ``x`` is rounded twice before it is rounded to an integer, which is at most half a step away. Blocks that
    are smaller than ``SMALLEST_BLOCK`` are taken for zero.
    """
    n_in, size = x.shape[-1], _size(x)
    blocks = np.pad(size, [(0, 0), (0, -n_in % BLOCK)]).reshape(len(x), -1, BLOCK)
    scale = np.repeat(blocks.max(axis=-1, initial=0) / 127, BLOCK, axis=-1)[:, :n_in]  # [t, n_in]
    rounded = 0.5 * (1 + 2 * U) * scale + gamma(4) * size
    return np.where(scale * 127 < 2 * SMALLEST_BLOCK, np.maximum(rounded, size), rounded)


def quantised_linear_bound(x: np.ndarray, w: Leaf, b: np.ndarray | None = None) -> np.ndarray:
    """Bound of ``linear`` with weights of 8, 4 or 3 bits. x [t, n_in], w [n_out, n_in], b [n_out] -> [t, n_out].

    The rows are off by ``activation_bound``, which propagates to the sum through the weights. The products of a block
    are summed exactly; their sum is multiplied by a rounded product of scales and added to the total in one rounded
    step per block.
    """
    off, sizes, n = activation_bound(x), _size(w).T, -(-x.shape[-1] // BLOCK)
    terms = (_size(x) + off) @ sizes  # [t, n_out]
    if b is not None:
        terms = terms + _size(b)
    return off @ sizes + gamma(n + 2) * terms + n * BLOCK * 127 * 128 * TINY


def layer_norm_bound(x: np.ndarray, w: np.ndarray, b: np.ndarray, eps: float) -> np.ndarray:
    """Bound of ``layer_norm`` in two passes (mean first, then the squares of what is left). x [t, c] -> [t, c].

    The mean is off by ``off <= gamma(c + 1) mean|x|``. The computed ``d - off`` has mean square ``variance + off^2``
    (the cross term is zero, as d sums to 0), and the roundings of difference, square, sum and division come on top.
    If the variance is ``slip`` away from ``exact`` and not below ``low``, one over its root is off by at most
    ``sqrt(exact / low) - 1`` relatively. Then six more roundings: difference, root, division (or reciprocal and
    product), two for the learnt scale and shift.
    """
    x, c = widen(x, np.float64), x.shape[-1]
    off = gamma(c + 1) * np.abs(x).mean(axis=-1, keepdims=True)  # [t, 1]
    centred = x - x.mean(axis=-1, keepdims=True)  # [t, c]
    reach = np.abs(centred) + off  # [t, c]
    exact = (centred * centred).mean(axis=-1, keepdims=True) + eps  # [t, 1]
    slip = off * off + gamma(c + 5) * (reach * reach).mean(axis=-1, keepdims=True) + gamma(4) * exact  # [t, 1]
    low = np.maximum(exact - slip, eps / 2)  # a sum of squares is never negative
    stretch = np.sqrt(exact / low) * (1 + gamma(6)) - 1  # [t, 1]
    return _size(w) * (reach * stretch + off) / np.sqrt(exact) + gamma(1) * _size(b) + TINY


def softmax_bound(scores: np.ndarray, scores_error: np.ndarray | float = 0.0) -> np.ndarray:
    """Bound of ``softmax`` on scores that may themselves be off by ``scores_error``. Any [..., s] -> the same.

    In logarithms: a power is off by ``a`` = error of its score + U times its distance from the maximum (for the
    subtraction) + EXP_ERROR; their sum, a mean weighted by the pattern, by ``log sum(p e^a)``; ``s - 1`` additions and
    a division (or reciprocal and product) add ``gamma(s + 1)``. Masked places (-inf) must be exactly 0.
    """
    scores = widen(scores, np.float64)
    visible = scores > -np.inf
    below = np.where(visible, scores.max(axis=-1, keepdims=True) - scores, 0)
    error = np.broadcast_to(scores_error, scores.shape)
    below = below + 2 * error.max(axis=-1, keepdims=True)  # the maximum may be off as well
    pattern = softmax(scores)
    log_power = np.minimum(error + U * below + EXP_ERROR, 300)  # far beyond sense, short of overflow
    log_sum = np.log((pattern * np.exp(log_power)).sum(axis=-1, keepdims=True))
    ratio = np.expm1(log_power + log_sum + gamma(scores.shape[-1] + 1))
    return np.where(visible, np.minimum(pattern * ratio + EXP_FLUSH, 1), 0)


def gelu_bound(x: np.ndarray) -> np.ndarray:
    """Bound of ``gelu`` computed as ``x / (1 + exp(-2 u))`` with ``u = sqrt(2 / pi) (x + 0.044715 x^3)``. Any shape.

    ``2 u`` is a sum of terms of one sign, so its eight roundings (constants included) are relative: the power is off by
    ``e^(gamma(8) |2 u|)`` and EXP_ERROR. Of that the quotient feels the share that the power has in ``1 + power``, then
    three roundings: sum, quotient (or reciprocal and product). ``2^-50 |x|`` covers the spec's own ``1 + tanh`` for
    very negative ``x``, and ends the dispute where ``expf`` overflows or clamps.
    """
    x = widen(x, np.float64)
    twice_u = 2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)
    power = np.exp(np.clip(-twice_u, -100, 100))
    off = np.expm1(gamma(8) * np.minimum(np.abs(twice_u), 100) + EXP_ERROR)
    share = power / (1 + power)
    return np.abs(gelu(x)) * (share * off / (1 - share * off) + gamma(3)) + np.abs(x) * 2.0**-50 + TINY


def gelu_erf_bound(x: np.ndarray) -> np.ndarray:
    """Bound of ``gelu_erf`` computed as ``max(x, 0) - t Q(t)`` with ``t = |x|``. Any shape.

    ``Q(t)`` is ``exp(-t^2 / 2) p(q) / (1 + t)``. ``q = (t - 3.5) / (t + 3.5)`` is rounded three times, and ``p``
    changes at most 0.36 times as much as ``q``, both relatively: 1.1 roundings. Nine fused steps of ``p`` come to less
    than 1.5 roundings of it, as the first are multiplied by powers of ``q``; its fit and the rounding of its
    coefficients to less than 0.7 (both computed over the whole range). Two more for ``1 + t`` and the quotient, two for
    joining power and quotient to ``t``, and one for correcting the power by the square's rounding: nine at most, and
    EXP_ERROR. The last subtraction rounds once. Where the power is below the smallest normal number it may be taken for
    0: ``t Q(t)`` is then at most 0.4 times it.
    """
    x = widen(x, np.float64)
    tail = np.abs(gelu_erf(-np.abs(x)))  # t Q(t)
    off = tail * (gamma(9) + EXP_ERROR) + EXP_FLUSH
    return off + gamma(1) * (np.abs(gelu_erf(x)) + off) + TINY


#: Of the MLP's activation by its name, as ``refgpt.spec.ops.ACTIVATIONS``.
ACTIVATION_BOUNDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    name: gelu_erf_bound if formula is gelu_erf else gelu_bound for name, formula in ACTIVATIONS.items()
}


def gelu_backward_bound(x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Bound of ``gelu_backward`` computed as ``dy (s + x s (1 - s) rise)`` with ``s = 1 / (1 + exp(-2 u))``. Any shape.

    The power is off as in ``gelu_bound``. ``s`` feels the share that it has in ``1 + power``, and ``1 - s``, taken as
    ``power s``, the rest; then they are rounded two and three times. The second term has four more roundings in
    ``rise`` and four of products; the sum and the last product are two. ``2^-50 (1 + |x|^3)`` covers the spec's own
    ``1 - tanh^2``, which cancels; beyond 16 the kernel takes the slope at 16, and so ``2^-117`` at most is left out.
    """
    x, dy = widen(x, np.float64), np.abs(widen(dy, np.float64))
    near = np.clip(x, -16, 16)
    twice_u = 2 * math.sqrt(2 / math.pi) * (near + 0.044715 * near * near * near)
    power = np.exp(np.clip(-twice_u, -100, 100))
    off = np.expm1(gamma(8) * np.minimum(np.abs(twice_u), 100) + EXP_ERROR)
    share = power / (1 + power)
    s_off = share * off / (1 - share * off) + gamma(2)
    rest_off = (1 - share) * off / (1 - off) + gamma(3)
    rise = 2 * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * near * near)
    s, bend = 1 - share, np.abs(near) * (1 - share) * share * rise
    bend_off = (1 + s_off) * (1 + rest_off) * (1 + gamma(8)) - 1
    off = s * s_off + bend * bend_off + gamma(2) * (s * (1 + s_off) + bend * (1 + bend_off))
    return dy * (off + 2.0**-50 * (1 + np.abs(near) ** 3) + 2.0**-117) + TINY


def rotary_bound(
    x: np.ndarray, positions: np.ndarray, d_rotary: int, base: float = 10000.0, halves: bool = False
) -> np.ndarray:
    """Bound of ``rotate_pairs``, or ``rotate_halves``, with sines and cosines from float64. x [t, h, d] -> [t, h, d].

    Three roundings a term: the sine or cosine, the product, the sum. Before the first of them it may be off by eight
    float64 roundings of the largest angle, which is the position. Dimensions from ``d_rotary`` on are exact.
    """
    angles = rotary_angles(positions, d_rotary, base)[:, None, :]  # [t, 1, r/2]
    cos, sin = np.abs(np.cos(angles)), np.abs(np.sin(angles))
    half = d_rotary // 2
    evens = slice(0, half) if halves else slice(0, d_rotary, 2)
    odds = slice(half, d_rotary) if halves else slice(1, d_rotary, 2)
    even, odd = _size(x[..., evens]), _size(x[..., odds])  # [t, h, r/2] each
    slip = 8 * 2.0**-53 * np.asarray(positions)[:, None, None] * (even + odd) + 2 * TINY  # [t, h, r/2]
    bound = np.zeros(x.shape)
    bound[..., evens] = gamma(3) * (even * cos + odd * sin) + slip
    bound[..., odds] = gamma(3) * (odd * cos + even * sin) + slip
    return bound


def pattern_bound(
    q: np.ndarray,
    k: np.ndarray,
    mask: np.ndarray,
    kv_dtype: KVDtype = "f32",
    chunk: int | None = None,
    divisor: float | None = None,
) -> np.ndarray:
    """Bound of the attention pattern from rotated queries [t, h, d] and keys [s, h, d], mask [t, s] -> [h, t, s].

    A score is a sum of ``d`` products, of keys that the cache has rounded: product and additions (there is no bias)
    round ``depth`` times, scaling three times (divisor, reciprocal, product); ``softmax_bound`` does the rest. Scores
    are divided by the root of ``d`` where no ``divisor`` is given.
    """
    divisor = math.sqrt(q.shape[-1]) if divisor is None else divisor
    d = q.shape[-1]
    cache_error = _cache_error(k, kv_dtype)  # [s, h, d]
    each = gamma(depth(d, chunk) + 3) * (_size(k) + cache_error) + cache_error  # [s, h, d]
    return softmax_bound(_scores(q, k, mask, divisor), _products(_size(q), each, divisor) + d * TINY)


def z_bound(pattern: np.ndarray, v: np.ndarray, kv_dtype: KVDtype = "f32", chunk: int | None = None) -> np.ndarray:
    """Bound of the pattern's mix of values. pattern [h, t, s], v [s, h, d] -> [t, h, d].

    A sum of ``s`` products of values that the cache has rounded: ``depth`` roundings. Four more let a kernel mix first
    and divide by the sum of powers afterwards (reciprocal and product, here and in the pattern it shows).
    """
    n = pattern.shape[-1]
    cache_error = _cache_error(v, kv_dtype)  # [s, h, d]
    each = gamma(depth(n, chunk) + 4) * (_size(v) + cache_error) + cache_error  # [s, h, d]
    return np.einsum("hts,shd->thd", _size(pattern), each) + n * TINY


def attention_bound(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray,
    kv_dtype: KVDtype = "f32",
    chunk: int | None = None,
    divisor: float | None = None,
) -> np.ndarray:
    """Bound of ``z`` when the pattern is not seen on the way: rotated q [t, h, d], k and v [s, h, d] -> [t, h, d].

    The pattern's error reaches ``z`` through the values, and the mix is of the pattern with that error.
    """
    divisor = math.sqrt(q.shape[-1]) if divisor is None else divisor
    pattern = softmax(_scores(q, k, mask, divisor))  # [h, t, s]
    error = pattern_bound(q, k, mask, kv_dtype, chunk, divisor)  # [h, t, s]
    return np.einsum("hts,shd->thd", error, _size(v)) + z_bound(pattern + error, v, kv_dtype, chunk)


def residual_bound(*terms: np.ndarray) -> np.ndarray:
    """Bound of a sum of arrays of one shape, in any order: one rounding fewer than terms."""
    return gamma(len(terms) - 1) * np.sum([_size(term) for term in terms], axis=0)


def _products(q: np.ndarray, k: np.ndarray, divisor: float) -> np.ndarray:
    return np.einsum("thd,shd->hts", q, k) / divisor


def _scores(q: np.ndarray, k: np.ndarray, mask: np.ndarray, divisor: float) -> np.ndarray:
    return np.where(mask, _products(widen(q, np.float64), widen(k, np.float64), divisor), -np.inf)


def _size(x: Leaf) -> np.ndarray:
    return np.abs(widen(x, np.float64))


def _cache_error(x: np.ndarray, kv_dtype: KVDtype) -> np.ndarray:
    """How far the cache's number may be from a key or value. x [s, h, d] -> [s, h, d].

    In 8 bits, 32 neighbours whose largest size is ``127 s`` take steps of ``s`` rounded to float16, and each number is
    at most half a step away: of its own, or of 127 steps where ``s`` was rounded down. In steps it is rounded twice.
    """
    if kv_dtype == "q8":
        n, size, (relative, absolute) = x.shape[-1], _size(x), KV_ROUNDING["f16"]
        blocks = np.pad(size, [*[(0, 0)] * (x.ndim - 1), (0, -n % BLOCK)]).reshape(*x.shape[:-1], -1, BLOCK)
        scale = np.repeat(blocks.max(axis=-1, initial=0) / 127, BLOCK, axis=-1)[..., :n]
        off = (relative + gamma(1)) * scale + absolute  # of the scale: one division, one rounding to float16
        return np.maximum(0.5 * (scale + off), 127 * off) + gamma(2) * size
    relative, absolute = KV_ROUNDING[kv_dtype]
    return _size(x) * relative + absolute
