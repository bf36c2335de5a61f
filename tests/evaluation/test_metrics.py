"""Metrics against values computed by hand, and intervals against what they promise."""

import numpy as np
import pytest

from refgpt.evaluation import Estimate, accuracy, codes, estimate, macro_f1, mean_over_trials

A, B, C = 0, 1, 2


def test_codes():
    assert codes(["b", "a", "x", None, "b"], ["a", "b"]).tolist() == [1, 0, -1, -1, 1]
    assert codes([], ["a"]).dtype == np.int64


@pytest.mark.parametrize(
    "gold, predicted, right, f1",
    [
        ([A, A, B, B], [A, A, B, B], 1, 1),
        ([A, A, B, B], [B, B, A, A], 0, 0),
        ([A, A, A, B], [A, A, A, A], 3 / 4, (6 / 7 + 0) / 2),  # a: TP 3, FP 1, FN 0; b: nothing right
        ([A, A, B, B, C], [A, B, B, B, A], 3 / 5, (1 / 2 + 4 / 5 + 0) / 3),
        ([A, B], [A, C], 1 / 2, (1 + 0 + 0) / 3),  # c is nobody's, but was predicted
        ([A, A, B], [A, -1, B], 2 / 3, (2 / 3 + 1) / 2),  # no label: a miss, not a label of its own
        ([A, B], [-1, -1], 0, 0),
        ([C, C], [C, C], 1, 1),  # labels that occur nowhere do not count
        ([B], [-1], 0, 0),
    ],
)
def test_by_hand(gold, predicted, right, f1):
    assert accuracy(np.array(gold), np.array(predicted)) == pytest.approx(right)
    assert macro_f1(np.array(gold), np.array(predicted)) == pytest.approx(f1)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    """95% of the time, less what a percentile interval of 60 rows lacks; of 200 samples, within three deviations."""
    stream = np.random.default_rng(4)
    covered = 0
    for seed in range(200):
        hits = stream.random(60) < 0.7
        found = estimate((lambda rows, hits=hits: hits[rows].mean(), 60), seed=seed, n_resamples=300)
        assert found.low <= found.value <= found.high and found.value == hits.mean()
        covered += found.low <= 0.7 <= found.high
    assert 0.93 * 200 - 3 * 3.6 < covered < 0.95 * 200 + 3 * 3.1


def test_an_interval_narrows_with_the_root_of_the_rows():
    widths = {}
    for n in (100, 1600):
        hits = np.arange(n) % 2
        found = estimate((lambda rows, hits=hits: hits[rows].mean(), n))
        widths[n] = found.high - found.low
    assert widths[100] == pytest.approx(2 * 1.96 * 0.5 / 10, rel=0.15)
    assert widths[100] / widths[1600] == pytest.approx(4, rel=0.15)


def test_an_interval_is_the_same_each_time_and_another_with_another_seed():
    values = np.random.default_rng(1).random(30)
    one, two, other = (estimate((lambda rows: values[rows].mean(), 30), seed=seed) for seed in (3, 3, 4))
    assert one == two and one != other


def test_rows_of_a_single_value_leave_no_doubt():
    assert estimate((lambda rows: 1.0, 5)) == Estimate(1.0, 1.0, 1.0)


def test_a_mean_over_samples_counts_each_alike_and_resamples_each_by_itself():
    small, large = np.array([1.0, 1.0]), np.arange(400) % 2
    found = estimate((lambda rows: small[rows].mean(), 2), (lambda rows: large[rows].mean(), 400))
    assert found.value == pytest.approx((1 + 0.5) / 2)
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 20 / 2, rel=0.15)


def test_trials_of_a_row_are_one_observation():
    """Four equal trials make an interval no narrower than one."""
    gold, once = np.zeros(50, int), np.arange(50) % 2
    one, four = (estimate(mean_over_trials(accuracy, gold, [once] * n)) for n in (1, 4))
    assert one == four
    mixed = estimate(mean_over_trials(accuracy, gold, [gold, 1 - gold]))
    assert mixed == Estimate(0.5, 0.5, 0.5)
    assert estimate(mean_over_trials(macro_f1, gold, [gold, gold])).value == 1


def test_how_it_is_written():
    assert str(Estimate(0.8125, 0.7, 0.9)) == "0.812 [0.700, 0.900]"
