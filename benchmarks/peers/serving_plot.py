"""Draw the comparison of servers as bars: serving.json -> serving.svg and serving.png.

python -m benchmarks.peers.serving_plot DIRECTORY
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.plot import GREY, colour, plt, use_style
from benchmarks.serving import percentiles

#: The quantities that are drawn, their units, and the factors to these units.
PANELS = {
    "tokens/s": ("all clients' tokens", "per second; more is better", 1),
    "first": ("time to the first token", "ms, median and 95 %", 1000),
    "between": ("time between tokens", "ms, median and 95 %", 1000),
}


def values(results: dict[str, Any], name: str, what: str) -> list[float]:
    """All measurements of a server: one number for each round, or for each token."""
    found = [record[what] for record in results["records"] if record["engine"] == name]
    return [value for one in found for value in (one if isinstance(one, list) else [one])]


def draw(results: dict[str, Any], paths: list[Path]) -> None:
    """Draw one panel for each quantity. A line goes from the median to the 95th percentile; for rates, from the lowest
    to the highest."""
    names = [name for name in results["engines"] if values(results, name, "tokens/s")]
    use_style()
    size = (10, 1 + 0.3 * len(names))
    figure, axes = plt.subplots(1, len(PANELS), figsize=size, sharey=True, layout="constrained")
    for panel, (what, (title, unit, factor)) in zip(axes, PANELS.items(), strict=True):
        most = 0.0
        for at, name in enumerate(names):
            found = [factor * value for value in values(results, name, what)]
            if not found:
                continue
            middle, high = percentiles(found, 50, 95)
            low, high = (min(found), max(found)) if what == "tokens/s" else (middle, high)
            panel.barh(at, middle, 0.78, color=colour(name), zorder=2)
            panel.hlines(at, low, high, color=GREY, linewidth=1.5, zorder=3)
            number = f"{middle:.0f}" if middle >= 100 else f"{middle:.1f}"
            weight = "bold" if name.startswith("refgpt") else "normal"
            panel.annotate(
                number, (high, at), (4, 0), textcoords="offset points", va="center", fontsize=9, fontweight=weight
            )
            most = max(most, high)
        panel.set_title(f"{title}\n{unit}", color=GREY, fontsize=10)
        panel.set_xlim(0, 1.2 * most or 1)
        panel.grid(axis="x", color=GREY, alpha=0.3, zorder=0)
        panel.tick_params(axis="y", length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    axes[0].set_yticks(range(len(names)), names)
    for label, name in zip(axes[0].get_yticklabels(), names, strict=True):
        label.set_fontweight("bold" if name.startswith("refgpt") else "normal")
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    for path in paths:
        figure.savefig(path, transparent=True, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Draw what ``serving`` has measured."""
    work = Path(sys.argv[1])
    results = json.loads((work / "serving.json").read_text(encoding="utf-8"))
    draw(results, [work / "serving.svg", work / "serving.png"])


if __name__ == "__main__":
    main()
