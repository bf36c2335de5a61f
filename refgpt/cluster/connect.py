"""The connection to a Ray cluster (https://docs.ray.io), which needs the extra ``ray``."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from refgpt._common.arguments import number
from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown

#: Seconds after which an attempt to reach the head of a cluster is given up.
REACHED = 20.0


@dataclass(frozen=True)
class Patience:
    """How long to wait for workers.

    Attributes
    ----------
    quorum : float
        The share of the workers that have to answer before a round of a training may end without the others.
    deadline : float
        Seconds that the others are given after that.
    start, lost : float
        Seconds without any worker, or without a further answer while too few have answered, after which the work is
        given up.
    """

    quorum: float = 0.5
    deadline: float = 60.0
    start: float = 600.0
    lost: float = 1800.0

    def __post_init__(self) -> None:
        number("quorum", self.quorum, 0, 1, RefgptError)
        number("deadline", self.deadline, 0, None, RefgptError)
        number("start", self.start, 0, None, RefgptError)
        number("lost", self.lost, 0, None, RefgptError)


def import_ray() -> Any:
    """Import Ray; a RefgptError that says how to install it if it is missing."""
    try:
        import ray
    except ImportError:
        fix = 'pip install "refgpt[ray]"'
        raise RefgptError("work on many machines needs Ray", where="ray", fix=fix) from None
    return ray


def connected_ray() -> Any:
    """Ray, if this process is connected to a cluster; otherwise a RefgptError."""
    ray = import_ray()
    if not ray.is_initialized():
        raise RefgptError("there is no Ray cluster", where="ray", fix="call ray.init(), or ray.init(address='auto')")
    return ray


def _check_reachable(address: str) -> None:
    """Refuse the address of a machine on which nothing listens: Ray would try again for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:  # "auto", or an address of another kind
        return
    if len(port) > 5 or not port.isascii() or not 0 < int(port) < 65536:
        raise RefgptError("there is no such port", where=address, got=shown(port), wanted="a number from 1 to 65535")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
    except (OSError, UnicodeError) as fault:
        fix = "start one with `ray start --head`"
        raise RefgptError("there is no Ray cluster", where=address, got=str(fault), fix=fix) from None


@contextmanager
def connected(address: str | None, n_cpus: int = 1) -> Iterator[None]:
    """A connection to a cluster, which ends with the block.

    Parameters
    ----------
    address : str or None
        That of the cluster's head, or "auto": the cluster that this machine belongs to. None starts a cluster on this
        machine alone.
    n_cpus : int
        If ``address`` is None, how many processors Ray may give to workers; at least as many as this machine has.

    Raises
    ------
    RefgptError
        If Ray is missing, there is no cluster, or it refuses this process.
    """
    ray = import_ray()
    if address is not None:
        _check_reachable(address)
    quiet = {"log_to_driver": False, "logging_level": "WARNING"}
    try:
        if address is None:
            n_cpus = max(n_cpus, os.cpu_count() or 1)
            ray.init("local", num_cpus=n_cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as fault:
        lines = str(fault).strip().splitlines() or [type(fault).__name__]
        refused = isinstance(fault, ray.exceptions.RayError)
        what = "the Ray cluster refuses this process" if refused else "there is no Ray cluster"
        fix = "use the cluster's token" if refused else "start one with `ray start --head`"
        raise RefgptError(what, where=address, got=shown(lines[0]), fix=fix) from None
    try:
        yield
    finally:
        ray.shutdown()
