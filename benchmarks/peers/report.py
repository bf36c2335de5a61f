"""The results as Markdown: results.json -> results.md.

python -m benchmarks.peers.report DIRECTORY gptj
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from benchmarks.peers.families import FAMILIES
from benchmarks.peers.lineup import LAST_BLOCK_IN_PART, suffix
from benchmarks.peers.questions import DECODES, PREFILLS, QUIET, TOGETHER
from benchmarks.peers.ratios import Results, Spread, peak_share, prefill_ops, rate, ratio, read_share, yardstick


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|---|" + "---:|" * (len(columns) - 1)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def number(value: float | None) -> str:
    """Three digits that count, or a dash."""
    if value is None:
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def middle(spread: Spread | None) -> str:
    return number(spread.median if spread else None)


def joined(cells: Sequence[str]) -> str:
    """Cells as "a / b / c"; one dash if there is nothing in any."""
    return " / ".join(cells) if set(cells) != {"–"} else "–"


def span(spread: Spread | None) -> str:
    """Median, and in brackets the least and most."""
    return f"{spread.median:.2f} ({spread.least:.2f}–{spread.most:.2f})" if spread else "–"


def percent(spread: Spread | None) -> str:
    return f"{spread.median:.0%}" if spread else "–"


def measured(results: Results, group: dict) -> list[str]:
    """The group's engines that gave figures."""
    return [name for name in group["engines"] if any(r["engine"] == name for r in results["records"])]


def speed_rows(results: Results, group: dict) -> Iterator[list[str]]:
    for name in measured(results, group):
        yield [
            name,
            joined([middle(rate(results, name, f"prefill {n}")) for n in PREFILLS]),
            joined([middle(rate(results, name, f"decode after {n}")) for n in DECODES]),
            middle(rate(results, name, TOGETHER)),
        ]


def ratio_rows(results: Results, group: dict) -> Iterator[list[str]]:
    """refgpt over each of its peers."""
    ours, *peers = group["engines"]
    for peer in peers:
        whats = [*(f"prefill {n}" for n in PREFILLS), *(f"decode after {n}" for n in DECODES), TOGETHER]
        spreads = [ratio(results, ours, peer, what) for what in whats]
        if any(spreads):
            yield [f"{ours} / {peer}", *map(span, spreads)]


def widths(results: Results) -> tuple[int, int, int]:
    """What ``prefill_ops`` asks of a shape."""
    config = FAMILIES[results.get("family", "gptj")].config(1)
    return config.d_model, config.d_ff, config.n_vocab


def machine_rows(results: Results, group: dict) -> Iterator[list[str]]:
    title = group["title"]
    for name in measured(results, group):
        whole = not name.startswith(LAST_BLOCK_IN_PART)
        ops = prefill_ops(results["layers"], PREFILLS[-1], *widths(results), whole=whole)
        facts = results["engines"][name]
        mine = [r for r in results["records"] if r["engine"] == name]
        decodes = [percent(read_share(results, title, name, f"decode after {n}")) for n in DECODES]
        prefill = [
            percent(peak_share(results, name, f"prefill {PREFILLS[-1]}", ops, kind)) for kind in ("float32", "int8")
        ]
        others = [mean(r[who] for r in mine) for who in ("strangers", "waiting engines", "host")]
        yield [
            name,
            f"{facts['n_bytes'] / 1e9:.2f}",
            joined(decodes),
            joined(prefill),
            f"{facts['load_seconds']:.1f}",
            f"{max(r['peak_bytes'] for r in mine) / 1e9:.1f}",
            f"{facts['cosine']:.4f}",
            joined([f"{share:.1%}" for share in others]),
        ]


def held_to(results: Results) -> str:
    isa = results.get("isa", "native")
    return "" if isa == "native" else f" Every engine was held to {isa}."


def report(results: Results) -> Iterator[str]:
    machine, groups = results["machine"], results["groups"]
    family = FAMILIES[results.get("family", "gptj")]
    yield (
        f"{machine['cpu']}, {machine['processors']} processors ({', '.join(machine['flags'])}), "
        f"{machine['memory'] / 1e9:.0f} GB, {machine['system']}, Python {machine['python']}, {results['date']}. "
        f"{results['layers']} of {family.title}'s {family.n_layer} layers, {results['threads']} threads, medians of "
        f"{results['rounds']} "
        f"rounds.{held_to(results)}"
    )
    versions = {
        key: value
        for facts in results["engines"].values()
        for key, value in facts.get("about", {}).items()
        if key not in {"system", "isa", "compute type", "attention"}
    }
    yield from ("", "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")
    for facts in results["engines"].values():
        if system := facts.get("about", {}).get("system"):
            yield from ("", f"llama.cpp says: {system.strip()}")
            break
    taken = [record["strangers"] for record in results["records"]]
    if taken and (busy := mean(taken)) > QUIET:
        yield from (
            "",
            f"**The machine was not quiet: strangers took {busy:.0%} of the processors, which engines bear "
            "very differently. Measure again on a quiet machine.**",
        )
    yield from ("", "### Tokens a second", "")
    columns = [
        "engine",
        f"prefill {' / '.join(map(str, PREFILLS))}",
        f"decode after {DECODES[0]} / after {DECODES[1]}",
        f"{TOGETHER} decode, total",
    ]
    yield from table(columns, [row for group in groups for row in speed_rows(results, group)])
    rows = [row for group in groups for row in ratio_rows(results, group)]
    if rows:
        yield from ("", "### Ratios", "", "Within a round; the median of the rounds, and least and most.", "")
        whats = [f"prefill {n}" for n in PREFILLS] + [f"decode after {n}" for n in DECODES]
        yield from table(["refgpt / peer", *whats, TOGETHER], rows)
    yield from ("", "### The machine's share", "")
    yield from table(
        [
            "engine",
            "weights a token, GB",
            f"of reading, decode after {DECODES[0]} / {DECODES[1]}",
            f"of float32 / int8 peak, prefill {PREFILLS[-1]}",
            "load, s",
            "peak RSS, GB",
            "cosine with the spec",
            "processors taken by strangers / waiting engines / the host",
        ],
        [row for group in groups for row in machine_rows(results, group)],
    )
    yield from ("", "Yardsticks, medians: " + "; ".join(yardsticks(results, group) for group in groups) + ".")
    failures = {name: facts["failed"] for name, facts in results["engines"].items() if "failed" in facts}
    if failures:
        yield from ("", "### Left out", "")
        yield from (f"- {name}: {why}" for name, why in failures.items())


def yardsticks(results: Results, group: dict) -> str:
    units = {"read": "GB/s read", "float32": "GFLOP/s in float32", "int8": "Gop/s in 8 bits"}
    found = {unit: Spread.of(yardstick(results, group["title"], name).values()) for name, unit in units.items()}
    return f"{group['title']}: " + ", ".join(f"{middle(spread)} {unit}" for unit, spread in found.items() if spread)


def main() -> None:
    work, name = Path(sys.argv[1]), f"results{suffix(sys.argv[2])}"
    text = "\n".join(report(json.loads((work / f"{name}.json").read_text(encoding="utf-8")))) + "\n"
    (work / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
