"""What ``benchmarks.frontier`` has found: the best learning rate of each method, a table, and a picture."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import mean, stdev

#: Colour and marker of each file in the picture.
LOOKS = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"))


def best_rate(runs: list[dict], method: str) -> float:
    """The learning rate with which the first seed's training did best."""
    tried = [one for one in runs if one["method"] == method and one["seed"] == 0 and one["loss"] is not None]
    if not tried:
        raise SystemExit(f"{method} diverges at every rate that was tried")
    return min(tried, key=lambda one: one["choosing"])["rate"]


def beyond(runs: list[dict], method: str) -> float | None:
    """The next learning rate beyond the best one, if that is the smallest or the largest of those tried."""
    rates = sorted({one["rate"] for one in runs if one["method"] == method and one["seed"] == 0})
    best = best_rate(runs, method)
    if len(rates) < 2 or best not in (rates[0], rates[-1]):
        return None
    near, far = (rates[1], rates[0]) if best == rates[0] else (rates[-2], rates[-1])
    return float(f"{far * far / near:.3g}")


@dataclass(frozen=True)
class Result:
    """A method with its best learning rate, over the seeds."""

    method: str
    rate: float
    losses: list[float]
    ratio: float  # of the mean loss to that of synchronous training
    n_rounds: float  # how often workers exchange something, on average over the seeds
    sent: float  # bytes of a worker
    less: float  # how many times fewer bytes than synchronous training
    at_edge: bool  # whether only rates on one side of the best one were tried


def results(runs: list[dict]) -> list[Result]:
    """A result for each method of some runs, from most bytes to least; the first is synchronous training."""
    best = {}
    for method in sorted({one["method"] for one in runs}):
        rate = best_rate(runs, method)
        best[method] = [one for one in runs if one["method"] == method and one["rate"] == rate]
        if any(one["loss"] is None for one in best[method]):
            del best[method]  # it has diverged with another seed: ``table`` says so
    base_loss, base_sent = (mean(one[name] for one in best["synchronous"]) for name in ("loss", "sent"))
    found = []
    for method, mine in best.items():
        losses, sent, n_rounds = ([one[name] for one in mine] for name in ("loss", "sent", "rounds"))
        ratio, less = mean(losses) / base_loss, base_sent / mean(sent)
        edge = beyond(runs, method) is not None
        found.append(Result(method, mine[0]["rate"], losses, ratio, mean(n_rounds), mean(sent), less, edge))
    return sorted(found, key=lambda one: (one.method != "synchronous", one.less))


def table(runs: list[dict], before: str) -> str:
    """A line for each method, after that of the model before the training."""
    lines = ["| method | rounds | rate | loss | to synchronous | a worker sends | less by |"]
    lines += ["|---|---:|---:|---:|---:|---:|---:|", f"| before the training | | | {before} | | | |"]
    found = results(runs)
    for one in found:
        spread = f" +- {stdev(one.losses):.4f}" if len(one.losses) > 1 else ""
        cells = f"{mean(one.losses):.4f}{spread} | {one.ratio:.4f} | {one.sent / 1e6:,.1f} MB | {one.less:,.0f} x |"
        lines.append(f"| {one.method} | {one.n_rounds:.0f} | {one.rate:g}{'*' if one.at_edge else ''} | {cells}")
    lost = {one["method"] for one in runs} - {one.method for one in found}
    lines += [f"| {method} | | | diverges with one of the seeds | | | |" for method in sorted(lost)]
    if any(one.at_edge for one in found):
        lines += ["", "\\* No rate beyond this one was tried."]
    return "\n".join(lines)


def frontier(found: list[Result]) -> list[Result]:
    """The methods that no other one beats both in loss and in bytes."""
    return [
        one
        for one in sorted(found, key=lambda one: one.less)
        if not any(other.less >= one.less and other.ratio < one.ratio for other in found)
    ]


def draw(named: dict[str, list[dict]], path: Path) -> None:
    """Draw the loss of each method over its bytes, both compared with synchronous training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for (name, runs), (colour, marker) in zip(named.items(), cycle(LOOKS), strict=False):
        found, told = results(runs), name.replace("-", " ")
        axes.plot([one.less for one in found], [one.ratio for one in found], marker, color=colour, label=told)
        best = frontier(found)
        axes.plot([one.less for one in best], [one.ratio for one in best], color=colour, linewidth=1)
        for one in found:
            place = {"textcoords": "offset points", "xytext": (-7, 3), "ha": "right"} if one.less > 1 else {}
            axes.annotate(one.method, (one.less, one.ratio), fontsize=7, **place)
    axes.axhline(1.01, color="#808080", linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="fewer bytes than a ring of float16 after every step, times")
    axes.set_ylabel("held-out loss, compared with synchronous training")
    axes.legend(frameon=False)
    figure.savefig(path)
    plt.close(figure)
