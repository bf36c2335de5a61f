"""Rounds of a training on four hosts: how long they take and how many bytes they move, beside what is simulated.

    python -m benchmarks.rounds TEXT... [--megabits 100] [-o tests/data/rounds.json]

``refgpt finetune --workers 4`` trains the included model on hosts that are network namespaces of this machine
(``benchmarks.hosts``: needs Linux, root, and the extra "ray"), with each method twice: first over links without a
limit, from which the seconds of a step and those of the coordinator are fitted, then over slow links. The simulation
of ``refgpt.cluster.simulation`` has to say how long the rounds over slow links take, and how many bytes the
interfaces count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hosts import RAY_ENVIRONMENT, Hosts, failed, obstacle, ray_address, start_ray
from benchmarks.quick import sized
from refgpt.cluster.bill import message_bytes
from refgpt.cluster.compression import parse_compression
from refgpt.cluster.simulation import Fleet, simulate

N_WORKERS = 4
METHODS = sized("f16;int4;topk:0.03,bits:2", "int4")
#: The share of payload in an Ethernet frame of TCP.
PAYLOAD = 1448 / 1514
#: Rounds at the beginning that are left out.
STARTING = 2
IDLE = sized(10.0, 1.0)  # seconds in which Ray's own bytes are counted


def predicted(one: dict[str, Any], computing: bool = True) -> dict[str, float]:
    """What is simulated for a measurement that ``measure`` has made: seconds of all rounds, and bytes of a worker.

    The first rounds of a run are left out, in which workers start and memory is used first. Without ``computing`` only
    the links take time.
    """
    per_step, rest = computing_seconds(one) if computing else (0.0, 0.0)
    rate = 1e6 * one["megabits"] * PAYLOAD
    fleet = Fleet(np.full(N_WORKERS, max(1e-6, per_step)), np.full(N_WORKERS, rate), rate)
    size = message_bytes(parse_compression(one["compress"]), one["n_trained"])
    lengths = one["slow"]["steps"]
    found = simulate(fleet, [range(n) for n in lengths[STARTING:]], size, size, 0.0, coordinator_seconds=rest)
    n_bytes = len(lengths) * size / PAYLOAD + one["chatter"] * one["slow"]["whole"]
    return {"per_step": per_step, "coordinator": rest, "seconds": float(found.seconds), "bytes": n_bytes}


def computing_seconds(one: dict[str, Any]) -> tuple[float, float]:
    """Seconds of a step, and of the rest of a round, fitted to the rounds over links without a limit."""
    steps, seconds = (np.array(one["free"][name], np.float64)[STARTING:] for name in ("steps", "seconds"))
    per_step, rest = np.linalg.lstsq(np.stack([steps, np.ones_like(steps)], 1), seconds, rcond=None)[0]
    if per_step < 0:  # the machine was busy with other work
        return 0.0, float(seconds.mean())
    return (float(per_step), float(rest)) if rest >= 0 else (float(seconds.sum() / steps.sum()), 0.0)


def measured(one: dict[str, Any]) -> dict[str, float]:
    """The same as ``predicted``, as it was measured."""
    return {"seconds": float(sum(one["slow"]["seconds"][STARTING:])), "bytes": one["slow"]["bytes"]}


def train(arguments: argparse.Namespace, hosts: Hosts, place: Path, compress: str) -> dict[str, Any]:
    """-> steps and seconds of each round, the bytes of a worker, and the seconds of the whole command"""
    name = f"{compress.partition(':')[0]}{time.monotonic_ns()}"
    options = [
        "--full",
        "--lr",
        1e-4,
        "--iters",
        arguments.steps,
        "--batch-size",
        arguments.batch,
        "--data",
        place / "t.txt",
    ]
    options += ["--max-seq-length", arguments.length, "--workers", N_WORKERS, "--sync", f"random:{arguments.p}"]
    options += ["--compress", compress, "--address", ray_address(hosts), "-o", place / name]
    workers = range(1, N_WORKERS + 1)
    before, began = [hosts.n_bytes(i) for i in workers], time.monotonic()
    command = [sys.executable, "-m", "refgpt", "finetune", *map(str, options)]
    if hosts.start(0, command, RAY_ENVIRONMENT, place / f"{name}.log").wait():
        raise failed(place / f"{name}.log")
    whole, after = time.monotonic() - began, [hosts.n_bytes(i) for i in workers]
    lines = [json.loads(line) for line in (place / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    rounds = [line for line in lines if "sent" in line]
    late = [line["step"] for line in rounds if len(line["workers"]) < N_WORKERS]
    if late:
        raise SystemExit(f"workers were late: the rounds that end with steps {late}")
    sent = [max(a[0] - b[0], a[1] - b[1]) for b, a in zip(before, after, strict=True)]
    return {
        "steps": np.diff([0, *(line["step"] for line in rounds)]).tolist(),
        "seconds": [line["seconds"] for line in rounds],
        "bytes": float(np.mean(sent)),
        "whole": round(whole, 3),
    }


def measure(arguments: argparse.Namespace) -> None:
    """Measure all methods on one cluster, and write and print each."""
    found: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as directory,
        Hosts(N_WORKERS + 1) as hosts,
    ):
        place = Path(directory)
        text = "\n".join(path.read_text(encoding="utf-8") for path in arguments.texts)
        (place / "t.txt").write_text(text[: arguments.characters], encoding="utf-8")
        for host in range(N_WORKERS + 1):
            start_ray(hosts, host, place)
        before = [hosts.n_bytes(i) for i in range(1, N_WORKERS + 1)]
        time.sleep(IDLE)
        after = [hosts.n_bytes(i) for i in range(1, N_WORKERS + 1)]
        chatter = float(np.mean([max(a[0] - b[0], a[1] - b[1]) for b, a in zip(before, after, strict=True)])) / IDLE
        n_trained = count_parameters()
        for compress in arguments.methods.split(";"):
            hosts.limit(None)
            free = train(arguments, hosts, place, compress)
            hosts.limit(arguments.megabits)
            slow = train(arguments, hosts, place, compress)
            found.append(
                {
                    "compress": compress,
                    "megabits": arguments.megabits,
                    "n_trained": n_trained,
                    "chatter": chatter,
                    "free": free,
                    "slow": slow,
                }
            )
            print(row(found[-1]), flush=True)
            if arguments.output is not None:
                arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def count_parameters() -> int:
    """The number of parameters of the included model."""
    from refgpt._open import open_model

    return int(open_model(None, tokenizer=False)[0].params.size)


def row(one: dict[str, Any]) -> str:
    """A line of the table."""
    simulated, counted = predicted(one), measured(one)
    errors = {name: simulated[name] / counted[name] - 1 for name in counted}
    cells = f"{simulated['per_step']:.2f} | {simulated['coordinator']:.2f} | {len(one['slow']['steps']) - STARTING}"
    cells += f" | {counted['seconds']:.1f} | {simulated['seconds']:.1f} | {errors['seconds']:+.1%}"
    cells += f" | {counted['bytes'] / 1e6:.2f} | {simulated['bytes'] / 1e6:.2f} | {errors['bytes']:+.1%}"
    return f"| {one['compress']} | {cells} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare rounds on four hosts with their simulation.")
    add = parser.add_argument
    add("texts", type=Path, nargs="+")
    add("--megabits", type=float, default=100.0, help="the rate of each host's link, in each direction")
    add("--steps", type=int, default=sized(40, 6))
    add("--batch", type=int, default=1, help="rows of one worker's step")
    add("--length", type=int, default=sized(32, 16), help="tokens of a row")
    add("--p", type=float, default=sized(0.3, 0.5), help="the probability of an exchange after a step")
    add("--methods", default=METHODS, help="with semicolons between")
    add("--characters", type=int, default=200_000, help="characters of the texts that are used")
    add("-o", "--output", type=Path, help="JSON with all measurements")
    arguments = parser.parse_args()
    if why := obstacle():
        parser.error(why)
    print("| method | s a step | coordinator, s | rounds | s | simulated | error | MB | simulated | error |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    measure(arguments)


if __name__ == "__main__":
    main()
