"""Several hosts on one machine: network namespaces joined by a bridge, with links of a given rate, and byte counters.

Needs Linux, root, and the commands ``ip`` and ``tc`` (iproute2). Nothing else on the machine is changed: every name
begins with a prefix of this process, and everything is removed at the end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType


def obstacle() -> str:
    """The reason why hosts cannot be made here; "" if they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "needs iproute2"
    trial = f"trial{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", trial], capture_output=True)
    if made.returncode:
        return "no network namespace can be made here"
    subprocess.run(["ip", "netns", "del", trial], check=True)
    return ""


class Hosts:
    """Hosts 10.77.0.1, 10.77.0.2, ... in a network of their own.

    Parameters
    ----------
    n : int
    megabits : float, optional
        The rate of each host's link, in each direction; by default it is not limited.
    """

    def __init__(self, n: int, megabits: float | None = None) -> None:
        self.n, self.megabits = n, megabits
        self._tag = f"r{os.getpid()}"
        self._processes: list[tuple[int, subprocess.Popen]] = []

    def __enter__(self) -> Hosts:
        try:
            # The bridge is in a namespace too, so that this machine's own network is left alone.
            self._ip("netns", "add", self._hub)
            self._in(self._hub, "ip", "link", "add", "bridge", "type", "bridge")
            self._in(self._hub, "ip", "link", "set", "bridge", "up")
            for host in range(self.n):
                self._add(host)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type | None, fault: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def _hub(self) -> str:
        return f"{self._tag}hub"

    def name(self, host: int) -> str:
        """The namespace of a host."""
        return f"{self._tag}h{host}"

    @staticmethod
    def address(host: int) -> str:
        """The address of a host."""
        return f"10.77.0.{host + 1}"

    def _add(self, host: int) -> None:
        name, port = self.name(host), f"port{host}"
        self._ip("netns", "add", name)
        self._in(self._hub, "ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        self._in(self._hub, "ip", "link", "set", port, "master", "bridge", "up")
        self._in(name, "ip", "link", "set", "lo", "up")
        self._in(name, "ip", "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        self._in(name, "ip", "link", "set", "eth0", "up")
        if self.megabits is not None:
            self._limit(host, self.megabits)

    def limit(self, megabits: float | None) -> None:
        """Change the rate of all links."""
        for host in range(self.n):
            if self.megabits is not None:
                self._in(self.name(host), "tc", "qdisc", "del", "dev", "eth0", "root")
                self._in(self._hub, "tc", "qdisc", "del", "dev", f"port{host}", "root")
            if megabits is not None:
                self._limit(host, megabits)
        self.megabits = megabits

    def _limit(self, host: int, megabits: float) -> None:
        shape = ("root", "tbf", "rate", f"{megabits}mbit", "burst", "64kb", "latency", "400ms")
        self._in(self.name(host), "tc", "qdisc", "add", "dev", "eth0", *shape)
        self._in(self._hub, "tc", "qdisc", "add", "dev", f"port{host}", *shape)

    def start(
        self, host: int, command: Sequence[str], environment: Mapping[str, str] | None = None, log: Path | None = None
    ) -> subprocess.Popen:
        """Start a command on a host; it ends with the host at the latest."""
        out = subprocess.DEVNULL if log is None else log.open("ab")
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.name(host), *command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        self._processes.append((host, process))
        return process

    def n_bytes(self, host: int) -> tuple[int, int]:
        """Bytes that a host has sent and received, by the counters of its interface."""
        counted = self._in(
            self.name(host),
            "cat",
            "/sys/class/net/eth0/statistics/tx_bytes",
            "/sys/class/net/eth0/statistics/rx_bytes",
        ).split()
        return int(counted[0]), int(counted[1])

    def pids(self, host: int) -> list[int]:
        """The ids of the processes on a host."""
        return [int(pid) for pid in self._ip("netns", "pids", self.name(host)).split()]

    def cut(self, host: int) -> None:
        """Pull the cable of a host."""
        self._in(self._hub, "ip", "link", "set", f"port{host}", "down")

    def join(self, host: int) -> None:
        """Put the cable in again."""
        self._in(self._hub, "ip", "link", "set", f"port{host}", "up")

    def kill_actors(self, host: int, kind: str) -> None:
        """End the actors of this class on a host at once. The host itself stays in the cluster."""
        killed = False
        for pid in self.pids(host):
            with suppress(OSError):  # it may have ended
                # ray::Class.method in a call, ray::Class between calls
                title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
                if title.partition(".")[0] == f"ray::{kind}":
                    os.kill(pid, 9)
                    killed = True
        if not killed:
            raise OSError(f"there is no {kind} on {self.name(host)}")

    def kill(self, host: int) -> None:
        """End every process on a host at once."""
        for pid in self.pids(host):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        for on, process in self._processes:
            if on == host:
                process.wait()

    def close(self) -> None:
        """End all processes and remove everything."""
        known = self._ip("netns", "list").split()
        for host in range(self.n):
            if self.name(host) in known:
                self.kill(host)
                self._ip("netns", "del", self.name(host))
        if self._hub in known:
            self._ip("netns", "del", self._hub)

    def _in(self, name: str, *command: str) -> str:
        return self._ip("netns", "exec", name, *command)

    @staticmethod
    def _ip(*arguments: str) -> str:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout


#: Ray's token is for clusters that strangers could reach; these hosts are a network of their own.
RAY_ENVIRONMENT = {
    "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
    "RAY_AUTH_MODE": "disabled",
}


def start_ray(hosts: Hosts, host: int, place: Path, others: int | None = None) -> None:
    """Start Ray on a host, after those before it: nodes that start together sometimes miss each other.

    Host 0 is the head, which runs no worker. ``place`` is a directory for logs and sockets: its name must be short.
    ``others`` is the number of nodes that are there already; by default the hosts before this one.
    """
    wanted = (host if others is None else others) + 1
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--object-store-memory", "100000000"]
    mine = ["--node-ip-address", hosts.address(host), "--num-cpus", str(min(host, 1)), "--disable-usage-stats"]
    head = ["--head", "--port", "6379", "--include-dashboard", "false", "--temp-dir", str(place / "head")]
    join = ["--address", ray_address(hosts)]
    log = place / f"{host}.log"
    for _ in range(3):
        node = hosts.start(host, [*ray, *mine, *(join if host else head)], RAY_ENVIRONMENT, log)
        for _ in range(60):
            if n_alive(hosts, place) == wanted:
                return
            if node.poll() is not None:
                break
    raise OSError(f"Ray does not start on host {host}:\n" + log.read_text(errors="replace")[-3000:])


def failed(log: Path) -> SystemExit:
    """What to raise when a command has failed: an exit that shows the end of its log."""
    return SystemExit(log.read_text(errors="replace")[-3000:])


def ray_address(hosts: Hosts) -> str:
    """The cluster's address."""
    return f"{hosts.address(0)}:6379"


def n_alive(hosts: Hosts, place: Path) -> int:
    """How many nodes the head knows."""
    code = (
        f"import ray; ray.init('{ray_address(hosts)}', _node_ip_address='{hosts.address(0)}', log_to_driver=False);"
        "print('alive', sum(node['Alive'] for node in ray.nodes()))"
    )
    log = place / "asked"
    log.unlink(missing_ok=True)
    hosts.start(0, [sys.executable, "-c", code], RAY_ENVIRONMENT, log).communicate()
    found = [line for line in log.read_text().splitlines() if line.startswith("alive ")]
    return int(found[-1].split()[1]) if found else 0
