"""Results as a table beside published figures, and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from refgpt.evaluation.measures import Measure
from refgpt.evaluation.metrics import Estimate
from refgpt.evaluation.published import PUBLISHED
from refgpt.evaluation.runner import PairedRuns, Run

#: Items of a comparison that are listed.
MOST_LISTED = 20


def written(measure: Measure, name: str, value: float) -> str:
    """A value of a metric, with as many digits as it is published with."""
    return f"{100 * value:.1f}" if _is_share(measure, name) else f"{value:.2f}"


def _is_share(measure: Measure, name: str) -> bool:
    return next((metric.percent for metric in measure.metrics if metric.name == name), True)


def _with_interval(measure: Measure, name: str, found: Estimate, sign: str = "") -> str:
    value, low, high = (written(measure, name, one) for one in (found.value, found.low, found.high))
    if sign:
        value, low, high = (one if one.startswith("-") else f"+{one}" for one in (value, low, high))
    return f"{value} [{low}, {high}]"


def table(run: Run) -> list[str]:
    """The lines of a table: each metric with its 95% interval, and what was published for other models."""
    found = run.results
    published = {name: PUBLISHED.get((run.measure.name, name), {}) for name in found}
    models = list(dict.fromkeys(model for figures in published.values() for model in figures))
    rows = [["metric", "this run", *models]]
    for name, one in found.items():
        figures = [f"{published[name][model]:g}" if model in published[name] else "" for model in models]
        label = f"{name} (%)" if _is_share(run.measure, name) else name
        rows.append([label, _with_interval(run.measure, name, one), *figures])
    return aligned(rows)


def comparison_table(comparison: PairedRuns, names: tuple[str, str]) -> list[str]:
    """The lines of a table: each metric in both runs, and the paired difference with its 95% interval."""
    measure = comparison.first.measure
    one, two, differences = comparison.first.results, comparison.second.results, comparison.differences
    rows = [["metric", *names, "difference"]]
    for name, change in differences.items():
        label = f"{name} (%)" if _is_share(measure, name) else name
        pair = (_with_interval(measure, name, found[name]) for found in (one, two))
        rows.append([label, *pair, _with_interval(measure, name, change, sign="+")])
    lines = aligned(rows)
    if any(measure.is_right(record) is not None for record in comparison.first.records[:1]):
        lines += _changes(comparison)
    return lines


def _changes(comparison: PairedRuns) -> list[str]:
    """How many items changed, and the first of them by their places."""
    changed, measure = comparison.changed, comparison.first.measure
    n_won = sum(is_right for _, is_right in changed)
    lines = [
        f"{len(changed)} of {len(comparison.first.records)} items changed: "
        f"{n_won} became right, {len(changed) - n_won} wrong"
    ]
    lines += [f"  {measure.places[i]}: {'now right' if right else 'now wrong'}" for i, right in changed[:MOST_LISTED]]
    if len(changed) > MOST_LISTED:
        lines.append(f"  and {len(changed) - MOST_LISTED} more")
    return lines


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of equal columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def summary(run: Run, about: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a run as JSON. Values are as computed: accuracies are shares."""
    return {
        "task": run.measure.name,
        "n_items": len(run.records),
        "setting": dict(about),
        "results": {name: _numbers(one) for name, one in run.results.items()},
        "published": {name: figures for name in run.results if (figures := PUBLISHED.get((run.measure.name, name)))},
        "seconds": run.seconds,
    }


def comparison_summary(comparison: PairedRuns) -> dict[str, Any]:
    """A comparison as JSON: the paired differences, and the items that changed."""
    return {
        "differences": {name: _numbers(one) for name, one in comparison.differences.items()},
        "changed": [{"item": item, "right": right} for item, right in comparison.changed],
    }


def _numbers(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "low": found.low, "high": found.high}
