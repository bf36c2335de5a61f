"""Learning rates of all steps of a training: warm-up, then a curve down."""

from __future__ import annotations

import math

from refgpt._common.arguments import number, one_of, whole_number
from refgpt._common.errors import RefgptError

SHAPES = ("cosine", "linear", "constant")
#: Far above what a training has; the list takes 32 bytes a step.
MOST_STEPS = 10_000_000


def schedule(shape: str, peak: float, warmup: int, total: int, floor: float = 0.0) -> list[float]:
    """The learning rate of each step.

    Parameters
    ----------
    shape : "cosine", "linear" or "constant"
        How it goes down after the warm-up: along half a cosine, along a line, or not at all.
    peak : float
        The largest.
    warmup : int
        So many steps lead up to it: step ``i`` of them has ``peak (i + 1) / warmup``. Step ``warmup`` has the peak too.
    total : int
        Of steps, the warm-up's included.
    floor : float
        What the last step has, as a share of the peak.

    Returns
    -------
    list of float

    Raises
    ------
    RefgptError
        If an argument cannot be used.
    """
    one_of("schedule", shape, SHAPES, RefgptError)
    peak = number("peak", peak, 0, None, RefgptError)
    floor = number("floor", floor, 0, 1, RefgptError)
    total = whole_number("total", total, 1, MOST_STEPS, RefgptError)
    warmup = whole_number("warmup", warmup, 0, total, RefgptError)
    n_down = total - 1 - warmup  # steps from the peak to the last

    def rate(i: int) -> float:
        if i < warmup:
            return peak * (i + 1) / warmup
        done = (i - warmup) / n_down if n_down else 0.0  # 0 at the peak, 1 at the last step
        left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}[shape]
        return peak * (floor + (1 - floor) * left)

    return [rate(i) for i in range(total)]
