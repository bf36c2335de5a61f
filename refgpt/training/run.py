"""Training from texts to a saved model: plans, evaluates, saves states, and resumes with the same bits."""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from refgpt._common.arguments import ABOVE_ZERO, BELOW_ONE, flag, keep_whole, number, one_of
from refgpt._common.errors import CheckpointError, RefgptError
from refgpt._common.partial_files import lock_partial, replace_text, sync
from refgpt._common.small_files import is_there
from refgpt.training.batch import Batch
from refgpt.training.data import Texts
from refgpt.training.evaluating import mean_loss
from refgpt.training.examples import Example, batch_of
from refgpt.training.optimiser import AdamW, Muon
from refgpt.training.output import (
    LOCK,
    METRICS,
    RESULT_DIRECTORY,
    SETTINGS,
    STATE_DIRECTORY,
    check_output,
    check_same,
    has_begun,
    read_metrics,
    read_settings,
    writing,
)
from refgpt.training.packing import PlannedStep, plan_steps
from refgpt.training.parameters import Parameters, TrainedModel
from refgpt.training.schedule import MOST_STEPS, SHAPES, schedule
from refgpt.training.state import STATE
from refgpt.training.trainer import Trainer

OPTIMISERS = ("adamw", "muon")
#: Settings that are left out of finetune.json at these values, as in older runs.
NOT_RECORDED = (("muon_lr_scale", 1.0), ("averaged_over", 1))
#: The files that make a directory a model or an adapter. They are written last.
LAST_FILES = ("config.json", "adapter_config.json")
MOST_EPOCHS = 100_000
#: The default share of warm-up steps.
WARMUP = 0.03


@dataclass(frozen=True)
class RunSettings:
    """How to train.

    Attributes
    ----------
    iters : int, optional
        Steps; by default as many as ``epochs`` need.
    epochs : int
        Passes over the texts.
    batch_size : int
        Rows of a micro-batch: texts, or with ``pack`` as many texts as have room in so many rows.
    accumulation : int
        Micro-batches per step.
    row_length : int, optional
        Most tokens of a row; by default the model's context.
    pack : bool
        Whether several short texts share a row.
    optimiser : "adamw" or "muon"
        Muon trains the matrices of the blocks, AdamW all other weights.
    lr, schedule, warmup, floor
        See ``schedule``; ``warmup`` None is 3% of the steps.
    betas, eps, weight_decay, averaged_over, momentum, muon_lr_scale, clip, dropout
        See ``AdamW``, ``Muon`` and ``Trainer``.
    seed : int
        Seed of the order of the texts and of dropout.
    eval_every, save_every : int
        Steps from one evaluation, or state on the disk, to the next; both come after the last step too.
    recompute : bool
        See ``gradients``. It changes no bit, so a run may resume with another value.
    """

    iters: int | None = None
    epochs: int = 1
    batch_size: int = 8
    accumulation: int = 1
    row_length: int | None = None
    pack: bool = False
    optimiser: str = "adamw"
    lr: float = 1e-4
    schedule: str = "cosine"
    warmup: int | None = None
    floor: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    averaged_over: int = 1
    momentum: float = 0.95
    muon_lr_scale: float = 1.0
    clip: float | None = 1.0
    dropout: float = 0.0
    seed: int = 0
    eval_every: int = 50
    save_every: int = 50
    recompute: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "accumulation", "averaged_over", "eval_every", "save_every"):
            keep_whole(self, name, 1, None, RefgptError)
        keep_whole(self, "epochs", 1, MOST_EPOCHS, RefgptError)
        keep_whole(self, "iters", 1, MOST_STEPS, RefgptError, optional=True)
        keep_whole(self, "row_length", 2, None, RefgptError, optional=True)
        keep_whole(self, "warmup", 0, None, RefgptError, optional=True)
        keep_whole(self, "seed", 0, 2**32 - 1, RefgptError)
        one_of("optimiser", self.optimiser, OPTIMISERS, RefgptError)
        one_of("schedule", self.schedule, SHAPES, RefgptError)
        number("lr", self.lr, 0, None, RefgptError)
        number("floor", self.floor, 0, 1, RefgptError)
        if self.clip is not None:
            number("clip", self.clip, ABOVE_ZERO, None, RefgptError)
        number("dropout", self.dropout, 0, BELOW_ONE, RefgptError)
        flag("pack", self.pack, RefgptError)
        flag("recompute", self.recompute, RefgptError)
        AdamW(self.betas, self.eps, self.weight_decay)
        number("muon_lr_scale", self.muon_lr_scale, 0, None, RefgptError)
        Muon((), self.momentum)


