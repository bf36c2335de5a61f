"""The floating-point state that all results assume: round to nearest, keep subnormals, no exception traps.

Another library in the process may have changed it (rounding mode, flush-to-zero), and a thread inherits it from the
thread that created it. The C kernels set the state themselves. NumPy and Python compute under the current state, so
loading, converting or sampling under another rounding mode would give different numbers, and a model that stays wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


@cache
def _library() -> Any:
    """The compiled extension; None if it was never built, or is too old to have this function."""
    try:
        from _refgpt_kernels import lib
    except ImportError:
        return None
    return lib if hasattr(lib, "refgpt_default_float_state") else None


@contextmanager
def default_float_state() -> Iterator[None]:
    """Let this thread compute under the default state within a block or a decorated function.

    The previous state is restored afterwards. Do not use it in generators: their callers run between two values. It
    affects only this thread: the threads of a BLAS library keep the state they were created with. Without the compiled
    extension, where only the NumPy model runs, it does nothing.
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
