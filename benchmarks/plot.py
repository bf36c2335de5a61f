"""Results as pictures: what bounds each kernel, and how it changed from run to run.

    python benchmarks/plot.py RESULTS.json [EARLIER.json ...] -o kernels.svg

The first picture is a roofline (Williams, Waterman and Patterson 2009): a kernel that makes few operations a byte
cannot be faster than memory, one that makes many cannot be faster than the multipliers; its distance to the roof is
what is left to gain. With several files of one machine a second picture shows each kernel's share of its yardstick over
time.
Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

GREY = "#808080"
# Okabe and Ito's colours, and a marker for each as well.
LOOKS = {
    "linear_f32": ("#0072b2", "o"),
    "linear_f16": ("#56b4e9", "s"),
    "linear_bf16": ("#009e73", "D"),
    "linear_q8": ("#e69f00", "^"),
    "linear_q4": ("#d55e00", "v"),
    "attention": ("#cc79a7", "P"),
}

Row = dict[str, Any]


def rows_of(path: Path) -> list[Row]:
    """What was measured of kernels in one run."""
    runs = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    return [run["extra_info"] for run in runs if run["extra_info"].get("bytes")]


def look(op: str) -> tuple[str, str] | None:
    return next((look for name, look in LOOKS.items() if op.startswith(name)), None)


def draw_roofline(axes: Axes, rows: list[Row]) -> Axes:
    """Operations a second over operations a byte, under the roofs that were measured in the same run."""
    reading = median(row["read GB/s"] for row in rows if "read GB/s" in row)
    roofs = {
        "8-bit multipliers": [
            row["peak GOP/s"] for row in rows if row["op"].startswith("linear_q") and "peak GOP/s" in row
        ],
        "float32 multipliers": [
            row["peak GOP/s"] for row in rows if row["op"].startswith("attention") and "peak GOP/s" in row
        ],
    }
    tops = {name: median(peaks) for name, peaks in roofs.items() if peaks}
    least, most = 0.2, 4000
    for name, top in tops.items():
        axes.plot([least, top / reading, most], [least * reading, top, top], color=GREY, linewidth=1)
        axes.annotate(f"{name} {top:.0f}", (most, top), ha="right", va="bottom", color=GREY, fontsize=8)
    axes.annotate(
        f"reading {reading:.1f} GB/s", (6.5, 7.5 * reading), rotation=50, rotation_mode="anchor", color=GREY, fontsize=8
    )
    shown: set[str] = set()
    for row in rows:
        style = look(row["op"])
        if style is None or not row["operations"]:
            continue
        name = next(name for name in LOOKS if row["op"].startswith(name))
        axes.plot(
            row["operations"] / row["bytes"],
            row["operations"] / row["seconds"] / 1e9,
            style[1],
            color=style[0],
            markersize=5,
            label=None if name in shown else name,
        )
        shown.add(name)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations a byte",
        ylabel="10⁹ operations a second",
        title="what bounds the kernels",
    )
    axes.legend(frameon=False, fontsize=8, labelcolor=GREY)
    return axes


def draw_history(axes: Axes, runs: list[list[Row]]) -> Axes:
    """The share of its yardstick that each op reached, the median over its shapes, run by run."""
    lines: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for n, rows in enumerate(runs):
        by_op: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            if "share" in row and look(row["op"]):
                by_op[row["op"]].append(row["share"])
        for op, shares in by_op.items():
            lines[op].append((n, median(shares)))
    for op, points in lines.items():
        colour, marker = look(op) or (GREY, ".")
        axes.plot(*zip(*points, strict=True), marker=marker, color=colour, label=op)
    axes.set(
        xlabel="run", ylabel="share of the yardstick", title="from run to run", xticks=range(len(runs)), ylim=(0, None)
    )
    axes.legend(frameon=False, fontsize=8, labelcolor=GREY)
    return axes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="of pytest --benchmark-json; the newest first")
    parser.add_argument("-o", "--output", type=Path, default=Path("kernels.svg"))
    arguments = parser.parse_args()
    runs = [rows_of(path) for path in arguments.results]
    n = 1 if len(runs) == 1 else 2
    plt.rcParams.update(
        {
            "text.color": GREY,
            "axes.labelcolor": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "axes.edgecolor": GREY,
            "svg.hashsalt": "refgpt",
        }
    )
    figure, axes = plt.subplots(1, n, figsize=(7 * n, 5), squeeze=False)
    draw_roofline(axes[0][0], runs[0])
    if n == 2:
        draw_history(axes[0][1], runs[::-1])
    for drawn in axes[0]:
        drawn.set_facecolor("none")
        drawn.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(
        arguments.output,
        transparent=True,
        dpi=120,
        metadata={"Date": None} if arguments.output.suffix == ".svg" else None,
    )


if __name__ == "__main__":
    main()
