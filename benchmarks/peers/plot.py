"""The results as bars: results.json -> peers.svg and peers.png.

    python -m benchmarks.peers.plot DIRECTORY gptj

Colours are Okabe and Ito's, told apart by colour-blind readers too; the background is transparent and the text of a
grey that can be read on white and on black.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.peers.lineup import suffix
from benchmarks.peers.questions import TOGETHER
from benchmarks.peers.ratios import Results, rate

GREY = "#808080"
COLOURS = {
    "refgpt": "#d55e00",
    "llama.cpp": "#0072b2",
    "CTranslate2": "#009e73",
    "transformers": "#cc79a7",
    "ctransformers": "#e69f00",
    "OpenVINO": "#56b4e9",
}
PANELS = {"prefill 512": "a prompt of 512 tokens", "decode after 32": "writing one text", TOGETHER: "writing 8 at once"}
GAP = 0.8  # between groups, in bars


def colour(engine: str) -> str:
    return COLOURS.get(engine.partition(" ")[0], GREY)


def places(results: Results) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Where each engine's bar goes, from the top down, and where each group's title does."""
    bars: dict[str, float] = {}
    titles, at = [], 0.0
    for group in results["groups"]:
        names = [name for name in group["engines"] if rate(results, name, "prefill 512")]
        if names:
            titles.append((at, group["title"]))
            at += 1
        for name in names:
            bars[name] = at
            at += 1
        at += GAP if names else 0
    return bars, titles


def use_style() -> None:
    """Grey text and axes, and letters that stay letters in SVG."""
    plt.rcParams.update(
        {
            "text.color": GREY,
            "axes.edgecolor": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "axes.labelcolor": GREY,
            "font.size": 10,
            "svg.fonttype": "none",
            "font.family": "sans-serif",
        }
    )


def draw(results: Results, paths: list[Path]) -> None:
    bars, titles = places(results)
    use_style()
    height = 0.9 + 0.27 * (max(bars.values()) + 1)
    figure, axes = plt.subplots(1, len(PANELS), figsize=(10, height), sharey=True, layout="constrained")
    for panel, (what, title) in zip(axes, PANELS.items(), strict=True):
        spreads = {name: spread for name in bars if (spread := rate(results, name, what))}
        most = max(spread.most for spread in spreads.values())
        for name, spread in spreads.items():
            at = bars[name]
            panel.barh(at, spread.median, 0.78, color=colour(name), zorder=2)
            panel.hlines(at, spread.least, spread.most, color=GREY, linewidth=1.5, zorder=3)
            number = f"{spread.median:.0f}" if spread.median >= 100 else f"{spread.median:.1f}"
            panel.text(
                spread.most + most / 60,
                at,
                number,
                va="center",
                fontsize=9,
                fontweight="bold" if name.startswith("refgpt") else "normal",
            )
        for name in bars.keys() - spreads.keys():
            panel.text(most / 60, bars[name], "–", va="center", fontsize=9)
        panel.set_title(f"{title}\ntokens/s", color=GREY, fontsize=10)
        panel.set_xlim(0, 1.18 * most)
        panel.grid(axis="x", color=GREY, alpha=0.3, zorder=0)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    rows = sorted([(at, name, False) for name, at in bars.items()] + [(at, title, True) for at, title in titles])
    axes[0].set_yticks([at for at, _, _ in rows], [name for _, name, _ in rows])
    for label, (_, name, is_title) in zip(axes[0].get_yticklabels(), rows, strict=True):
        if is_title or name.startswith("refgpt"):
            label.set_fontweight("bold")
    axes[0].set_ylim(max(bars.values()) + 0.6, -0.6)
    for path in paths:
        figure.savefig(path, transparent=True, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    work, end = Path(sys.argv[1]), suffix(sys.argv[2])
    results = json.loads((work / f"results{end}.json").read_text(encoding="utf-8"))
    draw(results, [work / f"peers{end}.svg", work / f"peers{end}.png"])


if __name__ == "__main__":
    main()
