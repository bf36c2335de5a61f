"""Fine-tune the included model on four hosts with slow links; measure the bytes of their interfaces, time, and loss.

    python -m benchmarks.links TEXT... [--megabits 100] [--ring-rate 3e-4] [--rate 3e-4] [-o results.json]

Hosts are network namespaces of this machine (``benchmarks.hosts``: needs Linux and root). Trainings with the same
texts, steps and batches for each worker are compared:

- a ring: after every step the gradients go around it in float16 (``benchmarks.ring``: needs the extra "mpi");
- ``refgpt finetune --full`` in one process, with the batches of all workers together: the loss that others are compared
  with. The ring draws rows at random; the command reads each row once in a pass, and its loss is a little lower;
- ``refgpt finetune --full --workers 4`` on Ray (the extra "ray"), with the exchange of each ``--exchange``.

The bytes are all that a worker's interface has sent and received in the training. Ray's own traffic is measured before
the training, on idle hosts, and printed separately; it is not subtracted. With ``--faults`` one worker
is killed half-way, and one host is lost and replaced by another. With ``-o`` every finished training is kept in the
file and not repeated: the ring takes longest.
The hosts share the processors of this machine, so these trainings compute more slowly than on four machines, where the
links would take a larger share of the time.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import refgpt
from benchmarks.frontier import Runs, Setting, add_setting, setting_of, told_of
from benchmarks.hosts import RAY_ENVIRONMENT, Hosts, failed, n_alive, obstacle, ray_address, start_ray
from refgpt.cluster.on_ray import Actor
from refgpt.training import Trainer

N_WORKERS = 4
RING, ALONE, EXCHANGE = "ring of float16", "one process", "--sync random:0.04 --compress int4"
#: MPICH's ranks find that they are on one machine, and would exchange through its memory.
OVER_THE_LINKS = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self", "FI_PROVIDER": "tcp"}
IDLE = 20.0  # seconds in which Ray's own bytes are counted


def moved(before: list[tuple[int, int]], after: list[tuple[int, int]]) -> list[int]:
    """Bytes that each host has sent or received: the larger of the two."""
    return [max(b[0] - a[0], b[1] - a[1]) for a, b in zip(before, after, strict=True)]


def run_ring(arguments: argparse.Namespace, place: Path) -> dict:
    """Train over MPI."""
    with Hosts(N_WORKERS, megabits=arguments.megabits) as hosts:
        launcher = place / "launch"  # what mpiexec takes for ssh: a host's address and a command
        cases = "\n".join(f"{hosts.address(i)}) name={hosts.name(i)} ;;" for i in range(N_WORKERS))
        launcher.write_text(
            '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift; done\n'
            f'case "$1" in\n{cases}\nesac\nshift\nexec ip netns exec "$name" sh -c "$*"\n'
        )
        launcher.chmod(0o755)
        mpiexec = shutil.which("mpiexec", path=str(Path(sys.executable).parent)) or shutil.which("mpiexec")
        if mpiexec is None:
            raise SystemExit('there is no mpiexec; python -m pip install "refgpt[mpi]"')
        addresses = ",".join(hosts.address(i) for i in range(N_WORKERS))
        how = [
            "-launcher",
            "ssh",
            "-launcher-exec",
            str(launcher),
            "-hosts",
            addresses,
            "-n",
            str(N_WORKERS),
            "-ppn",
            "1",
        ]
        what = ["--rate", str(arguments.ring_rate), *same(arguments), "-o", str(place / "ring")]
        before = [hosts.n_bytes(i) for i in range(N_WORKERS)]
        command = [mpiexec, *how, sys.executable, "-m", "benchmarks.ring", *map(str, arguments.texts), *what]
        process = hosts.start(0, command, {**RAY_ENVIRONMENT, **OVER_THE_LINKS}, place / "ring.log")
        if process.wait():
            raise failed(place / "ring.log")
        counted = moved(before, [hosts.n_bytes(i) for i in range(N_WORKERS)])
    seconds = json.loads((place / "ring" / "result.json").read_text(encoding="utf-8"))["seconds"]
    return {"bytes": float(np.mean(counted)), "seconds": seconds, "path": place / "ring/model"}


def finetune_command(
    arguments: argparse.Namespace, setting: Setting, rate: float, batch: int, place: Path
) -> list[str]:
    """Write the texts to files. -> the command that trains, without the options for several workers"""
    tokenizer = refgpt.load(setting.model).tokenizer
    train, valid = place / "train.txt", place / "valid.txt"
    train.write_text(tokenizer.decode(setting.rows.ravel().tolist()), encoding="utf-8")
    valid.write_text(tokenizer.decode(setting.held[0].ids.ravel().tolist()), encoding="utf-8")
    options = ["--full", "--data", train, "--valid", valid, "--eval-every", arguments.steps, "-o", place / "out"]
    options += ["--lr", rate, "--iters", arguments.steps, "--batch-size", batch, "--no-eos"]
    options += ["--max-seq-length", arguments.length, "--warmup", setting.warmup, "--floor", 0.1, "--betas", 0.9, 0.95]
    options += ["--optimizer", setting.optimiser, "--weight-decay", 0.01, "--dtype", "f32"]
    options += ["--compute", setting.compute, *([] if setting.model is None else ["-m", setting.model])]
    return [sys.executable, "-m", "refgpt", "finetune", *map(str, options)]


def run_alone(arguments: argparse.Namespace, setting: Setting, place: Path) -> dict:
    """Train by the command, in one process."""
    command = finetune_command(arguments, setting, arguments.ring_rate, N_WORKERS * arguments.batch, place)
    start = time.perf_counter()
    with (place / "finetune.log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log).returncode
    if code:
        raise failed(place / "finetune.log")
    return {"seconds": time.perf_counter() - start, "path": place / "out"}


def run_on_hosts(arguments: argparse.Namespace, setting: Setting, exchange: str, place: Path) -> dict:
    """Train by the command, on Ray."""
    command = finetune_command(arguments, setting, arguments.rate, arguments.batch, place)
    command += ["--workers", str(N_WORKERS), *shlex.split(exchange), "--deadline", "10"]
    workers = range(1, N_WORKERS + 1)
    with Hosts(N_WORKERS + 1 + arguments.faults, megabits=arguments.megabits) as hosts:
        for host in range(N_WORKERS + 1):
            start_ray(hosts, host, place)
        before = [hosts.n_bytes(i) for i in workers]
        time.sleep(IDLE)
        idle = [hosts.n_bytes(i) for i in workers]
        chatter = float(np.mean(moved(before, idle))) / IDLE
        command += ["--address", ray_address(hosts)]
        metrics, start, lost = place / "out" / "metrics.jsonl", time.perf_counter(), not arguments.faults
        process = hosts.start(0, command, RAY_ENVIRONMENT, place / "finetune.log")
        while process.poll() is None:
            time.sleep(0.2)
            if not lost and steps_done(metrics) >= arguments.steps // 2:
                hosts.kill_actors(1, Actor.__name__)
                replace_host(hosts, place)
                lost = True
        seconds = time.perf_counter() - start
        if process.returncode:
            raise failed(place / "finetune.log")
        if not lost:
            raise SystemExit("the training has ended before the faults")
        counted = moved(idle, [hosts.n_bytes(i) for i in workers])[: N_WORKERS - arguments.faults]
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    payload = max(max(line["sent"], line["received"]) for line in lines if "sent" in line)
    return {
        "bytes": float(np.mean(counted)),
        "seconds": seconds,
        "chatter": chatter * seconds,
        "payload": payload,
        "path": place / "out",
    }


def replace_host(hosts: Hosts, place: Path) -> None:
    """Lose the last worker's host, and let another one join when the cluster has noticed."""
    hosts.kill(N_WORKERS)
    while n_alive(hosts, place) > N_WORKERS:
        time.sleep(1)
    start_ray(hosts, N_WORKERS + 1, place, others=N_WORKERS)


