"""Memory available to this process: the machine's memory, within the limits on the process."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

from refgpt._common.control_groups import PROCESS, memory_limits

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


def _physical() -> tuple[int | None, int | None]:
    """The machine's memory and the available part, which only Linux reports."""
    try:
        kilobytes = dict(re.findall(r"(\w+): +(\d+) kB", MEMINFO.read_text()))
        return 1024 * int(kilobytes["MemTotal"]), 1024 * int(kilobytes["MemAvailable"])
    except (OSError, KeyError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, ValueError, OSError):  # not available on every system
        return None, None


def _own_limits() -> list[tuple[int, int]]:
    """Limits on the process's address space and data, each with its unused part."""
    try:
        sizes = [int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in (PROCESS / "statm").read_text().split()]
        used = {resource.RLIMIT_AS: sizes[0], resource.RLIMIT_DATA: sizes[5]}
    except (AttributeError, ValueError, OSError, IndexError):  # not Linux
        used = {resource.RLIMIT_AS: 0, resource.RLIMIT_DATA: 0}
    limits = {what: resource.getrlimit(what)[0] for what in used}
    return [(most, max(0, most - used[what])) for what, most in limits.items() if most != resource.RLIM_INFINITY]
