"""Elementwise bounds for the rounding errors of gradients in float32: see ``refgpt.spec.bounds.ops``.

Sums over the rows of a text are added to an array ``before``; that rounds once more.
"""

from __future__ import annotations

import math

import numpy as np

from refgpt.numbers.leaves import Leaf, widen
from refgpt.spec.bounds.ops import EXP_ERROR, EXP_FLUSH, TINY, U, depth, gamma, pattern_bound, softmax_bound
from refgpt.spec.ops import gelu_erf, softmax


def linear_backward_bound(dy: np.ndarray, w: Leaf, chunk: int | None = None) -> np.ndarray:
    """Bound of ``linear_backward``, which sums over outputs. dy [t, n_out], w [n_out, n_in] -> [t, n_in]."""
    n_out = dy.shape[-1]
    return gamma(depth(n_out, chunk) + 1) * (_size(dy) @ _size(w)) + (n_out + 1) * TINY


def linear_weight_backward_bound(
    dy: np.ndarray, x: np.ndarray, before: np.ndarray, chunk: int | None = None
) -> np.ndarray:
    """Bound of ``linear_weight_backward``: sums over rows. dy [t, n_out], x [t, n_in] -> [n_out, n_in]."""
    n_rows = len(dy)
    terms = _size(dy).T @ _size(x)  # [n_out, n_in]
    return gamma(depth(n_rows, chunk) + 2) * terms + gamma(1) * _size(before) + (n_rows + 1) * TINY


