"""What the machine has."""

from __future__ import annotations

import os
import re
from pathlib import Path

from refgpt.wording import size

MEMINFO = Path("/proc/meminfo")


def memory_present() -> str:
    """How much memory there is and, where the operating system says so, how much of it can be had; "" if unknown."""
    try:
        kilobytes = dict(re.findall(r"(\w+): +(\d+) kB", MEMINFO.read_text()))
        total, free = (1024 * int(kilobytes[name]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError):
        pass
    else:
        return f"present {size(total)}, of which {size(free)} can be had"
    try:
        return f"present {size(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES'))}"
    except (AttributeError, ValueError, OSError):  # not on every system, nor every name
        return ""
