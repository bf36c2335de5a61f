"""Cosines and sines of the rotary angles, the same bits on every machine.

Libraries differ in the last bit of powers, sines and cosines, between versions and CPUs, but sums and products of
floats are rounded in the same way everywhere. So the angles of one step come from decimal arithmetic, and those of the
other positions from rotating the earlier ones.
"""

from __future__ import annotations

from decimal import Decimal, localcontext
from functools import lru_cache

import numpy as np

from refgpt._common.float_state import default_float_state


@lru_cache(maxsize=8)
@default_float_state()
def rotary_tables(
    d_rotary: int, n_positions: int, base: float = 10000.0, halves: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Tables of ``refgpt.kernels.rotary``, for angles of position * base^(-2i / d_rotary); or of ``rotary_halves``.

    Returns
    -------
    cos, sin : ndarray [n_positions, d_rotary], float32
        Each cosine twice; each sine negated for the first dimension of its pair and plain for the second. The row of a
        position has the same bits however many positions there are. They are kept for the next call, and so read-only.
    """
    cos, sin = np.ones((1, d_rotary // 2)), np.zeros((1, d_rotary // 2))  # of position 0
    step_cos, step_sin = _one_step(d_rotary, base)
    while len(cos) < n_positions:  # positions n .. 2n - 1 are positions 0 .. n - 1, turned by n steps
        turned = cos * step_cos - sin * step_sin, sin * step_cos + cos * step_sin
        cos, sin = np.concatenate((cos, turned[0])), np.concatenate((sin, turned[1]))
        step_cos, step_sin = step_cos * step_cos - step_sin * step_sin, 2 * step_cos * step_sin
    cos, sin = cos[:n_positions].astype(np.float32), sin[:n_positions].astype(np.float32)
    if halves:
        tables = np.concatenate((cos, cos), axis=1), np.concatenate((-sin, sin), axis=1)
    else:
        tables = np.repeat(cos, 2, axis=1), np.stack((-sin, sin), axis=-1).reshape(n_positions, d_rotary)
    for table in tables:
        table.flags.writeable = False
    return tables


def _one_step(d_rotary: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine of base^(-2i / d_rotary), rounded once from 40 decimal digits. -> [d_rotary / 2] each"""
    with localcontext() as context:
        context.prec = 40
        rates = [(Decimal(base).ln() * -2 * i / d_rotary).exp() for i in range(d_rotary // 2)]  # 1 and below
        pairs = [(float(_series(rate, 0)), float(_series(rate, 1))) for rate in rates]
    cos, sin = np.array(pairs).reshape(-1, 2).T
    return cos, sin


def _series(x: Decimal, first: int) -> Decimal:
    """x^k / k! with alternating signs for k = first, first + 2, ..: the cosine of x from 0, the sine from 1."""
    term, total = x**first, Decimal(0)
    for k in range(first + 2, 40, 2):  # 1 / 40! is below 1e-47
        total += term
        term *= -x * x / (k * (k - 1))
    return total
