"""Loss against bytes: the included model, fine-tuned on another text by several workers that exchange little.

    python -m benchmarks.frontier TEXT... [--steps 600] [--workers 4] [--seeds 3] [--rates 5e-4,1e-3] [-o results.json]

For every method: the loss on the ends of the texts after the training, and what each worker sent, beside a synchronous
training that exchanges a gradient of float16 around a ring after every step. With the first seed each method, the
synchronous training too, is run at every learning rate; the one with the least loss on half of what was held out is
used for the other seeds. If it is the smallest or the largest, the next rates beyond it are tried too, ``--wider`` of
them at most. Reported is the loss on the other half. The workers of a training run one after another in one process;
bytes are those of the messages. ``--jobs 2`` runs two trainings at a time, each with one thread, which uses two cores
better than two threads do with so small a model; no figure depends on it.

With ``-o`` every finished run is kept in the file, and a run that is there is not repeated: hours of work can be cut.
``--plot PICTURE`` draws the points (needs matplotlib), and with ``--beside OTHER.json`` those of other files too, such
as that of a model that was hardly trained before (``-m``); the legend has the files' names. With files of all runs,
both only write the table and draw.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from itertools import starmap
from multiprocessing import get_context
from pathlib import Path

import numpy as np

import refgpt
from benchmarks.frontier_report import best_rate, beyond, draw, table
from benchmarks.quick import sized
from refgpt._common.errors import RefgptError
from refgpt.cluster import Rules, Sync, parse_compression, parse_sync, train_locally
from refgpt.cluster.bill import ring_bytes
from refgpt.cluster.messages import Layout
from refgpt.numbers.dtypes import COMPUTES, Compute
from refgpt.training import Batch, Trainer, schedule
from refgpt.training.run import OPTIMISERS, RunSettings, new_trainer

#: See ``parse_method``. An outer momentum of 0.5 multiplies a steady difference by 1.4, the usual 0.9 by 7.
METHODS = (
    "every:25, f16",
    "every:25, int4",
    "every:25, int4, average variance",
    "every:25, int4, nesterov 0.5",
    "every:20, topk:0.1,bits:1, average variance",
    "every:20, topk:0.03,bits:2",
    "every:20, topk:0.1,bits:2",
    "every:10, topk:0.03,bits:2",
    "random:0.04, int4",
    "random:0.02, int4",
    "random:0.04, int4, nesterov 0.9",
    "random:0.04, int4, nesterov 0.5",
    "random:0.1, topk:0.03,bits:2",
    "random:0.04, topk:0.03,bits:2",
    "random:0.04, topk:0.1,bits:2",
    "every:4, topk:0.03,bits:2",
    "every:10, int2",
    "random:0.04, cocktail",
)
MUON_LR_SCALE = 10.0  # so that both optimisers have their best learning rates near each other
OUTER_LR = 0.7  # with Nesterov's momentum, as in DiLoCo


@dataclass(frozen=True)
class Method:
    """How workers exchange updates, and how AdamW divides."""

    sync: Sync
    rules: Rules
    average_variance: bool  # whether ``AdamW.averaged_over`` is the number of workers


def parse_method(name: str, seed: int = 0) -> Method:
    """A rhythm and a compression, as in "every:25, int4"; "average variance" and "nesterov 0.5" may follow.

    Raises
    ------
    RefgptError
        If there is no such method.
    """
    rhythm, *parts = name.split(", ")
    outer, average = {}, False
    while len(parts) > 1:
        if match := re.fullmatch(r"nesterov (0\.\d{1,6})", parts[-1]):
            outer = {"outer": "nesterov", "outer_lr": OUTER_LR, "outer_momentum": float(match[1])}
        elif parts[-1] == "average variance":
            average = True
        else:
            break
        parts.pop()
    rules = Rules(parse_compression(", ".join(parts)), seed=seed, **outer)
    return Method(parse_sync(rhythm), rules, average)


@dataclass(frozen=True)
class Setting:
    """What all trainings have in common."""

    rows: np.ndarray  # [n, t], ids to learn from
    held: tuple[Batch, Batch]  # to choose the learning rate by, and to report
    n_workers: int
    n_steps: int
    batch: int
    warmup: int
    model: Path | None = None
    compute: Compute = "f32"
    optimiser: str = "adamw"

    def batches(self, worker: int, seed: int) -> Callable[[int], list[Batch]]:
        """A worker's batches: it has every ``n_workers``-th row."""
        own = self.rows[worker :: self.n_workers]

        def of_step(step: int) -> list[Batch]:
            ids = own[np.random.RandomState([seed, worker, step]).randint(0, len(own), self.batch)]
            return [Batch(ids, ids)]

        return of_step

    def rates(self, peak: float) -> list[float]:
        """The learning rate of each step."""
        return schedule("cosine", peak, self.warmup, self.n_steps, 0.1)


