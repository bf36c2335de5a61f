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
    """Activations of one forward pass, in the order they were computed.

    Only what is asked for is computed into memory and kept, and the pass ends with the last of it.

    Parameters
    ----------
    model : Model or Engine
    ids : str or sequence of int [t]
        A text, if the model has a tokenizer, or its ids.
    prefix_len : int
        So many leading positions see one another; 0 is the causal mask, whatever the model's own is.
    names : str or collection of str, optional
        Which ones: names of ``refgpt.spec.tap_names(config)`` or patterns of them ("blocks.*.pattern",
        "blocks.[0-3].z"); by default all.
    positions : int, slice or sequence of int, optional
        Which rows to keep; negative ones count from the end, by default all. Axis 0 keeps only these, of "pattern"
        [h, t, s] axis 1: queries. Of "k", "k_rot" and "v" the rows of these tokens as keys are kept. The axis stays
        where one row is left.
    patch : mapping, or sequence of mappings, optional
        What to replace on the way: from names or patterns to a function of the activation, to an array instead of it,
        or to what ``zero_ablation``, ``mean_ablation`` and ``patch_from`` make. Several mappings work one after the
        other. What is recorded is what the engine went on with.

    Returns
    -------
    dict of str to ndarray
        Of the axes ``refgpt.spec.tap_axes`` names; float32, or what the NumPy backend computes in.

    Raises
    ------
    RefgptError
        If a name or position does not exist, a patch does not fit, the ids cannot be used, or the trace would take
        more memory than there is: before anything is computed, but for what a function of yours returns.
    """
    engine, tokens = engine_of(model), ids_of(model, ids, prefix_len)
    wanted, rows = find_names(names, tap_names(engine.config)), find_indices(positions, len(tokens), "positions")
    check_trace_fits(engine, len(tokens), wanted, None if rows is None else len(rows))
    return visit(engine, tokens, wanted, lambda name, value: rows_of(name, value, rows), prefix_len, patch)


def patch(model: Subject, ids: Text, patches: Patches, prefix_len: int = 0) -> np.ndarray:
    """Logits of a forward pass in which some activations are replaced by others: what depends on them follows.

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
    """Boil activations down one by one, so that none has to be kept.

    Parameters
    ----------
    look : callable
        ``look(name, value)``, which must copy what it keeps of ``value``.

    The others, and errors, are those of ``record``.

    Returns
    -------
    dict of str to object
        What ``look`` returned, by names in the order they were computed.
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
    """Everything that was asked for has been seen."""


class _Visit:
    """A tap that patches, looks, and ends the pass with the last name that is wanted."""

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