def column_sum_bound(x: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Bound of sums of columns, in any order. x [t, n], before [n] -> [n]."""
    return gamma(len(x) + 1) * _size(x).sum(axis=0) + gamma(1) * _size(before)


def embedding_backward_bound(dy: np.ndarray, ids: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Bound of ``embedding_backward``: a row has an addition for each place of its id. dy [t, c] -> [v, c]."""
    sizes, counts = _size(before), np.bincount(ids, minlength=len(before))
    np.add.at(sizes, ids, _size(dy))
    return counts[:, None] * U / (1 - counts[:, None] * U) * sizes


def cross_entropy_backward_bound(
    dy: np.ndarray, logits: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bound of ``cross_entropy_backward``. dy [t], logits [t, v], targets [t] -> of dlogits [t, v] and parts [t, 2].

    ``softmax_bound``, then a subtraction and a product. A power is off as in ``softmax_bound``, and the sum of ``v`` of
    them rounds ``v`` times; the difference of two logits rounds once.
    """
    rows, off, v = np.arange(len(logits)), softmax_bound(logits), logits.shape[1]
    slope = softmax(widen(logits, np.float64))
    slope[rows, targets] -= 1
    of_slope = np.abs(widen(dy, np.float64))[:, None] * (off + gamma(2) * (np.abs(slope) + off)) + TINY
    below = widen(logits, np.float64).max(axis=-1, keepdims=True) - widen(logits, np.float64)  # [t, v]
    powers = np.exp(-below)
    each = powers * np.expm1(np.minimum(U * below + EXP_ERROR, 300)) + EXP_FLUSH
    of_total = each.sum(-1) + gamma(v) * (powers + each).sum(-1)
    return of_slope, np.stack((of_total, gamma(1) * below[rows, targets]), axis=-1)


def gelu_erf_backward_bound(x: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Bound of ``gelu_erf_backward`` as ``dy (share + x density)``, the share as ``|[x >= 0] - Q(|x|)|``. Any shape.

    ``Q`` is off as in ``gelu_erf_bound``, the density by EXP_ERROR, the correction of its power, and two roundings of
    constant and product. Both may be taken for 0 where the power is below the smallest normal number, or beyond 14. The
    difference, the sum and the product with dy round once each.
    """
    x, dy = widen(x, np.float64), np.abs(widen(dy, np.float64))
    tail = np.abs(gelu_erf(-np.abs(x))) / np.maximum(np.abs(x), TINY)  # Q
    tail = np.where(np.abs(x) < 1e-30, 0.5, tail)
    share = np.where(x < 0, tail, 1 - tail)
    bend = np.abs(x) * np.exp(-0.5 * np.minimum(x * x, 1400)) / math.sqrt(2 * math.pi)
    off = tail * (gamma(9) + EXP_ERROR) + bend * (gamma(5) + EXP_ERROR) + 16 * EXP_FLUSH
    return dy * (off + gamma(3) * (share + bend + off)) + TINY


def layer_norm_backward_bound(
    dy: np.ndarray, x: np.ndarray, w: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Bound of ``layer_norm_backward`` in two passes. dy, x [t, c], w [c] -> of dx [t, c], of mean and root [t, 2].

    ``off``, ``slip``, ``low`` and ``stretch`` are those of ``layer_norm_bound``; so ``normed`` is off by
    ``(reach stretch + off) / root``. Products with it are off by that and by rounding, means of ``c`` terms by
    ``c + 1`` more roundings. The numerator has three terms, which round three times; the quotient is stretched once
    more.
    """
    x, dy, c = widen(x, np.float64), widen(dy, np.float64), x.shape[-1]
    off = gamma(c + 1) * np.abs(x).mean(axis=-1, keepdims=True)  # [t, 1]
    centred = x - x.mean(axis=-1, keepdims=True)  # [t, c]
    reach = np.abs(centred) + off  # [t, c]
    exact = (centred * centred).mean(axis=-1, keepdims=True) + eps  # [t, 1]
    slip = off * off + gamma(c + 5) * (reach * reach).mean(axis=-1, keepdims=True) + gamma(4) * exact  # [t, 1]
    low = np.maximum(exact - slip, eps / 2)
    stretch = np.sqrt(exact / low) * (1 + gamma(6)) - 1  # [t, 1]
    root = np.sqrt(exact)  # [t, 1]
    normed, normed_off = centred / root, (reach * stretch + off) / root  # [t, c]
    dnormed = dy * widen(w, np.float64)  # [t, c]
    size = np.abs(dnormed) + TINY  # [t, c]
    ones, ones_off = dnormed.mean(-1, keepdims=True), gamma(c + 2) * size.mean(-1, keepdims=True)  # [t, 1]
    slope = (dnormed * normed).mean(-1, keepdims=True)  # [t, 1]
    reached = np.abs(normed) + normed_off  # [t, c]
    slope_off = (size * (normed_off + gamma(c + 4) * reached)).mean(-1, keepdims=True) + TINY  # [t, 1]
    bend = reached * (np.abs(slope) + slope_off)  # [t, c]
    bend_off = normed_off * np.abs(slope) + reached * slope_off  # [t, c]
    numerator = dnormed - ones - normed * slope  # [t, c]
    numerator_off = gamma(1) * size + ones_off + bend_off + gamma(3) * (size + np.abs(ones) + ones_off + bend) + TINY
    of_dx = (numerator_off * (1 + stretch) + np.abs(numerator) * stretch) / root + TINY
    return of_dx, np.concatenate((off, root * stretch), axis=-1)


def layer_norm_weight_backward_bound(
    dy: np.ndarray, x: np.ndarray, moments: np.ndarray, before: np.ndarray
) -> np.ndarray:
    """Bound of ``layer_norm_weight_backward``, from moments that count as exact. dy, x [t, c], moments [t, 2] -> [c].

    A term is rounded as a difference, a quotient and a product.
    """
    mean, root = widen(moments, np.float64).T[:, :, None]  # [t, 1]
    terms = _size(dy) * np.abs(widen(x, np.float64) - mean) / root  # [t, c]
    slack = TINY * (_size(dy).sum(0) + len(dy) + 1)
    bound: np.ndarray = gamma(len(dy) + 4) * terms.sum(0) + gamma(1) * _size(before) + slack
    return bound


def attention_backward_bound(
    dz: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    mask: np.ndarray,
    chunk: int | None = None,
    divisor: float | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Bound of ``attention_backward``. dz, q, k, v [t, h, d], mask [t, s] -> dq, dk, dv [t, h, d], dpattern [h, t, s].

    The pattern is off by ``pattern_bound``, its gradient by a sum of ``d`` products. Both errors reach the row's mean,
    a sum of at most ``s`` terms, and so the slope. The gradients are sums of products with pattern and slope.
    """
    divisor = math.sqrt(q.shape[-1]) if divisor is None else divisor
    n_rows, _, d = q.shape
    scores = np.einsum("thd,shd->hts", widen(q, np.float64), widen(k, np.float64)) / divisor
    pattern = softmax(np.where(mask, scores, -np.inf))  # [h, t, s]
    p_off = pattern_bound(q, k, mask, "f32", chunk, divisor)
    dp = np.einsum("thd,shd->hts", widen(dz, np.float64), widen(v, np.float64))
    dp_off = gamma(depth(d, chunk) + 1) * np.einsum("thd,shd->hts", _size(dz), _size(v)) + d * TINY
    p_size, dp_size = pattern + p_off, np.abs(dp) + dp_off
    mean = (pattern * dp).sum(-1, keepdims=True)  # [h, t, 1]
    mean_off = (np.abs(dp) * p_off + p_size * dp_off + gamma(n_rows + 1) * p_size * dp_size + TINY * mask).sum(
        -1, keepdims=True
    )
    off = np.abs(dp - mean)
    off_off = dp_off + mean_off + gamma(1) * (dp_size + np.abs(mean) + mean_off)
    slope = np.where(mask, pattern * (dp - mean) / divisor, 0)
    slope_off = (p_off * (off + off_off) + pattern * off_off + gamma(2) * p_size * (off + off_off) + TINY) / divisor
    slope_off = np.where(mask, slope_off + TINY, 0)
    s_size = np.abs(slope) + slope_off
    rounds = gamma(depth(n_rows, chunk) + 1)
    of_dq = np.einsum("hts,shd->thd", slope_off + rounds * s_size, _size(k)) + n_rows * TINY
    of_dk = np.einsum("hts,thd->shd", slope_off + rounds * s_size, _size(q)) + n_rows * TINY
    of_dv = np.einsum("hts,thd->shd", p_off + rounds * p_size, _size(dz)) + n_rows * TINY
    return of_dq, of_dk, of_dv, dp_off


def adamw_bound(
    w: np.ndarray,
    g: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    betas: tuple[float, float],
    eps: float,
    rate: float,
    correction: float,
    shrink: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bound of ``adamw``. Its numbers count as exact, and so does 1 - beta. Any shape -> of w, mean, square.

    All terms of the root are positive, so its six roundings are relative; where the square underflows, its root is off
    by that of what is lost.
    """
    new_mean, new_square, mean_off, square_off = _moments(g, mean, square, betas)
    root = np.sqrt(new_square) / correction + eps
    root_off = gamma(6) * root + math.sqrt(4 * TINY) / correction
    low = root - root_off
    step = rate * np.abs(new_mean) / root
    of_step = (rate * mean_off + gamma(2) * rate * np.abs(new_mean) + TINY) / low + step * (root / low - 1) + TINY
    kept = _size(w) * shrink
    return gamma(2) * kept + of_step + gamma(1) * (step + of_step) + TINY, mean_off, square_off


def adamw_averaged_bound(
    w: np.ndarray,
    g: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    betas: tuple[float, float],
    eps: float,
    rate: float,
    mean_correction: float,
    square_correction: float,
    of_variance: float,
    shrink: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bound of ``adamw_averaged``. Its numbers count as exact, and so does 1 - beta. Any shape -> of w, mean, square.

    The variance is a difference, so its error is absolute. An error of x in a sum changes its root by at most x over
    the root, and by at most the root of x.
    """
    new_mean, new_square, mean_off, square_off = _moments(g, mean, square, betas)
    direction = np.abs(new_mean) / mean_correction
    direction_off = mean_off / mean_correction + gamma(1) * (direction + mean_off / mean_correction) + TINY
    squared, whole = direction**2, new_square / square_correction
    squared_off = 2 * direction * direction_off + direction_off**2 + gamma(1) * (direction + direction_off) ** 2 + TINY
    whole_off = square_off / square_correction + gamma(1) * (whole + square_off / square_correction) + TINY
    variance = np.maximum(whole - squared, 0)
    variance_off = whole_off + squared_off + gamma(1) * (variance + whole_off + squared_off)
    summed = squared + of_variance * variance
    summed_off = squared_off + of_variance * variance_off + TINY
    summed_off += gamma(2) * (summed + summed_off)
    root = np.sqrt(summed)
    root_off = np.minimum(np.sqrt(summed_off), summed_off / np.maximum(root, TINY))
    root_off += gamma(2) * (root + eps + root_off)
    low = root + eps - root_off
    step = rate * direction / (root + eps)
    of_step = (rate * direction_off + gamma(2) * rate * (direction + direction_off) + TINY) / low
    of_step += step * ((root + eps) / low - 1) + TINY
    kept = _size(w) * shrink
    return gamma(2) * kept + of_step + gamma(1) * (step + of_step) + TINY, mean_off, square_off


def _moments(
    g: np.ndarray, mean: np.ndarray, square: np.ndarray, betas: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The means of gradients and of their squares after a gradient, in float64, and the bounds of both."""
    g, mean, square = (widen(x, np.float64) for x in (g, mean, square))
    new_mean, new_square = betas[0] * mean + (1 - betas[0]) * g, betas[1] * square + (1 - betas[1]) * g * g
    mean_off = gamma(3) * (betas[0] * np.abs(mean) + (1 - betas[0]) * np.abs(g)) + 2 * TINY
    return new_mean, new_square, mean_off, gamma(4) * new_square + 3 * TINY


def gram_bound(x: np.ndarray, base: np.ndarray, of_base: float, of_sum: float, chunk: int | None = None) -> np.ndarray:
    """Bound of ``of_base * base + of_sum * x x^T``; both factors count as exact. x [m, n], base [m, m] -> [m, m]."""
    n, kept = x.shape[1], abs(of_base) * _size(base)
    terms, lost = _size(x) @ _size(x).T, (n + 1) * TINY
    return gamma(2) * kept + abs(of_sum) * (gamma(depth(n, chunk) + 3) * terms + lost) + 3 * TINY


def newton_schulz_bound(s: np.ndarray, x: np.ndarray, of_x: float, chunk: int | None = None) -> np.ndarray:
    """Bound of ``of_x * x + s x``; the factor counts as exact. s [m, m], x [m, n] -> [m, n]."""
    terms, lost = _size(s) @ _size(x), (len(s) + 1) * TINY
    return gamma(2) * abs(of_x) * _size(x) + gamma(depth(len(s), chunk) + 2) * terms + lost + 2 * TINY


def _size(x: Leaf) -> np.ndarray:
    return np.abs(widen(x, np.float64))
