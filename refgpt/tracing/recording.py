"""Recording activations and replacing them, in one pass through any engine."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from refgpt._common.arguments import function_of
from refgpt._common.errors import RefgptError
from refgpt.spec import tap_names
from refgpt.tracing.memory import check_trace_fits
from refgpt.tracing.patches import BoundPatches, Patches, bind_patches
from refgpt.tracing.places import Indices, Names, find_indices, find_names, rows_of
from refgpt.tracing.subjects import Subject, Text, engine_of, ids_of


def record(
    model: Subject,
    ids: Text,
    prefix_len: int = 0,
    names: Names | None = None,
    positions: Indices = None,
    patch: Patches | None = None,
) -> dict[str, np.ndarray]:
    """Record activations of one forward pass, in the order they are computed.

    Only the requested activations are kept, and the pass ends after the last of them.

    Parameters
    ----------
    model : Model or Engine
    ids : str or sequence of int [t]
        A text, if the model has a tokenizer, or its ids.
    prefix_len : int
        Number of leading positions that see one another; 0 is the causal mask, even if the model's mask is another.
    names : str or collection of str, optional
        Names of ``refgpt.spec.tap_names(config)`` or patterns of them ("blocks.*.pattern",
        "blocks.[0-3].z"); by default all.
    positions : int, slice or sequence of int, optional
        Rows to keep; negative ones count from the end; by default all. They select on axis 0, and for "pattern" [h, t,
        s] on axis 1 (queries). For "k", "k_rot" and "v" they select keys. The axis is kept even for a single row.
    patch : mapping, or sequence of mappings, optional
        Replacements: maps names or patterns to a function of the activation, an array, or the result of
        ``zero_ablation``, ``mean_ablation`` or ``patch_from``. Several mappings are applied one after the other. The
        replaced values are recorded.

    Returns
    -------
    dict of str to ndarray
        With the axes given by ``refgpt.spec.tap_axes``; float32, or the NumPy backend's dtype.

    Raises
    ------
    RefgptError
        If a name or position does not exist, a patch does not fit, the ids cannot be used, or the trace needs more
        memory than there is. Raised before anything is computed, except for a wrong result of your own function.
    """
    engine, tokens = engine_of(model), ids_of(model, ids, prefix_len)
    wanted, rows = find_names(names, tap_names(engine.config)), find_indices(positions, len(tokens), "positions")
    check_trace_fits(engine, len(tokens), wanted, None if rows is None else len(rows))
    return visit(engine, tokens, wanted, lambda name, value: rows_of(name, value, rows), prefix_len, patch)


def patch(model: Subject, ids: Text, patches: Patches, prefix_len: int = 0) -> np.ndarray:
    """Logits of a forward pass with some activations replaced.

    Parameters and errors are those of ``record``. -> [t, v]
    """
    return record(model, ids, prefix_len, "logits", patch=patches)["logits"]


def visit(
    model: Subject,
    ids: Text,
    names: Names,
    look: Callable[[str, np.ndarray], Any],
    prefix_len: int = 0,
    patch: Patches | None = None,
) -> dict[str, Any]:
    """Call a function with each activation, so that none has to be kept.

    Parameters
    ----------
    look : callable
        ``look(name, value)``; it must copy whatever it keeps of ``value``.

    Other parameters, and errors, are those of ``record``.

    Returns
    -------
    dict of str to object
        The results of ``look`` by name, in the order of the forward pass.
    """
    engine, tokens = engine_of(model), ids_of(model, ids, prefix_len)
    wanted = find_names(names, tap_names(engine.config))
    function_of("look", look, RefgptError)
    tap = _Visit(wanted, look, bind_patches(patch, engine.config, len(tokens)))
    if wanted:
        with suppress(_Enough):
            engine.logits(tokens, prefix_len, tap)  # type: ignore[arg-type]
    return tap.found


class _Enough(Exception):
    """Ends the pass: all requested activations were seen."""


class _Visit:
    """A tap that patches and reads activations, and ends the pass after the last wanted one."""

    def __init__(self, wanted: list[str], look: Callable[[str, np.ndarray], Any], patches: BoundPatches) -> None:
        self.names = frozenset(wanted) | patches.keys()
        self.found: dict[str, Any] = {}
        self._wanted, self._look, self._patches = frozenset(wanted), look, patches
        self._last = wanted[-1] if wanted else None

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        for change in self._patches.get(name, ()):
            value = change(value)
        if name in self._wanted:
            self.found[name] = self._look(name, value)
        if name == self._last:
            raise _Enough
        return value
