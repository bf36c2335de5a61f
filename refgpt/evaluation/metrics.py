"""How good predictions are, and how sure that is: accuracy and macro-F1 with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Metric = Callable[[np.ndarray, np.ndarray], float]
Sample = tuple[Callable[[np.ndarray], float], int]


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


def mean_over_trials(metric: Metric, gold: np.ndarray, predicted: Sequence[np.ndarray]) -> Sample:
    """A metric of predictions made in one trial or several, as ``estimate`` takes it.

    Parameters
    ----------
    metric : callable
        ``accuracy`` or ``macro_f1``.
    gold : ndarray [n], int
        Codes of the rows' own labels.
    predicted : sequence of ndarray [n], int
        Codes of what each trial predicted. A row is resampled with all its trials, for they say much the same.
    """

    def mean(rows: np.ndarray) -> float:
        return float(np.mean([metric(gold[rows], trial[rows]) for trial in predicted]))

    return mean, len(gold)


def estimate(*samples: Sample, seed: int = 0, n_resamples: int = 1000) -> Estimate:
    """The mean of a statistic of one sample or several, with its percentile bootstrap interval (Efron 1979).

    Parameters
    ----------
    *samples : pair of callable and int
        A statistic and how many rows it is of: it takes numbers of rows, [n] of 0 to n - 1, and returns a number. Rows
        were drawn independently of each other, and are resampled within their sample.
    seed : int
        Of the resamples, so that the interval is the same each time.
    n_resamples : int
        Samples of n rows drawn with replacement; the interval holds the middle 95% of their values.
    """
    stream = np.random.default_rng(seed)

    def resampled() -> float:
        return float(np.mean([statistic(stream.integers(0, n, n)) for statistic, n in samples]))

    low, high = np.quantile([resampled() for _ in range(n_resamples)], [0.025, 0.975])
    return Estimate(float(np.mean([statistic(np.arange(n)) for statistic, n in samples])), float(low), float(high))
