"""Memory estimates for traces, made before anything runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from math import prod

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.memory import machine_memory
from refgpt._common.wording import size
from refgpt.runtime.engine import Engine
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec import tap_names, tap_shapes
from refgpt.spec.config import AnyConfig
from refgpt.tracing.places import Names, find_names, row_axis

#: Copies of an activation that exist while a tap reads it, besides the recorded one.
IN_PASSING = 3


def available_memory() -> int | None:
    """Available memory in bytes, or the total if that is unknown; None if both are unknown."""
    total, available = machine_memory()
    return total if available is None else available


def dtype_of(engine: Engine) -> np.dtype:
    """The dtype that an engine computes in."""
    return engine.dtype if isinstance(engine, SpecEngine) else np.dtype(np.float32)


def trace_bytes(
    config: AnyConfig, n: int, names: Names, n_kept: int | None = None, itemsize: int = 4
) -> dict[str, int]:
    """Bytes that a trace keeps.

    Parameters
    ----------
    config : Config
    n : int
        Tokens of the text.
    names : str or collection of str
        Of ``tap_names(config)``, or patterns of them.
    n_kept : int, optional
        Number of rows kept of each activation; by default all.
    itemsize : int
        Bytes per number.

    Returns
    -------
    dict of str to int
        Bytes of each activation.
    """
    n = whole_number("n", n, 1, None, RefgptError)
    kept = n if n_kept is None else whole_number("n_kept", n_kept, 0, None, RefgptError)
    itemsize = whole_number("itemsize", itemsize, 1, None, RefgptError)
    shapes, names = tap_shapes(config, n), find_names(names, tap_names(config))
    return {
        name: prod(kept if axis == row_axis(name) else length for axis, length in enumerate(shapes[name])) * itemsize
        for name in names
    }


def check_trace_fits(engine: Engine, n: int, names: Collection[str], n_kept: int | None = None) -> None:
    """Refuse a trace that needs more memory than there is. Parameters are those of ``trace_bytes``.

    Raises
    ------
    RefgptError
        Says how much it needs, which activations need most, and how to need less.
    """
    itemsize = dtype_of(engine).itemsize
    kept = trace_bytes(engine.config, n, names, n_kept, itemsize)
    whole = trace_bytes(engine.config, n, names, None, itemsize)
    parts: Counter[str] = Counter()
    for name, n_bytes in kept.items():
        parts[name.rpartition(".")[2]] += n_bytes
    most = ", ".join(f"{part} {size(n_bytes)}" for part, n_bytes in parts.most_common(3))
    rows = n if n_kept is None else n_kept
    check_fits(
        sum(kept.values()) + IN_PASSING * max(whole.values(), default=0),
        f"{len(kept)} activations, {rows} of {n} rows of each; most of it for {most}",
        "ask for fewer names (as 'blocks.*.resid_post') or rows (positions=-1)",
    )


def check_fits(n_bytes: int, what: str, fix: str, where: str = "trace") -> None:
    """Refuse a computation that needs more memory than there is.

    Parameters
    ----------
    n_bytes : int
        Its memory in bytes.
    what : str
        Description of the memory's use.
    fix : str
        How to need less.
    where : str
        For the error.
    """
    free = available_memory()
    if free is not None and n_bytes > free:
        raise RefgptError(
            "this takes more memory than there is",
            where=where,
            got=f"{size(n_bytes)} ({what})",
            wanted=f"at most the {size(free)} that can be had now",
            fix=fix,
        )
