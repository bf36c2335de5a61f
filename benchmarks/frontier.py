"""Loss against bytes: the included model, fine-tuned on another text by several workers that exchange little.

    python -m benchmarks.frontier TEXT... [--steps 600] [--workers 4] [--seeds 3] [--rates 1e-4,3e-4] [-o results.json]

For every method: the loss on the end of the text after the training, and what each worker sent, beside a synchronous
training that exchanges a gradient of float16 around a ring after every step. With the first seed each method, the
synchronous training too, is run at every learning rate; the one with the least loss on half of what was held out is
used for the other seeds. Reported is the loss on the other half. Workers run one after another in this process; bytes
are those of the messages.

With ``-o`` every finished run is kept in the file, and a run that is there is not repeated: hours of work can be cut.
``--plot PICTURE`` draws the points (needs matplotlib), and with ``--beside OTHER.json`` those of another file too, such
as that of a model that was hardly trained before (``-m``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np

import refgpt
from benchmarks.quick import sized
from refgpt import training
from refgpt.cluster import Rules, parse_compression, parse_sync, train_locally
from refgpt.cluster.bill import ring_bytes
from refgpt.numbers.dtypes import COMPUTES, Compute
from refgpt.training import Batch, Trainer, schedule

#: An outer momentum that multiplies a steady difference by 1.4; the usual 0.9 multiplies it by 7.
NESTEROV_HALF = {"outer": "nesterov", "outer_lr": 0.7, "outer_momentum": 0.5}
#: Rhythm, compression, and options of ``Rules``.
METHODS: dict[str, tuple[str, str, dict]] = {
    "every:25, f16": ("every:25", "f16", {}),
    "random:0.04, int4": ("random:0.04", "int4", {}),
    "random:0.02, int4": ("random:0.02", "int4", {}),
    "random:0.04, int4, nesterov": ("random:0.04", "int4", {"outer": "nesterov", "outer_lr": 0.7}),
    "random:0.04, int4, nesterov 0.5": ("random:0.04", "int4", NESTEROV_HALF),
    "random:0.1, topk:0.03,bits:2": ("random:0.1", "topk:0.03,bits:2", {}),
    "random:0.04, topk:0.03,bits:2": ("random:0.04", "topk:0.03,bits:2", {}),
    "random:0.04, topk:0.1,bits:2": ("random:0.04", "topk:0.1,bits:2", {}),
    "every:4, topk:0.03,bits:2": ("every:4", "topk:0.03,bits:2", {}),
    "every:10, int2": ("every:10", "int2", {}),
    "random:0.04, cocktail": ("random:0.04", "cocktail", {}),
}


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


def trainer(threads: int | None, setting: Setting) -> tuple[refgpt.Model, Trainer]:
    """The model (by default the included one), and its trainer."""
    model = refgpt.load(setting.model, dtype="f32", threads=threads, compute=setting.compute)
    return model, Trainer(model, training.AdamW(betas=(0.9, 0.95), weight_decay=0.01))


def synchronous(setting: Setting, peak: float, seed: int, threads: int | None) -> tuple[Trainer, float]:
    """-> the trained model, and the bytes that each worker of a ring sends"""
    _, one = trainer(threads, setting)
    sources = [setting.batches(worker, seed) for worker in range(setting.n_workers)]
    for step, rate in enumerate(setting.rates(peak)):
        one.step([batch for source in sources for batch in source(step)], rate)
    n_trained = sum(w.size for w in one.weights.values())
    return one, setting.n_steps * ring_bytes(n_trained, setting.n_workers)


def sparse(setting: Setting, method: str, peak: float, seed: int, threads: int | None) -> tuple[Trainer, float]:
    """-> the same, of a method that exchanges little"""
    rhythm, compression, options = METHODS[method]
    *_, (report, one) = train_locally(
        lambda worker: trainer(threads, setting)[1],
        [setting.batches(worker, seed) for worker in range(setting.n_workers)],
        setting.rates(peak),
        parse_sync(rhythm),
        Rules(parse_compression(compression), seed=seed, **options),
    )
    return one, max(report.sent, report.received)


def run(setting: Setting, method: str, peak: float, seed: int, threads: int | None) -> dict:
    """One training: its losses on what no worker has seen, and its bytes."""
    if method == "synchronous":
        one, sent = synchronous(setting, peak, seed, threads)
    else:
        one, sent = sparse(setting, method, peak, seed, threads)
    # A step without a learning rate changes nothing but moments.
    choosing, loss = (one.step([half], 0.0).loss for half in setting.held)
    return {"method": method, "rate": peak, "seed": seed, "choosing": choosing, "loss": loss, "sent": sent}


def best_rate(runs: list[dict], method: str) -> float:
    """The learning rate with which the first seed's training did best."""
    return min((one for one in runs if one["method"] == method and one["seed"] == 0), key=lambda one: one["choosing"])[
        "rate"
    ]


def add_setting(parser: argparse.ArgumentParser) -> None:
    """Declare what ``setting_of`` reads, but for the number of workers."""
    add = parser.add_argument
    add("texts", type=Path, nargs="+")
    add("-m", "--model", type=Path, help="the model that is fine-tuned (default: the included one)")
    add("--steps", type=int, default=sized(600, 4))
    add("--batch", type=int, default=sized(4, 1), help="rows of one worker's step")
    add("--length", type=int, default=sized(64, 16), help="tokens of a row")
    add("--compute", choices=COMPUTES, default="f32", help="what products are computed in (default: f32)")


