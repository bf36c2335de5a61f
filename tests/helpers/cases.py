"""What an oracle makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from refgpt.kernels import Kernel
from refgpt.numbers.leaves import Leaf, widen
from tests.helpers.buffers import Output

Rng = np.random.Generator
MOST_WORKERS = 8


@dataclass(frozen=True)
class Case:
    """One set of inputs.

    Attributes
    ----------
    run : callable
        ``run(kernel, rows)`` calls the kernel on these rows of the inputs (a slice) and returns its outputs.
    want : tuple of ndarray
        What each output should hold, in float64; rows first. NaN only where the header says NaN.
    bound : tuple of ndarray
        How far each may be away.
    """

    run: Callable[[Kernel, slice], tuple[Output, ...]]
    want: tuple[np.ndarray, ...]
    bound: tuple[np.ndarray, ...]


def float64(x: Leaf) -> np.ndarray:
    return widen(x, np.float64)
