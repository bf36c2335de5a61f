"""Training on many machines, from texts to a saved model: ``refgpt.training.run`` with workers."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from refgpt import load
from refgpt._common.arguments import whole_number
from refgpt._common.errors import RefgptError
from refgpt.cluster.compression import Compression
from refgpt.cluster.connect import Patience, import_ray
from refgpt.cluster.coordinator import Coordinator, Rules
from refgpt.cluster.on_ray import train_on_ray
from refgpt.cluster.rounds import Sync
from refgpt.cluster.saving import read_round
from refgpt.cluster.worker import Worker
from refgpt.training import Batch, Trainer, new_adapter
from refgpt.training.data import Texts
from refgpt.training.examples import Example
from refgpt.training.output import STATE_DIRECTORY
from refgpt.training.packing import PlannedStep
from refgpt.training.parameters import TrainedModel
from refgpt.training.run import Run, RunEvent, RunSettings, new_trainer, planned_steps, step_batches


@dataclass
class Job:
    """Everything that a machine needs to create a worker. The job is sent to the machine and called there.

    Attributes
    ----------
    load : dict
        Arguments of ``refgpt.load``. The model is loaded from the machine's own disk, where it must be the same.
    adapter : dict or None
        Arguments of ``new_adapter``; None if all weights are trained, or an adapter that ``load`` names.
    settings : RunSettings
        The batch size is that of one worker.
    compression : Compression
    error_decay : float
    shards : list
        Each worker's texts, as references of Ray.
    """

    load: dict[str, Any]
    adapter: dict[str, Any] | None
    settings: RunSettings
    compression: Compression = field(default_factory=Compression)
    error_decay: float = 1.0
    shards: list[Any] = field(default_factory=list)

    def __call__(self, worker: int) -> Worker:
        """Make a worker, in this process."""
        model = load(**self.load)
        if self.adapter is not None:
            new_adapter(model, **self.adapter)
        examples: list[Example] = import_ray().get(self.shards[worker])
        batches = ShardBatches(model, examples, self.settings)
        return Worker(worker, new_trainer(model, self.settings), batches, self.compression, self.error_decay)


class ShardBatches:
    """The batches of each step, from the texts of one worker. A round that failed may be asked for again."""

    def __init__(self, model: TrainedModel, examples: Sequence[Example], settings: RunSettings) -> None:
        self._model, self._examples, self._settings = model, examples, settings
        self._begin()

    def _begin(self) -> None:
        self._plan = planned_steps(list(map(len, self._examples)), self._model, self._settings)
        self._next = 0

    def __call__(self, step: int) -> list[Batch]:
        """The micro-batches of a step."""
        if step < self._next:
            self._begin()
        planned = next(islice(self._plan, step - self._next, None))
        self._next = step + 1
        return step_batches(self._examples, planned, self._settings.batch_size)


class ClusterRun(Run):
    """A training that writes into a directory, like ``Run``, but whose steps are made by workers on a Ray cluster.

    This process, which must be connected to the cluster, coordinates, evaluates and writes. Each worker has every
    n-th text of the data. An event comes with each round instead of each step.

    Parameters
    ----------
    model, data, out, settings, about, record
        See ``Run``.
    job : Job
    n_workers : int
    sync : Sync
    rules : Rules
    patience : Patience, optional
    resources : dict, optional
        Options of each actor for Ray.
    """

    def __init__(
        self,
        model: TrainedModel,
        data: dict[str, Texts],
        out: Path,
        settings: RunSettings,
        about: dict[str, Any],
        record: dict[str, Any],
        *,
        job: Job,
        n_workers: int,
        sync: Sync,
        rules: Rules,
        patience: Patience | None = None,
        resources: dict[str, Any] | None = None,
    ) -> None:
        self._n_workers = whole_number("workers", n_workers, 1, None, RefgptError)
        n_texts = len(data["train"].examples)
        if n_texts < n_workers:
            raise RefgptError("there are fewer texts than workers", where="data", got=n_texts, wanted=n_workers)
        if 2 * rules.trim >= n_workers and rules.trim:
            wanted = f"at most {(n_workers - 1) // 2} of {n_workers} workers"
            raise RefgptError("would leave out all differences", where="trim", got=rules.trim, wanted=wanted)
        self._job, self._sync, self._rules, self._patience, self._resources = job, sync, rules, patience, resources
        methods = {"workers": n_workers, "sync": str(sync), "compress": str(rules.compression)}
        methods |= {"outer": [rules.outer, rules.outer_lr, rules.outer_momentum], "error_decay": rules.error_decay}
        methods |= {"max_ratio": rules.max_ratio, "trim": rules.trim}
        super().__init__(model, data, out, settings, about | methods, record)

    def __iter__(self) -> Iterator[RunEvent]:
        if self.finished:
            return
        if not self.n_done:
            yield from self._evaluate(0, "valid")
        every, began = self.settings.eval_every, time.monotonic()
        examples, n = self.data["train"].examples, self._n_workers
        self._job.shards = [import_ray().put(examples[worker::n]) for worker in range(n)]
        for report, weights in train_on_ray(
            self._job,
            n,
            self._rates,
            self._sync,
            self._rules,
            patience=self._patience,
            progress=self.out / STATE_DIRECTORY,
            save_every=self.settings.save_every,
            resources=self._resources,
            weights=self.trainer.weights,
        ):
            before, self.n_done = self.n_done, report.n_steps
            messages, seconds = report.result.messages, time.monotonic() - began
            n_tokens, began = sum(message.n_tokens for message in messages), time.monotonic()
            yield self._tell(
                report.n_steps,
                round=report.round + 1,
                loss=report.loss,
                lr=self._rates[report.n_steps - 1],
                workers=[message.worker for message in messages],
                sent=round(report.sent),
                received=round(report.received),
                tokens=n_tokens,
                seconds=round(seconds, 3),
                tokens_per_second=round(n_tokens / max(seconds, 1e-9), 1),
            )
            if before // every < report.n_steps // every and report.n_steps < self.n_steps:
                self.trainer.assign(weights)
                yield from self._evaluate(report.n_steps, "valid")
        coordinator = Coordinator(self.trainer.weights, self._rules)
        coordinator.resume(self.out / STATE_DIRECTORY)
        self.trainer.assign(coordinator.weights)
        told = {name for line in self.metrics() if line["step"] == self.n_steps for name in line}
        for split in ("valid", "test"):
            if f"{split}_loss" not in told:  # it is there if this run was killed while it wrote the result
                yield from self._evaluate(self.n_steps, split)
        self._write_result()

    def _plan(self, n_epochs: int | None) -> Iterator[PlannedStep]:
        """The steps of the first worker: no other worker has more texts."""
        return planned_steps(self._lengths[:: self._n_workers], self.model, self.settings, n_epochs)

    def _trainer(self) -> Trainer:
        return new_trainer(self.model, self.settings)

    def _n_saved(self) -> int:
        n_rounds = read_round(self.out / STATE_DIRECTORY)
        return self._sync.rounds(self.n_steps, self._rules.seed)[n_rounds - 1].stop if n_rounds else 0
