"""The stage that measures: every group in turn, results into one JSON file that grows with each group."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks.peers.isa import ISAS
from benchmarks.peers.lineup import REFERENCE, SAME_MODEL, Group, chosen, groups, suffix
from benchmarks.peers.measure import run_group, wait_for_quiet
from benchmarks.peers.options import stage_parser
from benchmarks.peers.processors import build_peak, machine, peaks, read_buffer, read_rate

NOT_THE_MODEL = "its logits are not this model's, so its figures mean nothing"


def run(
    work: Path,
    n_layer: int,
    n_rounds: int,
    threads: int,
    patience: float,
    isa: str,
    wanted: str | None,
    family: str = "gptj",
) -> dict[str, Any]:
    """Measure the chosen engines; returns what is in results.json, or results-FAMILY.json."""
    logs = work / "logs"
    logs.mkdir(exist_ok=True)
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "family": family,
        "layers": n_layer,
        "rounds": n_rounds,
        "threads": threads,
        "patience": patience,
        "isa": isa,
        "groups": [],
        "engines": {},
        "yardsticks": [],
        "records": [],
    }
    peak, buffer = build_peak(work, isa), read_buffer()
    reference = np.load(models_of(results, work) / REFERENCE)
    for group in chosen(groups(threads, family), wanted):
        measure_group(group, work, results, peak, buffer, reference)
        (work / f"results{suffix(family)}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    return results


def models_of(results: dict[str, Any], work: Path) -> Path:
    """Where the models are that were measured."""
    return work / f"models{suffix(results['family'])}-{results['layers']}"


def measure_group(
    group: Group, work: Path, results: dict[str, Any], peak: Path | None, buffer: np.ndarray, reference: np.ndarray
) -> None:
    results["groups"].append({"title": group.title, "engines": [engine.name for engine in group.engines]})
    engines, n_rounds, models = results["engines"], results["rounds"], models_of(results, work)
    with tqdm(total=n_rounds + 1, desc=group.title, unit="round") as bar:
        for record in run_group(group, n_rounds, results["patience"], models, work / "logs"):
            match record:
                case {"failed": why, "engine": name}:
                    engines.setdefault(name, {})["failed"] = why
                    bar.write(f"{name}: left out: {why}")
                case {"logits": path, "engine": name}:
                    engines[name] |= agreement(np.load(path), reference, group.least_cosine)
                case {"about": _, "engine": name, **facts}:
                    engines[name] = {"about": record["about"], "threads": group.threads, **facts}
                case {"round": n, **rest} if not rest:
                    bar.update(n >= 0)
                    wait_for_quiet([os.getpid()], results["patience"])
                    yardsticks = {"read": read_rate(buffer, group.threads), **peaks(peak, group.threads)}
                    results["yardsticks"].append({"group": group.title, "round": n, **yardsticks})
                case _:
                    results["records"].append(record)
        bar.update()


def agreement(logits: np.ndarray, reference: np.ndarray, least: float = SAME_MODEL) -> dict[str, Any]:
    """How near an engine's logits after a prompt are to the spec's, by the cosine between the two."""
    a, b = logits.astype(np.float64), reference.astype(np.float64)
    cosine = float(a @ b / np.sqrt((a @ a) * (b @ b)))
    return {"cosine": cosine} if cosine >= least else {"cosine": cosine, "failed": NOT_THE_MODEL}


def main() -> None:
    parser = stage_parser()
    parser.add_argument("--isa", choices=ISAS, required=True)
    args = parser.parse_args()
    run(args.work, args.layers, args.rounds, args.threads, args.patience, args.isa, args.engines, args.family)


if __name__ == "__main__":
    main()