def trainer(threads: int | None, setting: Setting, averaged_over: int = 1) -> tuple[refgpt.Model, Trainer]:
    """The model (by default the included one), and its trainer."""
    model = refgpt.load(setting.model, dtype="f32", threads=threads, compute=setting.compute)
    settings = RunSettings(
        optimiser=setting.optimiser,
        betas=(0.9, 0.95),
        weight_decay=0.01,
        averaged_over=averaged_over,
        muon_lr_scale=MUON_LR_SCALE,
    )
    return model, new_trainer(model, settings)


def synchronous(setting: Setting, peak: float, seed: int, threads: int | None) -> tuple[Trainer, float, int]:
    """-> the trained model, the bytes that each worker of a ring sends, and how often"""
    _, one = trainer(threads, setting)
    sources = [setting.batches(worker, seed) for worker in range(setting.n_workers)]
    for step, rate in enumerate(setting.rates(peak)):
        one.step([batch for source in sources for batch in source(step)], rate)
    n_trained = sum(w.size for w in one.weights.values())
    return one, setting.n_steps * ring_bytes(n_trained, setting.n_workers), setting.n_steps


def sparse(setting: Setting, method: str, peak: float, seed: int, threads: int | None) -> tuple[Trainer, float, int]:
    """-> the same, of a method that exchanges little"""
    how = parse_method(method, seed)
    averaged_over = setting.n_workers if how.average_variance else 1
    *_, (report, one) = train_locally(
        lambda worker: trainer(threads, setting, averaged_over)[1],
        [setting.batches(worker, seed) for worker in range(setting.n_workers)],
        setting.rates(peak),
        how.sync,
        how.rules,
    )
    return one, max(report.sent, report.received), report.round + 1


def held_losses(setting: Setting, one: Trainer) -> tuple[float, float]:
    """The losses on both halves of what no worker has seen."""
    # A step without a learning rate changes nothing but moments.
    choosing, reported = (one.step([half], 0.0).loss for half in setting.held)
    return choosing, reported


