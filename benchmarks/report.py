"""The results of a run as Markdown tables: ``python benchmarks/report.py results.json``.

``results.json`` comes from ``pytest benchmarks/ --benchmark-json results.json``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

Row = dict[str, object]
SHOWN: dict[str, Callable[[float], str]] = {
    "milliseconds": "{:.3f}".format,
    "share": "{:.0%}".format,
    "GOP/s": "{:.0f}".format,
    "NumPy GOP/s": "{:.0f}".format,
    "peak GOP/s": "{:.0f}".format,
    "over a prompt": "{:+.1%}".format,
    "gain": "{:.2f}".format,
    "ratio": "{:.2f}".format,
    "ms a token, few": "{:.2f}".format,
    "ms a token, many": "{:.2f}".format,
    "ms a step": "{:.2f}".format,
    "ms, 99 of 100 steps": "{:.2f}".format,
    "bytes of the draft model over the model's": "{:.2f}".format,
    "step after 1900 over step after 32": "{:.2f}".format,
    "wait over a full pass": "{:.2f}".format,
    "full pass over a plain one": "{:.2f}".format,
    "rate over plain batches": "{:.2f}".format,
    "over a step of the base": "{:.2f}".format,
    "rate of 2000 over rate of 512": "{:.2f}".format,
}


def table(rows: Sequence[Row], columns: Sequence[str]) -> Iterator[str]:
    """A table of these columns; what a row lacks stays empty."""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "|".join("---" if isinstance(rows[0].get(column), str) else "---:" for column in columns) + "|"
    for row in rows:
        yield "| " + " | ".join(cell(column, row.get(column, "")) for column in columns) + " |"


def cell(column: str, value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {cell(column, part)}" for name, part in value.items())
    return SHOWN.get(column, "{:.1f}".format)(value) if isinstance(value, float) else str(value)


def report(results: dict) -> Iterator[str]:
    machine = results["machine_info"]
    yield (
        f"{machine['cpu'].get('brand_raw', machine['machine'])}, {machine['cpu'].get('count')} processors, "
        f"Python {machine['python_version']}, {results['datetime'][:10]}"
    )
    rows = [run["extra_info"] | {"seconds": run["stats"]["median"]} for run in results["benchmarks"]]
    groups: list[tuple[str, Callable[[Row], bool], tuple[str, ...]]] = [
        (
            "Products of matrices, beside NumPy",
            lambda row: "NumPy GOP/s" in row,
            ("op", "isa", "shape", "milliseconds", "GOP/s", "NumPy GOP/s", "share"),
        ),
        (
            "Products of bytes and attention of many rows",
            lambda row: "GOP/s" in row and "NumPy GOP/s" not in row,
            ("op", "isa", "shape", "milliseconds", "GOP/s", "peak GOP/s", "share"),
        ),
        (
            "Reading memory",
            lambda row: "GB/s" in row,
            ("op", "isa", "shape", "milliseconds", "GB/s", "read GB/s", "share"),
        ),
        ("The default model", lambda row: "tokens/s" in row, ("what", "tokens/s")),
        ("Several texts at once", lambda row: "tokens/s by texts" in row, ("what", "tokens/s by texts")),
        (
            "Long contexts",
            lambda row: "step after 1900 over step after 32" in row,
            ("what", "step after 1900 over step after 32", "rate of 2000 over rate of 512"),
        ),
        ("Guessing", lambda row: "gain" in row and "tokens per pass" not in row, ("what", "gain")),
        (
            "Draft models",
            lambda row: "tokens per pass" in row,
            ("what", "gain", "tokens per pass", "bytes of the draft model over the model's"),
        ),
        ("Sampling", lambda row: "ms a token, few" in row, ("what", "ms a token, few", "ms a token, many")),
        (
            "Masks of constraints",
            lambda row: "ms a step" in row,
            ("what", "ms a step", "ms, 99 of 100 steps", "ms before the first"),
        ),
        ("Beams", lambda row: "ratio" in row, ("what", "ratio")),
        (
            "Streams beside long prompts",
            lambda row: "wait over a full pass" in row,
            ("what", "wait over a full pass", "full pass over a plain one"),
        ),
        ("Arrivals", lambda row: "rate over plain batches" in row, ("what", "rate over plain batches")),
        ("Adapters", lambda row: "over a step of the base" in row, ("what", "over a step of the base")),
        ("Looking inside", lambda row: "over a prompt" in row, ("what", "seconds", "prompt seconds", "over a prompt")),
        (
            "Looking inside, beside the specification",
            lambda row: "times the spec's speed" in row,
            ("what", "seconds", "spec seconds", "times the spec's speed"),
        ),
        ("Memory at load", lambda row: "peak MB" in row, ("what", "weights MB", "peak MB", "seconds")),
    ]
    for title, belongs, columns in groups:
        chosen = [row for row in rows if belongs(row)]
        if chosen:
            yield from ("", f"### {title}", "", *table(chosen, columns))


if __name__ == "__main__":
    print("\n".join(report(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
