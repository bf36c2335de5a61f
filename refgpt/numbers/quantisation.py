"""Quantisation to 8, 4 and 3 bits per weight, operation by operation.

A block of 32 inputs shares one scale in each row, and this scale is searched for. A candidate scale is the block's
extreme value divided by some ratio; with it, the weights are rounded to integers, the scale is fitted to those integers
by least squares and rounded to float16. The candidate with the least squared error is used, the first of equals. 4 bits
hold -8 .. 7, and 3 bits -4 .. 3, so one side reaches one step further than the other: if that should be the positive
side, scale and integers are negated.

Each line here is float32 arithmetic that all machines round in the same way (``+ - * /``, comparisons, rounding to
nearest even), and sums run over a block's inputs in ascending order from 0. The kernels ``quantise_q8``,
``quantise_q4`` and ``quantise_q3`` do the same operations on 16 rows at a time and return the same bits.
"""

from __future__ import annotations

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.float_state import default_float_state
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.leaves import widen
from refgpt.numbers.panels import BITS, BLOCK, BLOCK_BYTES, LANES, Panels, n_blocks, n_panels

#: For each kind, the candidates' ratios, and the largest integer on the extreme's side. Each was chosen to lower the
#: error most when added to those before it, on Gaussian, heavy-tailed, uniform and trained weights. The last one for 8
#: bits is for blocks so small that float16 has few scales for them.
CANDIDATES = {
    "q8": ((128, 128), (127, 127), (126, 127), (125, 127), (124, 127), (123, 127), (122, 127), (121, 127), (84, 127)),
    "q4": ((8, 8), (7.25, 8), (8.5, 8), (7.75, 8), (7, 7), (9, 8), (8.25, 8), (6.25, 7)),
    "q3": ((4, 4), (4.625, 4), (3.25, 4), (3.75, 4), (5.125, 4), (4.25, 4), (4, 3)),
}
#: Number of steps between the smallest and the largest integer.
STEPS = {kind: (1 << bits) - 1 for kind, bits in BITS.items()}
LEAST_SCALE, LARGEST_SCALE = np.float32(2**-24), np.float32(65504)  # smallest and largest positive float16
#: The largest magnitude, of either sign, that the largest float16 scale can represent.
LARGEST_WEIGHT = {kind: 65504.0 * (steps // 2) for kind, steps in STEPS.items()}


def check_range(where: str, rows: np.ndarray, kind: str) -> None:
    """Refuse weights that no scale can represent.

    Parameters
    ----------
    where : str
        Their place, for the error.
    rows : ndarray
        Finite weights; float16 weights are never too large.

    Raises
    ------
    CheckpointError
    """
    if rows.dtype == np.float16 or not rows.size:
        return
    wide = widen(rows) if rows.dtype == BFLOAT16 else rows
    largest = max(float(wide.max()), -float(wide.min()))
    if largest > LARGEST_WEIGHT[kind]:
        raise CheckpointError(
            f"holds numbers that {kind} cannot",
            where=where,
            got=f"{largest:g}",
            wanted=f"at most {LARGEST_WEIGHT[kind]:g}",
            fix="load with dtype='f32' (--dtype f32)",
        )


@default_float_state()
def quantise(w: np.ndarray, kind: str, out: Panels | None = None) -> Panels:
    """Quantise a matrix to 8, 4 or 3 bits.

    Parameters
    ----------
    w : ndarray [n_out, n_in]
        Finite weights in any stored dtype; float64 is rounded to float32 first.
    kind : "q8", "q4" or "q3"
    out : Panels, optional
        Destination of the same shape and kind; by default new panels. Its ``place`` is named in errors.

    Returns
    -------
    Panels

    Raises
    ------
    CheckpointError
        If a weight is larger than ``LARGEST_WEIGHT``.
    """
    panels = Panels.zeros(kind, *w.shape) if out is None else out
    check_range(panels.place, w, kind)
    (n_out, n_in), rows, blocks = w.shape, n_panels(w.shape[0]) * LANES, n_blocks(w.shape[1])
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:n_out, :n_in] = widen(w)
    x = np.ascontiguousarray(padded.reshape(rows, blocks, BLOCK).transpose(2, 0, 1))  # [32, rows, blocks]
    up, down = x.max(0, initial=0), (-x).max(0, initial=0)
    sign = np.where(up < down, np.float32(-1), np.float32(1))
    y = x * sign  # now the extreme of each block is positive
    scale, top = _search(y, np.maximum(up, down), kind)
    integers = _integers(y, scale, top, kind)
    half_way = np.float32(STEPS[kind] // 2 + 1)
    side = np.where(top == half_way, -sign, sign)
    scale = np.where(_sum(integers * integers) < 1, np.float32(0), scale * side)  # a block of zeros has scale 0
    integers *= np.where(top == half_way, np.float32(-1), np.float32(1))
    panels.data[...] = encoded(integers.astype(np.int8), scale.astype(np.float16), kind)
    return panels


def store(rows: np.ndarray, out: Panels) -> None:
    """Quantise rows into panels of 8, 4 or 3 bits: a ``Fill`` of ``refgpt.numbers.packing``."""
    quantise(rows, out.kind, out)


def _search(y: np.ndarray, extreme: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The best scale for each block of y [32, ...], and the largest integer for it."""
    best_scale, best_top = np.zeros_like(extreme), np.zeros_like(extreme)
    best_error = np.full_like(extreme, 2.0**127)
    for ratio, most in CANDIDATES[kind]:
        top = np.float32(most)
        scale = np.maximum(extreme / np.float32(ratio), LEAST_SCALE)
        integers = _integers(y, scale, top, kind)
        fitted = _sum(y * integers) / np.maximum(_sum(integers * integers), np.float32(1))
        scale = np.minimum(np.maximum(fitted, LEAST_SCALE), LARGEST_SCALE)
        scale = scale.astype(np.float16).astype(np.float32)
        off = y - _integers(y, scale, top, kind) * scale
        error = _sum(off * off)
        better = error < best_error
        best_scale, best_top = np.where(better, scale, best_scale), np.where(better, top, best_top)
        best_error = np.where(better, error, best_error)
    return best_scale, best_top


def _integers(y: np.ndarray, scale: np.ndarray, top: np.ndarray | np.float32, kind: str) -> np.ndarray:
    """y / scale rounded to the nearest integer, ties to even, among the ``STEPS`` + 1 integers up to ``top``; as
    floats."""
    nearest = np.rint(y * (np.float32(1) / scale))
    return np.minimum(np.maximum(nearest, top - np.float32(STEPS[kind])), top)


def _sum(terms: np.ndarray) -> np.ndarray:
    """Sum over the 32 inputs of a block, one after the other."""
    total = np.zeros(terms.shape[1:], np.float32)
    for term in terms:
        total += term
    return total


def encoded(integers: np.ndarray, scales: np.ndarray, kind: str) -> np.ndarray:
    """Encode integers [32, rows, blocks] and scales [rows, blocks] as ``Panels.data``."""
    _, rows, blocks = integers.shape
    panels = rows // LANES
    quads = integers.reshape(8, 4, panels, LANES, blocks).transpose(2, 4, 0, 3, 1)  # [p, b, quad, lane, 4]
    if kind != "q8":
        bits = BITS[kind]
        both = (quads + np.int8(1 << bits - 1)).view(np.uint8).reshape(panels, blocks, 4, 2, LANES, 4)
        quads = both[:, :, :, 0] | both[:, :, :, 1] << bits  # [p, b, step, lane, 4]
    if kind == "q3":  # step 3 lies in the free bits of the others
        steps, last = quads[:, :, :3], quads[:, :, 3]
        quads = steps | np.stack([(last >> 2 * step & 3) << 6 for step in range(3)], axis=2)
    lanes = np.ascontiguousarray(scales.reshape(panels, LANES, blocks).transpose(0, 2, 1))  # [p, b, lane]
    n_bytes = BLOCK_BYTES[kind] - LANES * lanes.itemsize
    numbers = np.ascontiguousarray(quads).view(np.uint8).reshape(panels, blocks, n_bytes)
    return np.concatenate((numbers, lanes.view(np.uint8)), axis=-1)
