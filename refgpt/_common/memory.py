"""How much memory the machine has."""

from __future__ import annotations

import os
import re
from pathlib import Path

MEMINFO = Path("/proc/meminfo")


def machine_memory() -> tuple[int | None, int | None]:
    """Bytes that there are, and those that can be had without swapping, which Linux alone tells; None where unknown."""
    try:
        kilobytes = dict(re.findall(r"(\w+): +(\d+) kB", MEMINFO.read_text()))
        return 1024 * int(kilobytes["MemTotal"]), 1024 * int(kilobytes["MemAvailable"])
    except (OSError, KeyError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), None
    except (AttributeError, ValueError, OSError):  # not on every system, nor every name
        return None, None