@dataclass(frozen=True)
class RunEvent:
    """A line of metrics.jsonl: a step ("loss", before it), or an evaluation ("valid_loss", "test_loss").

    Attributes
    ----------
    step : int
        Steps done by then.
    values : dict of str to number
    """

    step: int
    values: dict[str, Any] = field(default_factory=dict)


class Run:
    """A training that writes into a directory; iterate over it to train.

    The directory gets finetune.json (the settings, and the data by checksums), metrics.jsonl, at the end the model or
    the adapter, and until then the state from which a run with the same arguments resumes.

    Parameters
    ----------
    model : Model
        With a new adapter, if an adapter is trained.
    data : dict of str to Texts
        "train", and "valid" and "test" if there are any.
    out : Path
        As ``check_output`` allows it.
    settings : RunSettings
    about : dict, optional
        Other values that the result depends on, for finetune.json. A run with other values cannot resume.
    record : dict, optional
        Further information for finetune.json, which is not compared.

    Attributes
    ----------
    n_steps, n_done : int
        Of all steps, and of those that are done.
    finished : bool
        Whether the result is written.

    Raises
    ------
    RefgptError
        If the directory has a run with other settings, or another process is writing it.
    """

    def __init__(
        self,
        model: TrainedModel,
        data: dict[str, Texts],
        out: Path,
        settings: RunSettings,
        about: dict[str, Any] | None = None,
        record: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.data, self.out, self.settings = model, data, out, settings
        self._lengths = list(map(len, data["train"].examples))
        if settings.iters is None:
            self.n_steps = sum(1 for _ in islice(self._plan(settings.epochs), MOST_STEPS + 1))
            if self.n_steps > MOST_STEPS:
                raise RefgptError("are too many steps", where="epochs", got=settings.epochs, wanted=f"{MOST_STEPS:,}")
        else:
            self.n_steps = settings.iters
        warmup = round(WARMUP * self.n_steps) if settings.warmup is None else settings.warmup
        self._rates = schedule(settings.schedule, settings.lr, warmup, self.n_steps, settings.floor)
        frozen = Parameters(model).frozen()
        told = {
            "settings": {
                name: list(value) if name == "betas" else value
                for name, value in asdict(settings).items()
                if name != "recompute" and (name, value) not in NOT_RECORDED
            },
            "data": {split: texts.digest() for split, texts in data.items()},
            "about": {**(about or {}), **({} if frozen is None else {"base": frozen})},
            "record": record or {},
        }
        check_output(out)
        with writing(out):
            is_new = not out.exists()
            out.mkdir(exist_ok=True)
            self._lock: int | None = lock_partial(out / LOCK)
        try:
            earlier = read_settings(out / SETTINGS)
            if earlier is not None and not has_begun(earlier, out):
                earlier = None  # there is nothing to resume
            if earlier is not None:
                check_same(earlier, told, out)
            self.finished = bool(earlier and earlier.get("finished"))
            self._told = told
            if self.finished:
                self._forget_state()
            self.trainer = self._trainer()
            self.n_done = self.n_steps if self.finished else self._n_saved()
            if self.n_done > self.n_steps:
                what = "holds more steps than this training has"
                raise CheckpointError(what, where=out / STATE_DIRECTORY, got=self.n_done, wanted=self.n_steps)
            if earlier is None:
                self._write(out / SETTINGS, json.dumps(told | {"finished": False}, indent=2) + "\n")
            if not self.finished:
                self._cut_metrics()
        except BaseException:
            self.close()
            if is_new:
                with suppress(OSError):  # it holds something after all
                    out.rmdir()
            raise

    def _n_saved(self) -> int:
        """The steps of the state on the disk."""
        return self.trainer.n_steps

    def close(self) -> None:
        """Let others write the directory."""
        if self._lock is not None:
            (self.out / LOCK).unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[RunEvent]:
        if self.finished:
            return
        settings, n_done = self.settings, self.n_done
        if not n_done:
            yield from self._evaluate(0, "valid")
        for i, planned in enumerate(self._plan(None)):
            if i < n_done:
                continue
            if i == self.n_steps:
                break
            yield self._step(i, planned)
            done = self.n_done = i + 1
            if done % settings.eval_every == 0 or done == self.n_steps:
                yield from self._evaluate(done, "valid")
            if done % settings.save_every == 0 or done == self.n_steps:
                if done == self.n_steps:
                    yield from self._evaluate(done, "test")
                self.trainer.save(self.out / STATE_DIRECTORY)
        self._write_result()

    def _plan(self, n_epochs: int | None) -> Iterator[PlannedStep]:
        return planned_steps(self._lengths, self.model, self.settings, n_epochs)

    def _step(self, i: int, planned: PlannedStep) -> RunEvent:
        examples = self.data["train"].examples
        began = time.monotonic()
        step = self.trainer.step(step_batches(examples, planned, self.settings.batch_size), self._rates[i])
        seconds = time.monotonic() - began
        chosen = [examples[n] for row in planned.rows for n in row]
        n_tokens = sum(map(len, chosen))
        return self._tell(
            i + 1,
            epoch=planned.epoch + 1,
            loss=step.loss,
            norm=step.norm,
            lr=self._rates[i],
            texts=len(chosen),
            tokens=n_tokens,
            targets=sum(example.n_targets for example in chosen),
            seconds=round(seconds, 3),
            tokens_per_second=round(n_tokens / max(seconds, 1e-9), 1),
        )

    def _evaluate(self, done: int, split: str) -> Iterator[RunEvent]:
        if split in self.data:
            began = time.monotonic()
            loss, n_targets = mean_loss(self.model, self.data[split].examples)
            if not math.isfinite(loss):
                fix = "take a smaller learning rate, and another output"
                raise RefgptError("the loss is not a number", where=self.data[split].path, got=loss, fix=fix)
            seconds = round(time.monotonic() - began, 3)
            yield self._tell(done, **{f"{split}_loss": loss, "targets": n_targets, "seconds": seconds})

    def _tell(self, step: int, **values: Any) -> RunEvent:
        with writing(self.out), (self.out / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        return RunEvent(step, values)

    def metrics(self) -> list[dict[str, Any]]:
        """The complete lines of metrics.jsonl so far."""
        return read_metrics(self.out)

    def _write(self, path: Path, text: str) -> None:
        with writing(self.out):
            replace_text(path, text)

    def _cut_metrics(self) -> None:
        """Remove the steps after the saved state: they are repeated with the same bits."""
        kept = [line for line in self.metrics() if self.n_done and line["step"] <= self.n_done]
        self._write(self.out / METRICS, "".join(json.dumps(line) + "\n" for line in kept))

    def _trainer(self) -> Trainer:
        state = self.out / STATE_DIRECTORY
        if is_there(state / STATE):
            return Trainer.resume(state, self.model, self.settings.recompute)
        return new_trainer(self.model, self.settings)

    def _write_result(self) -> None:
        """Write the model or adapter. Its files are moved into place one by one, the essential one last."""
        result = self.out / RESULT_DIRECTORY
        with writing(self.out):
            if is_there(result):  # of a run that was killed
                shutil.rmtree(result)
        self.trainer.write(result)
        with writing(self.out):
            for path in sorted(result.iterdir(), key=lambda path: (path.name in LAST_FILES, path.name)):
                path.replace(self.out / path.name)
            result.rmdir()
            sync(self.out)
        self._write(self.out / SETTINGS, json.dumps(self._told | {"finished": True}, indent=2) + "\n")
        self._forget_state()
        self.finished = True

    def _forget_state(self) -> None:
        with writing(self.out):
            if is_there(self.out / STATE_DIRECTORY):
                shutil.rmtree(self.out / STATE_DIRECTORY)


def planned_steps(
    lengths: Sequence[int], model: TrainedModel, settings: RunSettings, n_epochs: int | None = None
) -> Iterator[PlannedStep]:
    """See ``plan_steps``."""
    n_rows, row_length = settings.batch_size * settings.accumulation, settings.row_length
    row_length = model.engine.config.n_ctx if row_length is None else row_length
    return plan_steps(lengths, n_rows, row_length, settings.pack, settings.seed, n_epochs)


def step_batches(examples: Sequence[Example], planned: PlannedStep, batch_size: int) -> list[Batch]:
    """The micro-batches of a step: ``batch_size`` rows each."""
    parts = [planned.rows[at : at + batch_size] for at in range(0, len(planned.rows), batch_size)]
    return [batch_of([examples[n] for row in part for n in row]) for part in parts]


def new_trainer(model: TrainedModel, settings: RunSettings) -> Trainer:
    """A new trainer, before its first step."""
    muon = None
    if settings.optimiser == "muon":
        muon = Muon(_matrices(model), settings.momentum, settings.muon_lr_scale)
    adamw = AdamW(settings.betas, settings.eps, settings.weight_decay, averaged_over=settings.averaged_over)
    return Trainer(model, adamw, settings.clip, muon, settings.dropout, settings.seed, settings.recompute)


def _matrices(model: TrainedModel) -> list[str]:
    """The matrices of the blocks, by their names in files; of a model with adapters theirs."""
    parameters = Parameters(model)
    if parameters.adapted:
        return parameters.names()
    matrices = (n for n, leaf in parameters.leaves.items() if n.startswith("blocks.") and leaf.ndim == 2)
    return [parameters.name(name) for name in matrices]
