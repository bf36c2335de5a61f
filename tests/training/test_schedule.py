"""Learning rates of a whole training."""

from __future__ import annotations

import math

import pytest

from refgpt._common.errors import RefgptError
from refgpt.training import schedule


def test_a_cosine_after_a_warm_up():
    rates = schedule("cosine", 2e-3, 4, 11, floor=0.1)
    assert len(rates) == 11
    assert rates[:4] == [2e-3 * (i + 1) / 4 for i in range(4)]
    for i in range(4, 11):
        assert rates[i] == pytest.approx(2e-3 * (0.1 + 0.9 * (1 + math.cos(math.pi * (i - 4) / 6)) / 2), rel=1e-15)
    assert rates[4] == 2e-3 and rates[-1] == pytest.approx(2e-4, rel=1e-15)


def test_lines_and_constants():
    assert schedule("linear", 1.0, 0, 5) == [1, 0.75, 0.5, 0.25, 0]
    assert schedule("linear", 1.0, 1, 4, 0.5) == [1, 1, 0.75, 0.5]
    assert schedule("constant", 3e-4, 2, 4, 0.5) == [1.5e-4, 3e-4, 3e-4, 3e-4]


@pytest.mark.parametrize("shape", ["cosine", "linear", "constant"])
def test_short_trainings_have_no_gap(shape):
    assert schedule(shape, 1.0, 0, 1) == [1]
    assert schedule(shape, 1.0, 2, 2) == [0.5, 1]
    assert schedule(shape, 1.0, 1, 2) == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("square", 1, 0, 5), "schedule"),
        (("cosine", math.nan, 0, 5), "peak"),
        (("cosine", -1, 0, 5), "peak"),
        (("cosine", 1, 6, 5), "warmup"),
        (("cosine", 1, 0, 0), "total"),
        (("cosine", 1, 0, 10**12), "total"),
        (("cosine", 1, 0, 5, 1.5), "floor"),
        (("cosine", "1", 0, 5), "peak"),
    ],
)
def test_what_makes_no_sense_is_named(arguments, fault):
    with pytest.raises(RefgptError, match=f"^{fault}: "):
        schedule(*arguments)