def run(setting: Setting, method: str, peak: float, seed: int, threads: int | None = None) -> dict:
    """One training: its losses on what no worker has seen, and its bytes. Its loss is None if it has diverged."""
    found = {"method": method, "rate": peak, "seed": seed}
    try:
        if method == "synchronous":
            one, sent, n_rounds = synchronous(setting, peak, seed, threads)
        else:
            one, sent, n_rounds = sparse(setting, method, peak, seed, threads)
        choosing, loss = held_losses(setting, one)
    except RefgptError as fault:  # a gradient that is not finite, at too large a rate
        return {**found, "choosing": None, "loss": None, "sent": None, "rounds": 0, "fault": str(fault)}
    return {**found, "choosing": choosing, "loss": loss, "sent": sent, "rounds": n_rounds}


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Declare what ``setting_of`` reads, but for the number of workers."""
    add = parser.add_argument
    add("texts", type=Path, nargs="+")
    add("-m", "--model", type=Path, help="the model that is fine-tuned (default: the included one)")
    add("--steps", type=int, default=sized(600, 4))
    add("--batch", type=int, default=sized(4, 1), help="rows of one worker's step")
    add("--length", type=int, default=sized(64, 16), help="tokens of a row")
    add("--compute", choices=COMPUTES, default="f32", help="what products are computed in (default: f32)")
    add("--optimiser", choices=OPTIMISERS, default="adamw", help="of each worker, and of synchronous training")


def setting_of(arguments: argparse.Namespace, n_workers: int) -> Setting:
    """Cut the texts into rows, and hold out the last rows of each text."""
    tokenizer, length = refgpt.load(arguments.model).tokenizer, arguments.length
    parts = []
    for path in arguments.texts:
        ids = np.array(tokenizer.encode(path.read_text(encoding="utf-8")))
        parts.append(ids[: len(ids) // length * length].reshape(-1, length))
    share = min(1 / 20, sized(128, 1) / max(1, sum(map(len, parts))))
    n_held = [max(1, round(share * len(rows))) for rows in parts]
    ends = [np.split(rows, [max(0, len(rows) - 2 * n), len(rows) - n]) for rows, n in zip(parts, n_held, strict=True)]
    learnt, choosing, reported = (np.concatenate([end[i] for end in ends]) for i in range(3))
    warmup = max(1, arguments.steps // 20)
    shape = n_workers, arguments.steps, arguments.batch, warmup
    how = arguments.model, arguments.compute, arguments.optimiser
    return Setting(learnt, (Batch(choosing, choosing), Batch(reported, reported)), *shape, *how)


class Runs:
    """The trainings of a setting. Finished ones are kept in a file.

    Parameters
    ----------
    told : dict
        What the trainings have in common. A file with other runs is refused.
    path : Path, optional
    """

    def __init__(self, told: dict, path: Path | None) -> None:
        self._told, self._path = told, path
        self.done: list[dict] = []
        if path is not None and path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["setting"] != told:
                differing = [name for name in told if kept["setting"].get(name) != told[name]]
                raise SystemExit(f"{path} holds runs of another setting: another {', '.join(differing)}")
            self.done = kept["runs"]
        self._write()  # now, so that a file that cannot be written costs no training

    def missing(self, wanted: Iterable[tuple[str, float, int]]) -> list[tuple[str, float, int]]:
        """Those that are not done yet."""
        known = {(one["method"], one["rate"], one["seed"]) for one in self.done}
        return [one for one in dict.fromkeys(wanted) if one not in known]

    def add(self, one: dict) -> None:
        """Print and keep a training."""
        found = "has diverged" if one["loss"] is None else f"loss {one['loss']:.4f}, sent {one['sent'] / 1e6:.1f} MB"
        print(f"{one['method']}, rate {one['rate']:g}, seed {one['seed']}: {found}", flush=True)
        self.keep(one)

    def keep(self, one: dict) -> None:
        """Keep a training."""
        self.done.append(one)
        self._write()

    def _write(self) -> None:
        if self._path is not None:
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps({"setting": self._told, "runs": self.done}), encoding="utf-8")
            part.replace(self._path)


def search(
    runs: Runs,
    methods: list[str],
    rates: list[float],
    n_seeds: int,
    wider: int,
    train: Callable[[list[tuple[str, float, int]]], Iterator[dict]],
) -> None:
    """Train each method at all rates with the first seed, and at its best rate with the others."""

    def finish(wanted: Iterable[tuple[str, float, int]]) -> None:
        for one in train(runs.missing(wanted)):
            runs.add(one)

    wanted = [(method, rate, 0) for method in methods for rate in rates]
    for _ in range(wider + 1):
        finish(wanted)
        more = {method: beyond(runs.done, method) for method in methods}
        wanted = [(method, rate, 0) for method, rate in more.items() if rate is not None]
    best = {method: best_rate(runs.done, method) for method in methods}
    finish((method, best[method], seed) for seed in range(1, n_seeds) for method in methods)


def told_of(arguments: argparse.Namespace, setting: Setting) -> dict:
    """What has to be the same for runs to be compared, with digests of the text and of the base model."""
    names = "steps", "workers", "batch", "length", "compute", "optimiser"
    told = {name: str(getattr(arguments, name)) for name in names}
    if setting.optimiser == "muon":
        told["muon_lr_scale"] = str(MUON_LR_SCALE)
    one = trainer(None, setting)[1]
    told["text"] = hashlib.sha256(setting.rows.tobytes() + setting.held[1].ids.tobytes()).hexdigest()
    told["base"] = Layout.of(one.weights).digest(one.weights)
    told["before"] = f"{held_losses(setting, one)[1]:.4f}"
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure loss against bytes.")
    add_setting(parser)
    add = parser.add_argument
    add("--workers", type=int, default=sized(4, 2))
    add("--seeds", type=int, default=sized(3, 1))
    add("--rates", default=sized("5e-4,1e-3,2e-3", "3e-4"), help="peaks of the learning rate, with commas between")
    add("--wider", type=int, default=2, help="most further rates, if the best one is the smallest or the largest")
    add("--methods", default=";".join(sized(METHODS, METHODS[2:3])), help="with semicolons between")
    add("--jobs", type=int, default=1, help="trainings at a time (default: 1)")
    add("--threads", type=int, help="of each training (default: 1 with several jobs, otherwise all)")
    add("-o", "--output", type=Path, help="JSON with every run")
    add("--plot", type=Path, help="a picture of loss against bytes")
    add("--beside", type=Path, nargs="+", default=[], help="more such JSON, for the picture")
    arguments = parser.parse_args()
    methods = ["synchronous", *(name.strip() for name in arguments.methods.split(";") if name.strip())]
    for name in methods[1:]:
        try:
            parse_method(name)
        except RefgptError as fault:
            parser.error(f"--methods: {name!r}: {fault}")
    if arguments.plot is not None and find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib")
    rates = [float(rate) for rate in arguments.rates.split(",")]
    setting = setting_of(arguments, arguments.workers)
    told = told_of(arguments, setting)
    print(f"before: loss {told['before']}", flush=True)
    runs = Runs(told, arguments.output)
    with_setting = partial(run, setting)
    if arguments.jobs == 1:
        search(
            runs,
            methods,
            rates,
            arguments.seeds,
            arguments.wider,
            lambda wanted: starmap(partial(with_setting, threads=arguments.threads), wanted),
        )
    else:
        with get_context("spawn").Pool(arguments.jobs) as pool:
            one = partial(_unpacked, partial(with_setting, threads=arguments.threads or 1))
            how = partial(pool.imap_unordered, one)
            search(runs, methods, rates, arguments.seeds, arguments.wider, how)
    print("\n" + table(runs.done, told["before"]))
    if arguments.plot is not None:
        named = {arguments.output.stem if arguments.output else "this model": runs.done}
        named |= {path.stem: json.loads(path.read_text(encoding="utf-8"))["runs"] for path in arguments.beside}
        draw(named, arguments.plot)


def _unpacked(function: Callable, arguments: tuple) -> dict:
    found: dict = function(*arguments)
    return found


if __name__ == "__main__":
    main()