def steps_done(metrics: Path) -> int:
    """The last step in the command's log."""
    if not metrics.exists():
        return 0
    lines = [line for line in metrics.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return max((json.loads(line).get("step", 0) for line in lines), default=0)


def same(arguments: argparse.Namespace) -> list[str]:
    """The ring's options that are the same in all trainings."""
    model = [] if arguments.model is None else ["-m", str(arguments.model)]
    sizes = "--steps", str(arguments.steps), "--batch", str(arguments.batch), "--length", str(arguments.length)
    return [*sizes, *model, "--compute", arguments.compute, "--optimiser", arguments.optimiser]


def loss_of(path: Path, setting: Setting) -> float:
    """A written model's loss on the text of the report."""
    model = refgpt.load(path, dtype="f32", tokenizer=False)
    return Trainer(model).step([setting.held[1]], 0.0).loss


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure bytes, time and loss on hosts with slow links.")
    parser.set_defaults(workers=N_WORKERS)
    add_setting(parser)
    add = parser.add_argument
    add("--megabits", type=float, default=100.0, help="the rate of each host's link, in each direction")
    add("--ring-rate", type=float, default=3e-4, help="the learning rate's peak for the ring and one process")
    add("--rate", type=float, default=3e-4, help="the learning rate's peak on hosts")
    add("--exchange", action="append", help=f"options of refgpt finetune; may be repeated (default: {EXCHANGE})")
    add("--faults", action="store_true", help="half-way, kill a worker, and lose a host and replace it")
    add("-o", "--output", type=Path, help="JSON with every training")
    arguments = parser.parse_args()
    if why := obstacle():
        parser.error(why)
    arguments.texts = [path.resolve() for path in arguments.texts]
    arguments.model = None if arguments.model is None else arguments.model.resolve()
    setting = setting_of(arguments, N_WORKERS)
    told = told_of(arguments, setting) | {"megabits": str(arguments.megabits)}
    runs = Runs(told, arguments.output)
    wanted = [(RING, arguments.ring_rate, False), (ALONE, arguments.ring_rate, False)]
    wanted += [(exchange, arguments.rate, arguments.faults) for exchange in arguments.exchange or [EXCHANGE]]
    for name, rate, faults in wanted:
        if any((one["name"], one["rate"], one["faults"]) == (name, rate, faults) for one in runs.done):
            continue
        with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as directory:
            place = Path(directory)
            if name == RING:
                found = run_ring(arguments, place)
            elif name == ALONE:
                found = run_alone(arguments, setting, place)
            else:
                found = run_on_hosts(arguments, setting, name, place)
            loss = loss_of(found.pop("path"), setting)
        runs.keep({"name": name, "rate": rate, "faults": faults, **found, "loss": loss})
    print(f"loss before: {told['before']}\n")
    print(table(runs.done, arguments.ring_rate))


def table(runs: list[dict], ring_rate: float) -> str:
    """A line for each training: bytes compared with the ring's, losses with one process's, both at a learning rate."""
    at_ring_rate = {run["name"]: run for run in runs if run["rate"] == ring_rate}
    ring, alone = at_ring_rate[RING], at_ring_rate[ALONE]
    names = "exchange", "rate", "a worker moves", "less by", "of that Ray's own", "messages", "seconds", "loss", "ratio"
    lines = [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(names) - 1)}"]
    for run in runs:
        name = run["name"] + (", a worker killed and a host replaced" if run["faults"] else "")
        own = f"{run['chatter'] / 1e6:.2f} MB | {run['payload'] / 1e6:.2f} MB" if "chatter" in run else "- | -"
        less = f"{run['bytes'] / 1e6:.1f} MB | {ring['bytes'] / run['bytes']:.0f} x" if "bytes" in run else "- | -"
        cells = f"{less} | {own} | {run['seconds']:.0f} | {run['loss']:.4f} | {run['loss'] / alone['loss']:.4f}"
        lines.append(f"| {name} | {run['rate']:g} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
