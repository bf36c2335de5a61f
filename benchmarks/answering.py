"""What answering a file of prompts on many hosts costs: processor time of ``refgpt batch`` on a Ray cluster and alone.

    python -m benchmarks.answering [--requests 400] [--tokens 64] [--hosts 2] [-m MODEL]

Hosts are network namespaces of this machine (``benchmarks.hosts``: needs Linux, root, and the extra "ray"), which share
its processors, so that seconds say nothing. Processor time does: all processes of a host are counted, those of Ray too.
A short and a long file are answered, and the difference is reported, without the starts. If a host needs 1.05 times the
processor time of a single machine for a request, N independent hosts answer N / 1.05 times as many requests, until the
host of the command, whose processor time is reported too, is busy all the time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.hosts import RAY_ENVIRONMENT, Hosts, failed, obstacle, ray_address, start_ray
from benchmarks.quick import sized

#: The number of requests in the short file.
FEW = sized(32, 4)


class Meter:
    """Processor time of all processes on hosts, read again and again: Ray does not add up that of ended workers."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._seconds: list[dict[int, float]] = [{} for _ in range(hosts.n)]

    def read(self) -> list[float]:
        """-> seconds so far, by host"""
        for host, seconds in enumerate(self._seconds):
            for pid in self._hosts.pids(host):
                try:
                    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                except OSError:  # it has just ended
                    continue
                seconds[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return [sum(seconds.values()) for seconds in self._seconds]


def command(arguments: argparse.Namespace, path: Path, out: Path, *more: str) -> list[str]:
    """The command line of ``refgpt batch``. All texts have the same length, whatever tokens are sampled."""
    sampling = ["--seed", "1", "-n", str(arguments.tokens), "--ignore-eos", "-t", "1", "-q"]
    model = [] if arguments.model is None else ["-m", str(Path(arguments.model).resolve())]
    return [sys.executable, "-m", "refgpt", "batch", str(path), "-o", str(out), *sampling, *model, *more]


def alone(arguments: argparse.Namespace, path: Path, out: Path) -> float:
    """The processor time that one machine takes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command(arguments, path, out), check=True, env={**os.environ, **RAY_ENVIRONMENT})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def together(arguments: argparse.Namespace, hosts: Hosts, path: Path, out: Path, log: Path) -> tuple[float, float]:
    """-> the processor time of all workers' hosts, and that of the command's host"""
    meter = Meter(hosts)
    before = meter.read()
    process = hosts.start(0, command(arguments, path, out, "--ray-address", ray_address(hosts)), RAY_ENVIRONMENT, log)
    while process.poll() is None:
        after = meter.read()
        time.sleep(0.1)
    if process.returncode:
        raise failed(log)
    own, *workers = (a - b for a, b in zip(after, before, strict=True))
    return sum(workers), own


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a batch on many hosts with one machine.")
    add = parser.add_argument
    add("--requests", type=int, default=sized(400, 8), help="of the long file, beyond those of the short one")
    add("--tokens", type=int, default=sized(64, 4), help="of each answer")
    add("--hosts", type=int, default=2)
    add("--rounds", type=int, default=sized(3, 1))
    add("-m", "--model")
    arguments = parser.parse_args()
    if why := obstacle():
        parser.error(why)
    with (
        tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as directory,
        Hosts(arguments.hosts + 1) as hosts,
    ):
        place = Path(directory)
        files = {}
        for name, n in (("few", FEW), ("many", FEW + arguments.requests)):
            files[name] = place / f"{name}.jsonl"
            files[name].write_text("".join(json.dumps({"prompt": f"{i}: Once upon a time"}) + "\n" for i in range(n)))
        for host in range(arguments.hosts + 1):
            start_ray(hosts, host, place)
        found = []
        for _ in range(arguments.rounds):
            one = {name: alone(arguments, path, place / f"alone-{name}.jsonl") for name, path in files.items()}
            many = {}
            for name, path in files.items():
                many[name] = together(arguments, hosts, path, place / f"hosts-{name}.jsonl", place / "log")
                if (place / f"alone-{name}.jsonl").read_bytes() != (place / f"hosts-{name}.jsonl").read_bytes():
                    raise SystemExit("the records differ")
            workers, own = (many["many"][i] - many["few"][i] for i in range(2))
            found.append((one["many"] - one["few"], workers, own))
        print("| alone, ms a request | on hosts | ratio | of the command | workers that one command can serve |")
        print("|---:|---:|---:|---:|---:|")
        for single, workers, own in sorted(found, key=lambda three: three[1] / three[0]):
            each = [1000 * seconds / arguments.requests for seconds in (single, workers, own)]
            serves = workers / own if own > 0 else float("inf")
            print(f"| {each[0]:.1f} | {each[1]:.1f} | {workers / single:.3f} | {each[2]:.2f} | {serves:.0f} |")


if __name__ == "__main__":
    main()
