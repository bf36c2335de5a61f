"""Runs a measurement: asks what is still to be asked, and keeps each record as it is made."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refgpt._common.errors import DataError
from refgpt._common.record_file import RecordFile
from refgpt._common.wording import shown
from refgpt.evaluation.answering import Answer, Request, answers
from refgpt.evaluation.measures import Measure, Record
from refgpt.evaluation.metrics import Estimate
from refgpt.generation.identity import identity_digest, model_identity
from refgpt.generation.prompts import fault_of, telling_fault
from refgpt.generation.sequence import Generates


@dataclass(frozen=True)
class Run:
    """A measurement and the records of all its items.

    Attributes
    ----------
    measure : Measure
    records : tuple of dict
        One for each item, in order.
    """

    measure: Measure
    records: tuple[Record, ...]

    @property
    def results(self) -> dict[str, Estimate]:
        """Each metric with its interval."""
        return self.measure.results(self.records)

    @property
    def seconds(self) -> float:
        """How long the model took, over all parts of a run that was continued."""
        return float(sum(record.get("seconds", 0) for record in self.records))


@dataclass(frozen=True)
class PairedRuns:
    """Two runs of one measurement over the same items.

    Attributes
    ----------
    first, second : Run
    """

    first: Run
    second: Run

    @property
    def differences(self) -> dict[str, Estimate]:
        """By how much each metric is higher in the second run. The interval is that of the paired difference."""
        return self.first.measure.differences(self.first.records, self.second.records)

    @property
    def changed(self) -> list[tuple[int, bool]]:
        """The items that one run got right and the other wrong, each with whether the second is right."""
        measure = self.first.measure
        pairs = enumerate(zip(self.first.records, self.second.records, strict=True))
        found = [(i, measure.is_right(one), measure.is_right(two)) for i, (one, two) in pairs]
        return [(i, bool(two)) for i, one, two in found if one != two]


def evaluate(
    model: Generates,
    measure: Measure,
    file: RecordFile | None = None,
    on_item: Callable[[], object] = lambda: None,
    tags: Mapping[str, Any] | None = None,
    requests: Sequence[Sequence[Request]] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Run:
    """Run a measurement with a model.

    Parameters
    ----------
    model : refgpt.Model
    measure : Measure
    file : RecordFile, optional
        From ``open_record_file``: records in it are not computed again, and new ones are added as they are made.
    on_item : callable
        Called after each new record.
    tags : mapping, optional
        What distinguishes the records of this run from others in the file; they are part of each.
    requests : list, optional
        What ``measure.requests`` returns, if it is known already.
    identity : mapping, optional
        What ``refgpt.generation.identity.model_identity`` returns, if it is known already: finding it reads all
        weights.

    Returns
    -------
    Run

    Raises
    ------
    RefgptError
        If an item cannot be asked, or records in the file are of another model, before anything is computed; if the
        model computes logits that are not finite; or if a record cannot be written.
    """
    file = RecordFile([]) if file is None else file
    first = len(known_records(measure, file, tags))
    with telling_fault(fault_of(model)):
        asked = measure.requests(model.engine.config, model.tokenizer) if requests is None else requests
    found = answers(model, [request for item in asked[first:] for request in item])

    def records() -> Iterator[Record]:
        for number, item in enumerate(asked[first:], first):
            answered: list[Answer] = [next(found) for _ in item]
            yield measure.record(number, answered, model)

    identity = model_identity(model) if identity is None else identity
    return keep_records(measure, identity, records(), file, on_item, tags)


def keep_records(
    measure: Measure,
    identity: Mapping[str, Any],
    found: Iterable[Record],
    file: RecordFile,
    on_item: Callable[[], object] = lambda: None,
    tags: Mapping[str, Any] | None = None,
) -> Run:
    """Add records of a measurement to those that a file has, each as it is made.

    Parameters
    ----------
    measure : Measure
    identity : mapping
        ``model_identity`` of the model that answers. Each record keeps its digest as "model".
    found : iterable of dict
        The records of the items that are not in the file, in order.
    file, on_item, tags
        See ``evaluate``.

    Raises
    ------
    DataError
        If records in the file are of another model.
    """
    records, model = known_records(measure, file, tags), identity_digest(identity)
    for record in records:
        if record.get("model", model) != model:  # older files do not say
            raise DataError(
                "the results in the file are of another model: its weights, dtypes, adapter, tokenizer or mask differ",
                where=measure.name,
                fix="load the former model, or name another file",
            )
    before = time.perf_counter()
    for made in found:
        record = {**(tags or {}), "item": len(records), "model": model, **made}
        now = time.perf_counter()
        record["seconds"], before = round(now - before, 6), now
        file.add(record)
        records.append(record)
        on_item()
    return Run(measure, tuple(records))


def known_records(measure: Measure, file: RecordFile, tags: Mapping[str, Any] | None = None) -> list[Record]:
    """The records of a measurement that a file has already.

    Raises
    ------
    DataError
        If they are not the records of its first items.
    """
    own = [one for one in file.records if all(one.get(key) == value for key, value in (tags or {}).items())]
    for number, record in enumerate(own):
        if record.get("item") != number or number >= len(measure.places):
            raise DataError(
                "the results in the file are not those of the first items",
                where=measure.name,
                got=shown(record.get("item")),
                wanted=f"item {number} of {len(measure.places)}",
                fix="name another file",
            )
        measure.check(record)
    return own
