"""The number of threads that kernels use."""

from __future__ import annotations

import os
from functools import cache
from math import ceil
from pathlib import Path

from refgpt._common.arguments import whole_number
from refgpt._common.control_groups import processors
from refgpt._common.errors import KernelError

MOST_THREADS = 1024  # limit of the pool in csrc/parallel.c
MOST_DIGITS = 20  # Python refuses to parse thousands of digits

CPUS = Path("/sys/devices/system/cpu")


def check_threads(threads: int | None) -> int:
    """A usable number of threads; None means REFGPT_THREADS, and without it ``default_threads``.

    Raises
    ------
    KernelError
        If it is not a whole number from 1 to 1024.
    """
    if threads is None:
        demanded = os.environ.get("REFGPT_THREADS")
        return default_threads() if not demanded else _number("REFGPT_THREADS", demanded)
    return whole_number("threads", threads, 1, MOST_THREADS, KernelError)


def _number(name: str, text: str) -> int:
    digits = text.isascii() and text.isdecimal() and len(text) <= MOST_DIGITS
    return whole_number(name, int(text) if digits else text, 1, MOST_THREADS, KernelError)


@cache
def default_threads() -> int:
    """The physical cores that this process may use.

    Two threads of one core share its arithmetic units and its memory bandwidth, which one thread can use fully. If a
    container is allowed less processor time than its processors have, more threads would only wait for each other.
    """
    if not hasattr(os, "sched_getaffinity"):  # a Macintosh: its processors are cores
        return os.cpu_count() or 1
    cores = {_siblings(cpu) for cpu in os.sched_getaffinity(0)}
    return max(1, min(len(cores), ceil(processors() or len(cores))))


def _siblings(cpu: int) -> str:
    """The processors of a core, as a text that identifies it; only the processor itself if the system does not say."""
    try:
        return (CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
