"""What the runner runs: a data set with a protocol, as requests, records and metrics."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refgpt._common.errors import DataError
from refgpt._common.wording import shown
from refgpt.evaluation.answering import Answer, Request
from refgpt.evaluation.metrics import Estimate, Sample, difference_of, estimate
from refgpt.generation.sequence import Generates
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

Record = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """A metric of records: a ratio of two sums, and what is made of it.

    Attributes
    ----------
    name : str
    numerator, denominator : str
        The records' values that are summed; "" counts the records.
    of : callable
        From the ratio to the metric.
    percent : bool
        Whether it is a share, which is printed in percent.
    higher_is_better : bool
    """

    name: str
    numerator: str
    denominator: str = ""
    of: Callable[[float], float] = float
    percent: bool = True
    higher_is_better: bool = True

    def sample(self, records: Sequence[Mapping[str, Any]]) -> Sample:
        """The metric in the form that ``estimate`` takes: of records that are resampled."""
        above = np.array([one[self.numerator] for one in records], np.float64)
        below = np.array([one[self.denominator] if self.denominator else 1 for one in records], np.float64)

        def value(rows: np.ndarray) -> float:
            return self.of(float(above[rows].sum() / below[rows].sum()))

        return value, len(records)


def perplexity_of(loglikelihood: float) -> float:
    """Perplexity, from the mean log-likelihood; infinite where it overflows."""
    return math.exp(-loglikelihood) if loglikelihood > -700 else math.inf


class Measure(ABC):
    """A data set with a protocol.

    Attributes
    ----------
    name : str
        What it is called in results and in the table of published figures.
    places : list of str
        Where each item is in the data, for messages.
    """

    name: str
    places: list[str]
    metrics: tuple[Metric, ...] = ()

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What distinguishes it from other measurements, as JSON: the data, the protocol, the settings."""

    @abstractmethod
    def requests(self, config: AnyConfig, tokenizer: Tokenizer | None) -> list[list[Request]]:
        """The requests of each item. Raises a RefgptError that names the item if one cannot be asked."""

    @abstractmethod
    def record(self, item: int, answered: Sequence[Answer], model: Generates) -> Record:
        """What is kept of an item's answers, as JSON."""

    def results(self, records: Sequence[Record]) -> dict[str, Estimate]:
        """The metrics of all records, each with its interval."""
        return {metric.name: estimate(metric.sample(records)) for metric in self.metrics}

    def differences(self, before: Sequence[Record], after: Sequence[Record]) -> dict[str, Estimate]:
        """By how much each metric changed between two runs over the same items.

        Items are resampled in pairs, so that the interval is that of the change, not of the items.
        """
        found = {}
        for metric in self.metrics:
            found[metric.name] = estimate(difference_of(metric.sample(before), metric.sample(after)))
        return found

    def check(self, record: Mapping[str, Any]) -> None:
        """Refuse a record from a file that lacks what the metrics read: a DataError."""
        for key in {key for metric in self.metrics for key in (metric.numerator, metric.denominator) if key}:
            value = record.get(key)
            if not isinstance(value, (int, float)):
                raise DataError(
                    "a record lacks a number",
                    where=f"{self.name}, item {record.get('item')}",
                    got=shown(value),
                    wanted=key,
                )

    def is_right(self, record: Mapping[str, Any]) -> bool | None:
        """Whether an item was answered rightly; None where there is no right and wrong."""
        return bool(record["acc"]) if "acc" in record else None
