"""The floating-point state that results are promised for: rounded to nearest, subnormals kept, no exception traps.

Another library in the process may have changed it (a rounding mode, flush-to-zero), and a thread inherits it from the
one that made it. The C kernels set it for themselves. NumPy and Python compute under whatever it is, so that loading,
converting or sampling under another rounding would give other numbers, and a wrong model for as long as it lives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def _library() -> Any:
    """The compiled extension; None where it was never built, or is older than this function."""
    try:
        from _refgpt_kernels import lib
    except ImportError:
        return None
    return lib if hasattr(lib, "refgpt_default_float_state") else None


@contextmanager
def default_float_state() -> Iterator[None]:
    """Within the block, or a function that it decorates, this thread computes under the default state.

    The state that it had comes back afterwards. Not for generators: between two of their values their caller runs.
    Only this thread is meant: the threads in which a BLAS library multiplies matrices keep the state they were made
    with. Without the compiled extension, where only the NumPy model runs, nothing is changed.
    """
    lib = _library()
    if lib is None:
        yield
        return
    before = lib.refgpt_default_float_state()
    try:
        yield
    finally:
        lib.refgpt_set_float_state(before)
