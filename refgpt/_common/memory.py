"""Memory available to this process: the machine's memory, within the limits on the process."""

from __future__ import annotations

import logging
import os
import re
import resource
from pathlib import Path

from refgpt._common.control_groups import PROCESS, memory_limits
from refgpt._common.errors import RefgptError
from refgpt._common.wording import size

log = logging.getLogger("refgpt")

MEMINFO = Path("/proc/meminfo")


def machine_memory() -> tuple[int | None, int | None]:
    """Total memory and the part available now without swapping, in bytes; None where unknown.

    Neither is more than the control groups (of a container or a job) and the process's limits (``ulimit -v``) allow.
    """
    total, available = _physical()
    limits = [*memory_limits(), *_own_limits()]
    totals = [most for most, _ in limits] + [n for n in (total,) if n is not None]
    frees = [free for _, free in limits] + [n for n in (available,) if n is not None]
    return min(totals, default=None), min(frees, default=None)


def obtainable_memory() -> int | None:
    """Bytes that this process can get at the very most, by swapping too; None where unknown.

    What control groups and the process's limits leave is a wall. Other programs may give way.
    """
    total, _ = _physical()
    frees = [free for _, free in [*memory_limits(), *_own_limits()]]
    return min(frees if total is None else [*frees, total + (_from_meminfo("SwapTotal") or 0)], default=None)


def check_obtainable(n_bytes: int, what: str, fix: str, error: type[RefgptError]) -> None:
    """Refuse a plan that needs more memory than this process can get, and warn if it can only get it by swapping.

    Parameters
    ----------
    n_bytes : int
        Bytes of memory that the plan needs.
    what : str
        Who needs them, in the plural: the subject of "take" in the message.
    fix : str
        How to need less.
    error : type of RefgptError
        The error to raise.
    """
    most, (_, free) = obtainable_memory(), machine_memory()
    if most is not None and n_bytes > most:
        raise error(
            f"{what} take more memory than this process can have",
            got=size(n_bytes),
            wanted=f"at most {size(most)}",
            fix=fix,
        )
    if free is not None and n_bytes > free:
        log.warning("%s take %s, but only %s can be had without swapping; %s", what, size(n_bytes), size(free), fix)


def _physical() -> tuple[int | None, int | None]:
    """The machine's memory, and what of it can be had, which Linux alone tells."""
    total, available = _from_meminfo("MemTotal"), _from_meminfo("MemAvailable")
    if total is not None and available is not None:
        return total, available
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, ValueError, OSError):  # not available on every system
        return None, None


def _from_meminfo(name: str) -> int | None:
    """A number of Linux's table, in bytes; None where there is none."""
    try:
        found = re.search(rf"^{name}: +(\d+) kB", MEMINFO.read_text(), re.MULTILINE)
    except OSError:
        found = None
    return None if found is None else 1024 * int(found[1])


def _own_limits() -> list[tuple[int, int]]:
    """Limits on the process's address space and data, each with its unused part."""
    try:
        sizes = [int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in (PROCESS / "statm").read_text().split()]
        used = {resource.RLIMIT_AS: sizes[0], resource.RLIMIT_DATA: sizes[5]}
    except (AttributeError, ValueError, OSError, IndexError):  # not Linux
        used = {resource.RLIMIT_AS: 0, resource.RLIMIT_DATA: 0}
    limits = {what: resource.getrlimit(what)[0] for what in used}
    return [(most, max(0, most - used[what])) for what, most in limits.items() if most != resource.RLIM_INFINITY]
