"""How good predictions are, and how sure that is: accuracy and macro-F1 with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A number measured on a sample, and the interval in which it would probably fall on another.

    Attributes
    ----------
    value : float
        On the sample itself.
    low, high : float
        A 95% interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def codes(names: Sequence[str | None], labels: Sequence[str]) -> np.ndarray:
    """Each name's place among the labels, -1 for what is none of them. -> [n], int64"""
    places = {label: i for i, label in enumerate(labels)}
    return np.array([-1 if name is None else places.get(name, -1) for name in names], np.int64)


def accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    """The share of predictions that are right. Both [n], codes."""
    return float((gold == predicted).mean())


def macro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """The mean of the labels' F1, each label counting alike, however rare.

    Parameters
    ----------
    gold, predicted : ndarray [n], int
        Codes. A prediction of -1 is no label: a miss for the row's own label, and a false alarm for none.

    Returns
    -------
    float
        Over the labels that are some row's own or predicted for some row, as scikit-learn has it.
    """
    n_labels = int(max(gold.max(), predicted.max())) + 1
    hits = np.bincount(gold[gold == predicted], minlength=n_labels)
    occurrences = np.bincount(gold, minlength=n_labels) + np.bincount(predicted[predicted >= 0], minlength=n_labels)
    there = occurrences > 0
    return float((2 * hits[there] / occurrences[there]).mean())  # F1 = 2 TP / (2 TP + FP + FN)


def estimate(statistic: Callable[[np.ndarray], float], n: int, *, seed: int = 0, n_resamples: int = 1000) -> Estimate:
    """A statistic of ``n`` rows with its percentile bootstrap interval (Efron 1979).

    Parameters
    ----------
    statistic : callable
        From the numbers of the rows to use, [n] of 0 to n - 1, to a number.
    n : int
        Rows: what was drawn independently of each other. Answers to one question in several trials are one row.
    seed : int
        Of the resamples, so that the interval is the same each time.
    n_resamples : int
        Samples of n rows drawn with replacement; the interval holds the middle 95% of their values.
    """
    stream = np.random.default_rng(seed)
    values = [statistic(stream.integers(0, n, n)) for _ in range(n_resamples)]
    low, high = np.quantile(values, [0.025, 0.975])
    return Estimate(statistic(np.arange(n)), float(low), float(high))
