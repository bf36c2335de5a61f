"""How many threads kernels use."""

from __future__ import annotations

import os

from refgpt.errors import KernelError


def default_threads() -> int:
    """The processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> int:
    """A usable number of threads; None means ``default_threads``."""
    if threads is None:
        return default_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 1024:
        raise KernelError("threads makes no sense", got=repr(threads), wanted="a whole number from 1 to 1024")
    return threads
