"""Errors by activation and layer, from a comparison."""

from __future__ import annotations

import re

import numpy as np

from refgpt._common.arguments import one_of
from refgpt._common.errors import RefgptError
from refgpt.plotting.checks import instance
from refgpt.tracing import Comparison

#: Fields of a ``Difference`` that are errors, and their labels on an axis.
ERRORS = {"relative": "relative error (rms)", "rms": "error (rms)", "max_abs": "largest error"}


def error_table(name: str, comparison: Comparison, measure: str) -> tuple[list[str], np.ndarray]:
    """The compared activations of the blocks, in order, and their errors. -> names [n], [n, n_layer]

    Activations that were not compared are NaN.

    Raises
    ------
    RefgptError
        If there is no such measure, or no block was compared.
    """
    instance(name, comparison, Comparison, "compare")
    one_of("measure", measure, tuple(ERRORS), RefgptError)
    places = [(re.fullmatch(r"blocks\.(\d+)\.(\w+)", tap.name), getattr(tap, measure)) for tap in comparison.taps]
    found = {(match[2], int(match[1])): error for match, error in places if match}
    if not found:
        raise RefgptError(
            "no activation of a block was compared",
            where=name,
            got=", ".join(tap.name for tap in comparison.taps) or "no activation",
            fix="let refgpt.tracing.compare take names='blocks.*', or all",
        )
    parts = list(dict.fromkeys(part for part, _ in found))
    n_layer = 1 + max(layer for _, layer in found)
    return parts, np.array([[found.get((part, i), np.nan) for i in range(n_layer)] for part in parts])
