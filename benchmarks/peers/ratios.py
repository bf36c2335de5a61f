"""From records to figures: medians over rounds, ratios within a round, shares of what the machine can do.

``results`` is everywhere what ``run`` writes to results.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

Results = Mapping[str, Any]


@dataclass(frozen=True)
class Spread:
    """What some rounds gave."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """None of no values."""
        found = list(values)
        return cls(median(found), min(found), max(found)) if found else None


def by_round(results: Results, engine: str, what: str, field: str = "tokens/s") -> dict[int, float]:
    """One field of one figure of one engine, for each round that has it."""
    return {r["round"]: r[field] for r in results["records"] if r["engine"] == engine and r["what"] == what}


def rate(results: Results, engine: str, what: str) -> Spread | None:
    """Tokens a second."""
    return Spread.of(by_round(results, engine, what).values())


def ratio(results: Results, engine: str, other: str, what: str) -> Spread | None:
    """How many times the other's tokens a second the engine reaches: the spread of what each round says."""
    mine, theirs = by_round(results, engine, what), by_round(results, other, what)
    return Spread.of(mine[n] / theirs[n] for n in mine.keys() & theirs.keys())


def yardstick(results: Results, group: str, name: str) -> dict[int, float]:
    """What the machine could do in each round of a group: "read" GB/s, "float32" or "int8" 10^9 operations a second."""
    return {y["round"]: y[name] for y in results["yardsticks"] if y["group"] == group and name in y}


def read_share(results: Results, group: str, engine: str, what: str) -> Spread | None:
    """Of the rate at which memory can be read, the share that reading the weights for each token amounts to."""
    rates, read = by_round(results, engine, what), yardstick(results, group, "read")
    n_bytes = results["engines"][engine].get("n_bytes", 0)
    return Spread.of(rates[n] * n_bytes / 1e9 / read[n] for n in rates.keys() & read.keys())


def peak(results: Results, threads: int, kind: str) -> float | None:
    """The best of all rounds with so many threads: what disturbs the measurement of a ceiling can only lower it."""
    engines = results["engines"]
    groups = {
        group["title"]
        for group in results["groups"]
        if any(engines.get(name, {}).get("threads") == threads for name in group["engines"])
    }
    return max((y[kind] for y in results["yardsticks"] if y["group"] in groups and kind in y), default=None)


def peak_share(results: Results, engine: str, what: str, ops_per_token: float, kind: str) -> Spread | None:
    """Of the peak rate of multiply-adds, the share that the matrices' arithmetic for each token amounts to."""
    ceiling = peak(results, results["engines"][engine]["threads"], kind)
    return ceiling and Spread.of(n * ops_per_token / 1e9 / ceiling for n in by_round(results, engine, what).values())


def prefill_ops(
    n_layer: int, n_prompt: int, d_model: int = 4096, d_ff: int = 16384, n_vocab: int = 50400, whole: bool = True
) -> float:
    """Operations a token in the matrices of a prompt, whose last token alone needs the head; attention left out.

    An engine that does not compute the ``whole`` last block takes all tokens but one only through two of its matrices,
    for keys and values.
    """
    block, kv = 4 * d_model**2 + 2 * d_model * d_ff, 2 * d_model**2
    saved = 0 if whole else (block - kv) * (n_prompt - 1) / n_prompt
    return 2 * (n_layer * block - saved + n_vocab * d_model / n_prompt)
