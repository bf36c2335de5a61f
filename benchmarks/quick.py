"""The quick mode: every benchmark runs once, at small shapes, so that none can break unseen. Its figures mean nothing.

``REFGPT_BENCHMARKS=quick`` in the environment turns it on. (Standard library only: ``peers.install`` runs before there
is anything else.)
"""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

QUICK = os.environ.get("REFGPT_BENCHMARKS") == "quick"
#: GPT-J's shape but for these widths, beside which a vocabulary of 50400 tokens takes most of the time.
WIDTHS = {"d_model": 128, "d_ff": 512, "n_head": 2, "d_rotary": 64} if QUICK else {}


def sized(full: T, quick: T) -> T:
    """The first, in quick mode the second."""
    return quick if QUICK else full


def rounds(n: int) -> int:
    """How often something is measured: once in quick mode."""
    return sized(n, 1)
