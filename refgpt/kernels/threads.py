"""How many threads kernels use."""

from __future__ import annotations

import os

from refgpt.arguments import whole_number
from refgpt.errors import KernelError

MOST_THREADS = 1024  # that the pool in csrc/parallel.c employs


def default_threads() -> int:
    """The processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_threads(threads: int | None) -> int:
    """A usable number of threads; None means ``default_threads``."""
    if threads is None:
        return default_threads()
    return whole_number("threads", threads, 1, MOST_THREADS, KernelError)
