"""Files of prompts and evaluations on all hosts of a Ray cluster, by the code that a single machine uses.

Texts and scores are the same to the bit as on one machine. What is finished is kept as there, so that the same call
resumes when this process was killed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from refgpt import __version__, load
from refgpt._common.arguments import one_of
from refgpt._common.errors import GenerationError
from refgpt._common.record_file import RecordFile
from refgpt.batches.batch import (
    ORDERS,
    BatchSummary,
    batch_identity,
    open_batch,
    settings_of,
    template_of,
    write_records,
)
from refgpt.batches.journal import Journal
from refgpt.batches.lines import Line, Lines
from refgpt.batches.requests import Request, request_of
from refgpt.batches.running import Record, by_number, run_requests
from refgpt.cluster.connect import Patience
from refgpt.cluster.host_worker import Job, Source
from refgpt.cluster.hosts import HostPool
from refgpt.evaluation.answering import Request as Asked
from refgpt.evaluation.answering import answers
from refgpt.evaluation.measures import Measure
from refgpt.evaluation.runner import Run, keep_records, known_records
from refgpt.generation.chat_templates import ChatTemplate
from refgpt.generation.identity import model_identity, tokenizer_digest
from refgpt.generation.params import GenerationParams
from refgpt.generation.scheduler import MOST_TOGETHER
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

#: Requests that a worker has at a time, for each slot: some are being answered, others wait or are on their way.
PER_SLOT = 4
#: Items of an evaluation that a worker has at a time.
MOST_ITEMS = 256


#: Names of the entries of ``model_identity``, which are among those of a worker's identity.
OF_MODEL = ("model", "tokenizer", "mask", "adapters")

Own = TypeVar("Own", bound="OnHosts")


class OnHosts:
    """Work on all hosts of a cluster, to which this process must be connected. It loads no model here.

    Use it as a context manager; it ends the workers.

    Parameters
    ----------
    job : Job
    wanted : mapping
        Entries of the workers' identity in which hosts have to agree with this process. Others are left out.
    threads, per_host, patience
        See ``HostPool``.
    """

    def __init__(
        self,
        job: Job,
        wanted: Mapping[str, Any],
        threads: int | None,
        per_host: int,
        patience: Patience | None,
    ) -> None:
        self._pool = HostPool(job, threads, per_host, patience)
        self._pool.expect(wanted, "this process")

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *fault: object) -> None:
        self._pool.__exit__(*fault)

    def model_identity(self) -> dict[str, Any]:
        """``refgpt.generation.identity.model_identity`` of the model that the hosts have."""
        return {name: value for name, value in self._pool.identity().items() if name in OF_MODEL}


@dataclass
class BatchJob:
    """What a host needs to answer lines of a file of prompts.

    Attributes
    ----------
    load : dict
        Arguments of ``refgpt.load``.
    prompts : str
        ``Lines.sha256`` of the file.
    params, template
        See ``refgpt.batches.run_batch``.
    running : dict
        Options of ``refgpt.batches.running.run_requests``.
    """

    load: dict[str, Any]
    prompts: str
    params: GenerationParams | None
    template: str | ChatTemplate
    running: dict[str, Any] = field(default_factory=dict)

    def start(self, threads: int) -> BatchWork:
        """Load the model."""
        return BatchWork(load(**self.load, threads=threads), self)


class BatchWork:
    """A ``BatchJob`` whose model is loaded: see ``refgpt.cluster.hosts.Work``."""

    def __init__(self, model: Any, job: BatchJob) -> None:
        self._model, self._running = model, job.running
        self._settings = settings_of(model, job.prompts, job.params, job.template)
        self.identity = {"refgpt": __version__, **model_identity(model)}
        self.n_tokens = 0

    def results(self, source: Source) -> Iterator[tuple[int, Record]]:
        """The record of each line."""

        def requests() -> Iterator[tuple[int, Request] | None]:
            while True:
                piece = source.take()
                yield None if piece is None else (piece[0], request_of(piece[1], self._settings))

        fault = self._model.checkpoint.tokenizer_fault
        for record in run_requests(self._model, requests(), fault=fault, on_tokens=self._count, **self._running):
            yield record.index, record

    def _count(self, n_new: int) -> None:
        self.n_tokens += n_new


class HostBatch(OnHosts):
    """A file of prompts that all hosts of a cluster answer.

    Parameters
    ----------
    load : mapping
        Arguments of ``refgpt.load``, but for ``threads``: each host loads the model, from the same path on its own
        disk or from the hub.
    lines : Lines
    params, template
        See ``refgpt.batches.run_batch``.
    threads, per_host, patience
        See ``HostPool``.
    on_tokens : callable
        Called with numbers of new tokens.
    **running
        ``max_slots``, ``max_cache_bytes`` and ``max_kept_bytes`` of each worker.
    """

    def __init__(
        self,
        load: Mapping[str, Any],
        lines: Lines,
        params: GenerationParams | None = None,
        template: str | ChatTemplate = "base",
        *,
        threads: int | None = None,
        per_host: int = 1,
        patience: Patience | None = None,
        on_tokens: Callable[[int], object] = lambda n_new: None,
        **running: Any,
    ) -> None:
        self._lines, self._on_tokens = lines, on_tokens
        self._params, self._template = params or GenerationParams(), template_of(template)
        self._most = PER_SLOT * running.get("max_slots", MOST_TOGETHER)
        job = BatchJob(dict(load), lines.sha256, self._params, self._template, running)
        super().__init__(job, {"refgpt": __version__}, threads, per_host, patience)

    def identity(self) -> dict[str, Any]:
        """What the records depend on: equal to that of the same batch on one machine."""
        return batch_identity(self._lines, self._params, self._template, self.model_identity())

    def records(self, is_done: Callable[[int], bool] = lambda index: False, n_done: int = 0) -> Iterator[Record]:
        """Yield the records of the unanswered requests, in order of completion."""
        self._pool.identity()
        pieces: Iterator[tuple[int, Line]] = ((i, line) for i, line in enumerate(self._lines) if not is_done(i))
        before = self._pool.n_tokens
        for _, record in self._pool.run(pieces, self._lines.n_lines - n_done, self._most):
            self._on_tokens(self._pool.n_tokens - before)
            before = self._pool.n_tokens
            yield record

    def answer(
        self,
        journal: Journal,
        order: str = "input",
        restart: bool = False,
        on_record: Callable[[int, int], object] = lambda n_done, n_requests: None,
    ) -> BatchSummary:
        """Write the records of all requests; see ``refgpt.batches.run_batch``."""
        one_of("order", order, ORDERS, GenerationError)
        if journal.earlier is not None and not restart:
            wanted = {name: journal.earlier.get(name) for name in OF_MODEL}
            fix = "load the former model, or give restart=True (--restart) to begin anew"
            self._pool.expect({"refgpt": __version__, **wanted}, f"the earlier run ({journal.path})", fix)
        return write_records(
            journal,
            self._lines,
            self.identity(),
            lambda: self.records(journal.is_done, journal.n_done),
            order=order,
            restart=restart,
            on_record=on_record,
        )


def run_batch(
    load: Mapping[str, Any],
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    params: GenerationParams | None = None,
    *,
    kind: str | None = None,
    prompt_column: str = "prompt",
    template: str | ChatTemplate = "base",
    order: str = "input",
    restart: bool = False,
    on_record: Callable[[int, int], object] = lambda n_done, n_requests: None,
    **options: Any,
) -> BatchSummary:
    """Answer a file of prompts on all hosts of the Ray cluster to which this process is connected.

    Each request is answered once, though workers or hosts may be lost. A run can be continued on one machine, and the
    other way round.

    Parameters
    ----------
    load : mapping
        Arguments of ``refgpt.load``: see ``HostBatch``.
    path, output, params, kind, prompt_column, template, order, restart, on_record
        See ``refgpt.batches.run_batch``.
    **options
        Those of ``HostBatch``.

    Returns
    -------
    BatchSummary

    Raises
    ------
    RefgptError
        As ``refgpt.batches.run_batch``, and if Ray is missing, not connected, or no worker is left.
    """
    with (
        open_batch(path, output, kind, prompt_column) as (lines, journal),
        HostBatch(load, lines, params, template, **options) as batch,
    ):
        return batch.answer(journal, order, restart, on_record)


def reading_of(config: AnyConfig, tokenizer: Tokenizer | None, mask: str) -> dict[str, Any]:
    """What requests that were made with a model are right for: hosts that have another cannot answer them. As JSON."""
    return {
        "refgpt": __version__,
        "config": [config.model_type, asdict(config)],  # type: ignore[call-overload]
        "tokenizer": tokenizer_digest(tokenizer),
        "mask": mask,
    }


@dataclass
class EvaluationJob:
    """What a host needs to compute records of measurements.

    Attributes
    ----------
    load : dict
        Arguments of ``refgpt.load``.
    measures : sequence of Measure
        Their requests have been made already.
    """

    load: dict[str, Any]
    measures: Sequence[Measure]

    def start(self, threads: int) -> EvaluationWork:
        """Load the model."""
        return EvaluationWork(load(**self.load, threads=threads), self.measures)


class EvaluationWork:
    """An ``EvaluationJob`` whose model is loaded: see ``refgpt.cluster.hosts.Work``."""

    n_tokens = 0

    def __init__(self, model: Any, measures: Sequence[Measure]) -> None:
        self._model, self._measures = model, measures
        reading = reading_of(model.engine.config, model.tokenizer, model.mask)
        self.identity = {**model_identity(model), **reading}

    def results(self, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
        """The record of each item. Those that have come are answered together."""
        while True:
            items = [source.take()]
            while (item := source.take()) is not None:
                items.append(item)
            taken = [item for item in items if item is not None]
            found = answers(self._model, [request for _, (_, requests) in taken for request in requests])
            for number, (measure, requests) in taken:
                answered = [next(found) for _ in requests]
                yield number, self._measures[measure].record(number, answered, self._model)


class HostEvaluation(OnHosts):
    """Measurements on all hosts of a cluster.

    Parameters
    ----------
    load : mapping
        See ``HostBatch``.
    measures : sequence of Measure
    requests : sequence
        What ``Measure.requests`` returned, for each of them.
    reading : mapping, optional
        ``reading_of`` the model with which they were made. Hosts that have another are left out.
    threads, per_host, patience
        See ``HostPool``.
    """

    def __init__(
        self,
        load: Mapping[str, Any],
        measures: Sequence[Measure],
        requests: Sequence[Sequence[Sequence[Asked]]],
        reading: Mapping[str, Any] | None = None,
        *,
        threads: int | None = None,
        per_host: int = 1,
        patience: Patience | None = None,
    ) -> None:
        self._measures, self._requests = measures, requests
        job = EvaluationJob(dict(load), measures)
        super().__init__(job, reading or {"refgpt": __version__}, threads, per_host, patience)

    def run(
        self,
        number: int,
        file: RecordFile | None = None,
        on_item: Callable[[], object] = lambda: None,
        tags: Mapping[str, Any] | None = None,
    ) -> Run:
        """Run one of the measurements; see ``refgpt.evaluation.runner.evaluate``."""
        measure, asked = self._measures[number], self._requests[number]
        file = RecordFile([]) if file is None else file
        first = len(known_records(measure, file, tags))
        identity = self.model_identity()
        pieces = ((i, (number, requests)) for i, requests in enumerate(asked) if i >= first)
        found = by_number(self._pool.run(pieces, len(asked) - first, MOST_ITEMS), first)
        return keep_records(measure, identity, found, file, on_item, tags)
