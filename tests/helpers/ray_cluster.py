"""A Ray cluster of two nodes on this machine, and jobs for its workers that need no model."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from refgpt._common.errors import RefgptError
from refgpt.cluster.host_worker import Source

ROOT = Path(__file__).parents[2]
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}


#: Makes Ray use the loopback address, as it does on macOS and Windows: addresses of 127.0.0.1 stay what they are.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@contextmanager
def small_cluster() -> Iterator[Any]:
    """Two nodes of one processor each; this process is not connected to them. -> ``ray.cluster_utils.Cluster``"""
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        # Of the workers, and of processes that tests start.
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        for name, value in {**LOOPBACK, "PYTHONPATH": path}.items():
            patch.setenv(name, value)
        cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        try:
            cluster.add_node(**NODE)
            yield cluster
        finally:
            cluster.shutdown()


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    for _ in range(2400):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("it has not happened")


class Squares:
    """A job: the square of each number, with the process that computed it, and that worker's threads.

    ``trouble(place, number)`` is called at the start of each worker (with number None) and before each square;
    ``place`` is a directory that all share.
    """

    def __init__(self, place: Path, trouble: Callable[[Path, int | None], Any] | None = None) -> None:
        self.place, self.trouble = place, trouble

    def start(self, threads: int) -> SquareWork:
        return SquareWork(self, threads)


class SquareWork:
    def __init__(self, job: Squares, threads: int) -> None:
        self._job, self._threads, self.n_tokens = job, threads, 0
        found = job.trouble(job.place, None) if job.trouble is not None else None
        self.identity = {"weights": found or 0}

    def results(self, source: Source) -> Iterator[tuple[int, Any]]:
        while (piece := source.take()) is not None:
            number, value = piece
            if self._job.trouble is not None:
                self._job.trouble(self._job.place, number)
            self.n_tokens += 1
            yield number, (value * value, os.getpid(), self._threads)


def first(place: Path, name: str) -> bool:
    """Whether nobody has asked for this name in this directory before."""
    try:
        (place / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def together(place: Path, number: int | None) -> None:
    """Come to piece 20 only when two workers have begun."""
    if number is None:
        (place / f"started-{os.getpid()}").touch()
    else:
        (place / f"begun-{os.getpid()}").touch()
    wait_until(lambda: (number or 0) < 20 or len(list(place.glob("begun-*"))) >= 2)


def die_once(place: Path, number: int | None) -> None:
    """Kill the first worker that comes to piece 20; others come to piece 40 when the one in its place has begun."""
    together(place, number)
    if number == 20 and first(place, "killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    wait_until(lambda: (number or 0) < 30 or len(list(place.glob("started-*"))) == 3)
    wait_until(lambda: (number or 0) < 40 or len(list(place.glob("begun-*"))) == 3)


def always_die(place: Path, number: int | None) -> None:
    """Kill every worker that comes to piece 3."""
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)


def fail_on_one(place: Path, number: int | None) -> None:
    """One worker cannot load its model."""
    if number is None and first(place, "failed"):
        raise RefgptError("there is no such file", where="model")


def fail_to_load(place: Path, number: int | None) -> None:
    """No worker can load its model."""
    raise RefgptError("there is no such file", where="model")


def fail_at_work(place: Path, number: int | None) -> None:
    """Piece 5 cannot be done."""
    if number == 5:
        raise RefgptError("the logits are not finite", where="item 5")


def differ(place: Path, number: int | None) -> int:
    """One worker has other weights than the others."""
    time.sleep(0.02)
    return number is None and not first(place, "other")


def name_node(place: Path, number: int | None) -> None:
    """Leave a file named as the worker's node. The work cannot end before there have been four nodes."""
    import ray

    (place / ray.get_runtime_context().get_node_id()).touch()
    wanted = 4 if (number or 0) > 300 else 3 if (number or 0) > 100 else 0
    wait_until(lambda: len(list(place.iterdir())) >= wanted)