def setting_of(arguments: argparse.Namespace, n_workers: int) -> Setting:
    """The texts in rows, of which the last are held out."""
    tokenizer = refgpt.load(arguments.model).tokenizer
    ids = np.concatenate([tokenizer.encode(path.read_text(encoding="utf-8")) for path in arguments.texts])
    rows = ids[: len(ids) // arguments.length * arguments.length].reshape(-1, arguments.length)
    n_held = max(1, min(sized(128, 1), len(rows) // 20))
    choosing, reported = (Batch(half, half) for half in (rows[-2 * n_held : -n_held], rows[-n_held:]))
    warmup = max(1, arguments.steps // 20)
    shape = n_workers, arguments.steps, arguments.batch, warmup
    return Setting(rows[: -2 * n_held], (choosing, reported), *shape, arguments.model, arguments.compute)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure loss against bytes.")
    add_setting(parser)
    add = parser.add_argument
    add("--workers", type=int, default=sized(4, 2))
    add("--seeds", type=int, default=sized(3, 1))
    add("--rates", default=sized("1e-4,3e-4,1e-3", "3e-4"), help="peaks of the learning rate, with commas between")
    add("--methods", default=";".join(sized(list(METHODS), list(METHODS)[1:2])), help="with semicolons between")
    add("--threads", type=int)
    add("-o", "--output", type=Path, help="JSON with every run")
    add("--plot", type=Path, help="a picture of loss against bytes")
    add("--beside", type=Path, help="another such JSON, for the picture")
    arguments = parser.parse_args()
    setting = setting_of(arguments, arguments.workers)
    told = {
        name: str(value)
        for name, value in vars(arguments).items()
        if name in ("texts", "model", "steps", "workers", "batch", "length", "compute")
    }

    runs: list[dict] = []
    if arguments.output is not None and arguments.output.exists():
        kept = json.loads(arguments.output.read_text(encoding="utf-8"))
        if kept["setting"] != told:
            parser.error(f"{arguments.output} holds runs of another setting: {kept['setting']}")
        runs = kept["runs"]

    def have(method: str, peak: float, seed: int) -> None:
        if any((one["method"], one["rate"], one["seed"]) == (method, peak, seed) for one in runs):
            return
        one = run(setting, method, peak, seed, arguments.threads)
        runs.append(one)
        print(
            f"{method}, rate {peak:g}, seed {seed}: loss {one['loss']:.4f}, sent {one['sent'] / 1e6:.1f} MB", flush=True
        )
        if arguments.output is not None:
            part = arguments.output.with_suffix(".part")
            part.write_text(json.dumps({"setting": told, "runs": runs}), encoding="utf-8")
            part.replace(arguments.output)

    methods = ["synchronous", *filter(None, arguments.methods.split(";"))]
    for method in methods:
        for peak in map(float, arguments.rates.split(",")):
            have(method, peak, 0)
    for seed in range(1, arguments.seeds):
        for method in methods:
            have(method, best_rate(runs, method), seed)
    print("\n" + table(runs))
    if arguments.plot is not None:
        named = {"this model": runs}
        if arguments.beside is not None:
            named[arguments.beside.stem] = json.loads(arguments.beside.read_text(encoding="utf-8"))["runs"]
        draw(named, arguments.plot)


@dataclass(frozen=True)
class Result:
    """A method with its best learning rate, over the seeds."""

    method: str
    rate: float
    losses: list[float]
    ratio: float  # of the mean loss to that of synchronous training
    sent: float  # bytes of a worker
    less: float  # how many times fewer bytes than synchronous training


def results(runs: list[dict]) -> list[Result]:
    """A result for each method of some runs; the first is synchronous training."""
    best = {}
    for method in dict.fromkeys(one["method"] for one in runs):
        rate = best_rate(runs, method)
        best[method] = [one for one in runs if one["method"] == method and one["rate"] == rate]
    base_loss, base_sent = (mean(one[name] for one in best["synchronous"]) for name in ("loss", "sent"))
    found = []
    for method, mine in best.items():
        losses, sent = [one["loss"] for one in mine], mean(one["sent"] for one in mine)
        found.append(Result(method, mine[0]["rate"], losses, mean(losses) / base_loss, sent, base_sent / sent))
    return found


def table(runs: list[dict]) -> str:
    """A line for each method."""
    lines = ["| method | rate | loss | to synchronous | a worker sends | less by |", "|---|---:|---:|---:|---:|---:|"]
    for one in results(runs):
        spread = f" +- {stdev(one.losses):.4f}" if len(one.losses) > 1 else ""
        cells = f"{mean(one.losses):.4f}{spread} | {one.ratio:.4f} | {one.sent / 1e6:,.1f} MB | {one.less:,.0f} x |"
        lines.append(f"| {one.method} | {one.rate:g} | {cells}")
    return "\n".join(lines)


def draw(named: dict[str, list[dict]], path: Path) -> None:
    """Draw the loss of each method over its bytes, both compared with synchronous training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for (name, runs), (colour, marker) in zip(named.items(), (("#0072b2", "o"), ("#d55e00", "s")), strict=False):
        found = results(runs)
        axes.plot([one.less for one in found], [one.ratio for one in found], marker, color=colour, label=name)
        for one in found:
            axes.annotate(one.method, (one.less, one.ratio), textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.axhline(1.01, color="#808080", linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="fewer bytes than a ring of float16 after every step, times")
    axes.set_ylabel("held-out loss, compared with synchronous training")
    axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
