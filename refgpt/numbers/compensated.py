"""Rounding to few bits in which weights that are rounded later make up for the errors of those before (GPTQ).

A row w of a matrix is rounded to q. What counts is not the error e = w - q itself but the error of the output for the
inputs x that occur: the mean of (e . x)^2 over them is e H e^T, where H is the mean of x x^T, the inputs' second
moments. With H = L L^T, L lower triangular,

    e H e^T  =  sum over k of  L_kk^2 (e_k + sum over j > k of e_j F_jk)^2,     F_jk = L_jk / L_kk.

So weights are rounded from the last input to the first. When the weight of input k is rounded, the errors e_j of all
j > k are known; w_k + sum e_j F_jk is rounded in place of w_k, and the term of k is as small as the nearest integer can
make it. If all inputs were uncorrelated, F would be 0, and every weight would be rounded by itself. This is GPTQ
(Frantar et al. 2023, https://arxiv.org/abs/2210.17323), written as Babai's nearest plane algorithm (Chen et al. 2025,
https://arxiv.org/abs/2507.18553), which needs no inverse.

The order of inputs is free, as long as the 32 of a block, which share a scale, stay together. Inputs with the largest
moments come last, so that they are rounded first, while all others can still make up for their errors. The scale of a
block is searched for as in ``refgpt.numbers.quantisation``, with each weight's squared error multiplied by L_kk^2.

All machines round each operation here in the same way, and sums have one order. The caller gives ``product(x, w)``,
x w^T, for products of large matrices: with the kernel's, results are the same bits on every machine.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from refgpt._common.float_state import default_float_state
from refgpt.numbers.panels import BLOCK, LANES, Panels, n_blocks, n_panels
from refgpt.numbers.quantisation import CANDIDATES, LARGEST_SCALE, LEAST_SCALE, STEPS, encoded

#: ``product(x, w)`` is x w^T. x [t, n], w [m, n] -> [t, m]
Product = Callable[[np.ndarray, np.ndarray], np.ndarray]

#: Added to each diagonal element of the moments, as a share of their mean: limits how much other weights change to make
#: up for an error where there are few inputs to learn from.
DAMPING = 0.01

#: Rows for which scales are searched together, so that they stay in a cache.
ROWS = 1024
#: Largest moment: damping can still raise it without overflow.
LARGEST_MOMENT = 1e30


class Moments:
    """The second moments of the inputs of a matrix, from which the error of its output follows.

    Parameters
    ----------
    n_in : int
        Width of the inputs.
    product : callable
        ``product(x, w)`` is x w^T.
    """

    #: Rows of the moments that are computed together, up to the diagonal: the other half is the mirror image.
    ROWS = 2048

    def __init__(self, n_in: int, product: Product) -> None:
        self.n_in, self._product = n_in, product
        n = n_blocks(n_in) * BLOCK
        self.sums = np.zeros((n, n), np.float32)  # on and below the diagonal; inputs past n_in are 0

    def add(self, x: np.ndarray) -> None:
        """Add inputs x [t, n_in]."""
        turned = np.ascontiguousarray(x.T)  # [n_in, t]
        for start in range(0, self.n_in, self.ROWS):
            stop = min(start + self.ROWS, self.n_in)
            self.sums[start:stop, :stop] += self._product(turned[start:stop], turned[:stop])

    @property
    def are_usable(self) -> bool:
        """Whether no input was NaN, or too large for its square in float32."""
        return bool((self.sums.diagonal() <= LARGEST_MOMENT).all())


class Feedback:
    """What the errors of later inputs add to an earlier weight, and the cost of each weight's error.

    If the damped moments have no Cholesky factor in float32, they are damped ten times as much, until they have one.

    Attributes
    ----------
    order : ndarray [n]
        The inputs in ascending order of importance; those of a block of 32 are neighbours.
    factors : ndarray [n, n]
        F below the diagonal, in the order ``order``; n is a multiple of 32.
    costs : ndarray [n]
        L_kk^2.
    """

    @default_float_state()
    def __init__(self, moments: Moments, product: Product, damping: float = DAMPING) -> None:
        sums = moments.sums
        assert moments.are_usable
        n, diagonal = len(sums), sums.diagonal().copy()
        mean = np.float32(math.fsum(diagonal.tolist()) / n)
        damp = mean * np.float32(damping) if mean > 0 else np.float32(1)
        self.order = _order(diagonal)
        for start in range(0, n, BLOCK):  # the mirror image
            at = slice(start, start + BLOCK)
            sums[at, at] = np.tril(sums[at, at]) + np.tril(sums[at, at], -1).T
            sums[at, start + BLOCK :] = sums[start + BLOCK :, at].T
        while True:
            factors = np.empty_like(sums)
            for start in range(0, n, BLOCK):
                factors[start : start + BLOCK] = sums[self.order[start : start + BLOCK]][:, self.order]
            factors[np.diag_indices(n)] += damp
            with np.errstate(all="ignore"):
                _factor(factors, 0, n, product)
            roots = factors.diagonal().copy()
            if np.isfinite(roots).all() and (roots > 0).all():
                break
            damp *= np.float32(10)
        factors /= roots
        self.factors, self.costs = factors, roots * roots


def _order(diagonal: np.ndarray) -> np.ndarray:
    """Sort inputs by their moments, ascending: blocks by their sums, then the 32 of each. The sort is stable."""
    within = np.argsort(diagonal.reshape(-1, BLOCK), axis=1, kind="stable")  # [blocks, 32]
    sums = np.zeros(len(within), np.float64)
    for one in diagonal.reshape(-1, BLOCK).T:
        sums += one
    blocks = np.argsort(sums, kind="stable")
    return (within + np.arange(len(within))[:, None] * BLOCK)[blocks].reshape(-1)


def _factor(a: np.ndarray, start: int, stop: int, product: Product) -> None:
    """Replace columns ``start`` to ``stop`` of a symmetric matrix [n, n] by those of its Cholesky factor.

    The products of columns before ``start`` have been subtracted already. Without a factor in float32, the diagonal
    has NaN.
    """
    if stop - start <= BLOCK:
        columns = np.ascontiguousarray(a[start:, start:stop].T)  # [32, rows from start]
        for k, column in enumerate(columns):
            column[:k] = 0
            column[k:] /= np.sqrt(column[k])
            for j in range(k + 1, len(columns)):
                columns[j, j:] -= column[j:] * column[j]
        a[start:, start:stop] = columns.T
        return
    middle = start + -(-(stop - start) // (2 * BLOCK)) * BLOCK
    _factor(a, start, middle, product)
    left = np.ascontiguousarray(a[middle:, start:middle])
    a[middle:, middle:stop] -= product(left, left[: stop - middle])
    _factor(a, middle, stop, product)


@default_float_state()
def quantise_compensated(
    w: np.ndarray, feedback: Feedback, kind: str, product: Product, out: Panels, threads: int = 1
) -> None:
    """Quantise rows so that the error of their outputs is small for inputs with the moments of ``feedback``.

    Parameters
    ----------
    w : ndarray [n_out, n_in]
        Finite weights in float32 that ``refgpt.numbers.quantisation.check_range`` accepts.
    feedback : Feedback
    kind : "q8", "q4" or "q3"
    product : callable
    out : Panels
        Of the same shape and kind.
    threads : int
        How many threads search for scales; results do not depend on it.
    """
    (n_out, n_in), rows, n = w.shape, n_panels(w.shape[0]) * LANES, len(feedback.order)
    whole = np.zeros((rows, n), np.float32)
    whole[:n_out, :n_in] = w
    wanted = whole[:, feedback.order]  # [rows, n]
    shifted, errors = wanted.copy(), np.zeros_like(wanted)
    integers = np.zeros((n // BLOCK, BLOCK, rows), np.int8)
    scales = np.zeros((n // BLOCK, rows), np.float32)

    run: Callable[..., Iterable[None]] = map

    def round_blocks(start: int, stop: int) -> None:
        """Round the blocks from ``stop`` down to ``start``; the errors of later blocks have been added already."""
        if stop - start == 1:
            at = slice(start * BLOCK, stop * BLOCK)
            factors, costs = feedback.factors[at, at], feedback.costs[at]

            def round_rows(first: int) -> None:
                some = slice(first, first + ROWS)
                targets = np.ascontiguousarray(shifted[some, at].T), np.ascontiguousarray(wanted[some, at].T)
                scales[start, some], found = _round_block(*targets, factors, costs, kind)  # of [32, rows]
                errors[some, at] = (targets[1] - found * scales[start, some]).T
                integers[start, :, some] = found

            deque(run(round_rows, range(0, rows, ROWS)), maxlen=0)
            return
        middle = (start + stop) // 2
        round_blocks(middle, stop)
        later, earlier = slice(middle * BLOCK, stop * BLOCK), slice(start * BLOCK, middle * BLOCK)
        factors = np.ascontiguousarray(feedback.factors[later, earlier].T)
        shifted[:, earlier] += product(np.ascontiguousarray(errors[:, later]), factors)
        round_blocks(start, middle)

    if threads > 1 and rows > ROWS:
        with ThreadPoolExecutor(threads) as pool:
            run = pool.map
            round_blocks(0, n // BLOCK)
    else:
        round_blocks(0, n // BLOCK)
    by_input = np.empty((n, rows), np.int8)
    by_input[feedback.order] = integers.reshape(n, rows)
    by_block = np.empty((n // BLOCK, rows), np.float32)
    by_block[feedback.order[::BLOCK] // BLOCK] = scales
    turned = by_input.reshape(n // BLOCK, BLOCK, rows).transpose(1, 2, 0)  # [32, rows, blocks]
    out.data[...] = encoded(turned, by_block.T.astype(np.float16), kind)


def _round_block(
    shifted: np.ndarray, wanted: np.ndarray, factors: np.ndarray, costs: np.ndarray, kind: str
) -> tuple[np.ndarray, np.ndarray]:
    """The best scale of each row for one block, and its integers.

    With e_j = w_j - s n_j for a scale s and integers n, the term of weight k is the difference of two sums over the
    later weights j of the block: the shifted w_k + sum w_j F_jk, which no scale changes, and s (n_k + sum n_j F_jk).

    Parameters
    ----------
    shifted, wanted : ndarray [32, rows]
        The weights with and without what makes up for the errors of later blocks.
    factors : ndarray [32, 32]
    costs : ndarray [32]

    Returns
    -------
    scales : ndarray [rows]
    integers : ndarray [32, rows]
    """
    targets = shifted.copy()
    for k in range(1, BLOCK):
        targets[:k] += factors[k, :k, None] * wanted[k]
    extreme = np.abs(shifted).max(0)
    sign = np.where(shifted.max(0) < extreme, np.float32(-1), np.float32(1))
    best_scale, best = np.zeros_like(extreme), np.zeros_like(shifted)
    best_error = np.full_like(extreme, np.inf)
    for ratio, top in CANDIDATES[kind]:
        side = sign if top == STEPS[kind] // 2 else -sign  # the integers reach one step further to the negative side
        scale = np.maximum(extreme / np.float32(ratio), LEAST_SCALE) * side
        scale = _fitted(shifted, _integers(shifted * (np.float32(1) / scale), kind), costs, scale)
        found, sums = _nearest(targets, factors, scale, kind)
        error = _sum(costs, np.square(targets - sums * scale))
        better = error < best_error
        best_scale, best_error = np.where(better, scale, best_scale), np.where(better, error, best_error)
        best = np.where(better, found, best)
    return np.where((best == 0).all(0), np.float32(0), best_scale), best


def _nearest(targets: np.ndarray, factors: np.ndarray, scale: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Integers n for a scale of each row, from the last input to the first, and n_k + sum n_j F_jk. -> [32, rows]"""
    scaled, integers, sums = targets * (np.float32(1) / scale), np.empty_like(targets), np.zeros_like(targets)
    for k in reversed(range(BLOCK)):
        integers[k] = _integers(scaled[k] - sums[k], kind)
        sums[k] += integers[k]
        sums[:k] += factors[k, :k, None] * integers[k]
    return integers, sums


def _integers(scaled: np.ndarray, kind: str) -> np.ndarray:
    """The nearest integers that ``kind`` can hold, ties to even; as floats."""
    half = np.float32(STEPS[kind] // 2 + 1)
    return np.minimum(np.maximum(np.rint(scaled), -half), half - 1)


def _fitted(shifted: np.ndarray, integers: np.ndarray, costs: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The float16 scale of each row with the least weighted squared error for these integers. -> [rows]"""
    product, square = _sum(costs, shifted * integers), _sum(costs, np.square(integers))
    fitted = product / np.where(square > 0, square, np.float32(1))
    size = np.minimum(
        np.maximum(np.where(fitted * scale > 0, np.abs(fitted), np.abs(scale)), LEAST_SCALE), LARGEST_SCALE
    )
    return np.copysign(size, scale).astype(np.float16).astype(np.float32)


def _sum(costs: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """The sum over the 32 inputs of a block, one after the other. terms [32, rows] -> [rows]"""
    total = np.zeros_like(terms[0])
    for cost, term in zip(costs, terms, strict=True):
        total += cost * term
    return total
