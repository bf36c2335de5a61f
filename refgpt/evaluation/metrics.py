"""Metrics of predictions: accuracy and macro-F1, with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from refgpt._common.arguments import collected, whole_number
from refgpt._common.errors import DataError
from refgpt._common.wording import shown

#: Resamples that an interval may be taken from: a thousand times what it needs.
MOST_RESAMPLES = 1_000_000

Metric = Callable[[np.ndarray, np.ndarray], float]
Sample = tuple[Callable[[np.ndarray], float], int]


@dataclass(frozen=True)
class Estimate:
    """A value measured on a sample, and its confidence interval.

    Attributes
    ----------
    value : float
        The value on the sample.
    low, high : float
        A 95% interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def codes(names: Sequence[str | None], labels: Sequence[str]) -> np.ndarray:
    """Each name's index among the labels; -1 for a name that is not a label. -> [n], int64"""
    known = collected("labels", labels, "a list of texts", DataError)
    places = {label: i for i, label in enumerate(known) if isinstance(label, str)}
    given = collected("names", names, "a list of texts", DataError)
    return np.array([places.get(name, -1) if isinstance(name, str) else -1 for name in given], np.int64)


def accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    """The share of predictions that are right. Both [n], codes."""
    gold, predicted = _both(gold, predicted)
    return float((gold == predicted).mean())


def macro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """The mean of the labels' F1 scores, with equal weights.

    Parameters
    ----------
    gold, predicted : ndarray [n], int
        Codes. A prediction of -1 is no label: a false negative for the row's label, and a false positive for none.

    Returns
    -------
    float
        Over the labels that occur in ``gold`` or ``predicted``, as in scikit-learn.
    """
    gold, predicted = _both(gold, predicted)
    said = np.concatenate([gold, predicted[predicted >= 0]])
    labels, occurrences = np.unique(said, return_counts=True)
    hits = np.bincount(np.searchsorted(labels, gold[gold == predicted]), minlength=len(labels))
    return float((2 * hits / occurrences).mean())  # F1 = 2 TP / (2 TP + FP + FN)


def _both(gold: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes of labels and of predictions, as many of either. -> [n] and [n], int64"""
    pair = _codes("gold", gold, 0), _codes("predicted", predicted, -1)
    if len(pair[0]) != len(pair[1]):
        raise DataError("must have as many codes as gold", where="predicted", got=len(pair[1]), wanted=len(pair[0]))
    return pair


def _codes(name: str, value: object, least: int) -> np.ndarray:
    """Codes, one or more, none of them below ``least``. -> [n], int64"""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, OverflowError):
        array = np.empty((0, 0))
    wanted = f"one or more whole numbers from {least}"
    if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
        raise DataError("are no codes", where=name, got=shown(value), wanted=wanted)
    if array.min() < least or array.max() > np.iinfo(np.int64).max:
        raise DataError("are no codes", where=name, got=f"{array.min()} to {array.max()}", wanted=wanted)
    return array.astype(np.int64)


def mean_over_trials(metric: Metric, gold: np.ndarray, predicted: Sequence[np.ndarray]) -> Sample:
    """A metric of predictions made in one or several trials, in the form that ``estimate`` takes.

    Parameters
    ----------
    metric : callable
        ``accuracy`` or ``macro_f1``.
    gold : ndarray [n], int
        Codes of the rows' own labels.
    predicted : sequence of ndarray [n], int
        Codes predicted in each trial. A row is resampled together with all its trials, because they are correlated.

    Raises
    ------
    DataError
        If there is no trial, or the codes cannot be used.
    """
    trials = [_both(gold, one)[1] for one in collected("predicted", predicted, "a list of arrays", DataError)]
    if not callable(metric) or not trials:
        raise DataError(
            "cannot be used",
            where="predicted" if callable(metric) else "metric",
            got=shown(predicted if callable(metric) else metric),
            wanted="one trial or more, and accuracy or macro_f1",
        )
    own = _codes("gold", gold, 0)

    def mean(rows: np.ndarray) -> float:
        return float(np.mean([metric(own[rows], trial[rows]) for trial in trials]))

    return mean, len(own)


def difference_of(before: Sample, after: Sample) -> Sample:
    """The change of a statistic between two measurements of the same rows, in the form that ``estimate`` takes.

    A row is resampled in both at once. What is hard or easy about it cancels, so that the interval is narrower than
    that of either statistic.

    Raises
    ------
    DataError
        If they are not of the same number of rows.
    """
    (one, n), (two, m) = _sample(before), _sample(after)
    if n != m:
        raise DataError("must be of as many rows as the first", where="after", got=m, wanted=n)
    return (lambda rows: two(rows) - one(rows)), n


def estimate(*samples: Sample, seed: int = 0, n_resamples: int = 1000) -> Estimate:
    """The mean of a statistic of one sample or several, with its percentile bootstrap interval (Efron 1979).

    Parameters
    ----------
    *samples : pair of callable and int
        A statistic and how many rows it is of: it takes numbers of rows, [n] of 0 to n - 1, and returns a number. Rows
        were drawn independently of each other, and are resampled within their sample.
    seed : int
        Seed of the resampling, so that the interval is reproducible.
    n_resamples : int
        Samples of n rows drawn with replacement; the interval holds the middle 95% of their values.

    Raises
    ------
    DataError
        If there is no sample, one is no such pair or has no rows, or a number cannot be used.
    """
    seed = whole_number("seed", seed, 0, None, DataError)
    n_resamples = whole_number("n_resamples", n_resamples, 1, MOST_RESAMPLES, DataError)
    if not samples:
        raise DataError("there is nothing to estimate from", where="samples", wanted="one or more")
    samples = tuple(_sample(one) for one in samples)
    stream = np.random.default_rng(seed)

    def resampled() -> float:
        return float(np.mean([statistic(stream.integers(0, n, n)) for statistic, n in samples]))

    low, high = np.quantile([resampled() for _ in range(n_resamples)], [0.025, 0.975])
    return Estimate(float(np.mean([statistic(np.arange(n)) for statistic, n in samples])), float(low), float(high))


def _sample(value: Sample) -> Sample:
    """A statistic and the number of its rows, once it is known that they can be used."""
    if not isinstance(value, (tuple, list)) or len(value) != 2 or not callable(value[0]):
        raise DataError(
            "cannot be used",
            where="samples",
            got=shown(value),
            wanted="a statistic and its number of rows, as mean_over_trials returns them",
        )
    return value[0], whole_number("number of rows", value[1], 1, None, DataError)
