"""The measurement: engines in processes of their own, asked in turn, so that all see the same machine.

A round asks every question once of every engine of a group; neighbours in a round are seconds apart, and so is what a
ratio compares. While one engine works the others wait for their input, and what the rest of the machine does meanwhile
is in the record.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.lineup import Engine, Group
from benchmarks.peers.processors import CpuTimes, shares
from benchmarks.peers.questions import N_REFERENCE, QUIET, figures
from benchmarks.quick import sized

ROOT = Path(__file__).resolve().parents[2]
LOAD_SECONDS, ANSWER_SECONDS, END_SECONDS = 600, 300, 10
#: OpenMP's threads look for work for some milliseconds before they sleep; other runtimes' for up to 200.
PAUSE = sized(0.3, 0.01)
#: A measurement waits, for a while, until the machine is quiet. If strangers come back meanwhile it is made again, and
#: of all tries the one that was disturbed least is told.
TRIES = 3

Record = dict[str, Any]


class EngineFailed(Exception):
    """An engine that cannot be measured (further); the text says why."""


class Worker:
    """A running engine."""

    def __init__(self, engine: Engine, models: Path, logs: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.peers.worker", engine.adapter, str(models / engine.form)]
        self.log = logs / f"{engine.name.replace(' ', '-')}.log"
        with self.log.open("w") as errors:
            self.process = subprocess.Popen(
                [*command, engine.precision, str(engine.threads)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=os.environ | {"OMP_NUM_THREADS": str(engine.threads), "HF_HUB_OFFLINE": "1"},
            )

    def close(self) -> None:
        """End the process: it stops when its input does."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def ask(self, question: dict[str, Any], timeout: float = ANSWER_SECONDS) -> dict[str, Any]:
        """The answer to one question, or EngineFailed."""
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise EngineFailed(self._obituary()) from None
        return self.read(timeout)

    def read(self, timeout: float) -> dict[str, Any]:
        """The next line; answers are short and come whole."""
        deadline, line = time.monotonic() + timeout, b""
        while not line.endswith(b"\n"):
            if not select.select([self.process.stdout], [], [], max(deadline - time.monotonic(), 0))[0]:
                self.process.kill()
                raise EngineFailed(f"no answer within {timeout:.0f} s")
            some = os.read(self.process.stdout.fileno(), 1 << 16)
            if not some:
                raise EngineFailed(self._obituary())
            line += some
        answer = json.loads(line)
        if "error" in answer:
            raise EngineFailed(answer["error"])
        return answer

    def _obituary(self) -> str:
        status = self.process.wait()
        last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
        return f"ended with status {status}" + "".join(f": {line}" for line in last)


def run_group(group: Group, n_rounds: int, patience: float, models: Path, logs: Path) -> Iterator[Record]:
    """Load a group's engines, ask them in turn, let them go.

    Yields records: {"engine", "about", ...} of one that loaded, {"engine", "failed"} of one that did not or broke,
    {"round"} when a round begins, and {"engine", "round", "what", "tokens/s", shares ...}. Round -1 warms up: what it
    measures is not told. Before it comes {"engine", "logits"}: where an engine's logits after a prompt are.
    ``patience`` is how many seconds a measurement waits for a quiet machine.
    """
    workers: dict[str, Worker] = {}

    def failed(name: str, fault: EngineFailed) -> Record:
        workers.pop(name).close()
        return {"engine": name, "failed": str(fault)}

    try:
        for engine in group.engines:
            workers[engine.name] = worker = Worker(engine, models, logs)
            try:
                yield {"engine": engine.name, **worker.read(LOAD_SECONDS)}
                path = logs / f"{worker.log.stem}.npy"
                worker.ask({"do": "logits", "n_prompt": N_REFERENCE, "path": str(path)})
                yield {"engine": engine.name, "logits": str(path)}
            except EngineFailed as fault:
                yield failed(engine.name, fault)
        for n in range(-1, n_rounds):
            yield {"round": n}
            for question in group.questions:
                for name in turn(list(workers), n):
                    try:
                        records = measured(workers, name, question, TRIES if patience and n >= 0 else 1, patience)
                    except EngineFailed as fault:
                        yield failed(name, fault)
                        continue
                    if n >= 0:
                        yield from ({"engine": name, "round": n, **record} for record in records)
    finally:
        for worker in workers.values():
            worker.close()


def turn(names: list[str], n: int) -> list[str]:
    """Another goes first in each round."""
    start = n % len(names) if names else 0
    return names[start:] + names[:start]


def measured(workers: dict[str, Worker], name: str, question: Record, tries: int, patience: float) -> list[Record]:
    """One question's figures, with what went on around it."""
    pids = [os.getpid(), *(worker.process.pid for worker in workers.values())]
    found: list[tuple[float, list[Record]]] = []
    while len(found) < tries and (not found or found[-1][0] > QUIET):
        wait_for_quiet(pids, patience)
        before, start = CpuTimes.now(pids), time.perf_counter()
        answer = workers[name].ask(question)
        around = shares(before, CpuTimes.now(pids), time.perf_counter() - start, workers[name].process.pid)
        facts = {"peak_bytes": answer["peak_bytes"], **around}
        figures_ = [{"what": what, "tokens/s": rate, **facts} for what, rate in figures(question, answer)]
        found.append((around["strangers"], figures_))
    return min(found, key=lambda try_: try_[0])[1]


def wait_for_quiet(pids: Sequence[int], patience: float) -> None:
    """Pause until nothing much runs on the machine, but not for ever."""
    deadline = time.monotonic() + patience
    while True:
        before, start = CpuTimes.now(pids), time.perf_counter()
        time.sleep(PAUSE)
        around = shares(before, CpuTimes.now(pids), time.perf_counter() - start, pids[0])
        if around["strangers"] + around["waiting engines"] < QUIET or time.monotonic() > deadline:
            return
