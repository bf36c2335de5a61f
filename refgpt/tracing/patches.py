"""Interventions: replacements of an activation, or of some of its rows, heads and neurons.

Zero and mean ablation remove a part of a model; activation patching replaces it by the values of another run (Vig
et al. 2020, https://arxiv.org/abs/2004.12265; Heimersheim and Nanda 2024, https://arxiv.org/abs/2404.15255).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refgpt._common.arguments import collected, whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.spec import tap_axes, tap_names, tap_shapes
from refgpt.spec.config import LARGEST, AnyConfig
from refgpt.tracing.places import Indices, Names, find_indices, find_names, row_axis

Change = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Replacement:
    """Numbers for some places of an activation. ``zero_ablation``, ``mean_ablation`` and ``patch_from`` make them.

    Attributes
    ----------
    new : number or ndarray
        One number for all places; or an array of the activation's shape, whose values at those places are used; or an
        array without the axis of positions, used for every position.
    positions, heads, neurons : int, slice, sequence of int or None
        Rows (queries; in "k", "k_rot" and "v" keys), heads ("q" to "z") and neurons ("mlp_pre", "mlp_post"); None is
        all of them.
    """

    new: float | np.ndarray
    positions: Indices = None
    heads: Indices = None
    neurons: Indices = None

    def at(self, name: str, shape: tuple[int, ...]) -> Change:
        """The function that replaces these places in one activation.

        Raises
        ------
        RefgptError
            If the activation does not have these places, or ``new`` does not fit its shape.
        """
        new = _numbers(name, self.new)
        if new.ndim == len(shape) - 1 and new.ndim:
            new = np.expand_dims(new, row_axis(name))
            expected = tuple(1 if axis == row_axis(name) else n for axis, n in enumerate(shape))
        else:
            expected = shape
        if new.ndim and new.shape != expected:
            raise RefgptError(
                "does not fit in the place of the activation",
                where=name,
                got=f"an array {list(np.shape(self.new))}",
                wanted=f"an array {list(shape)}",
                fix="take both from texts of one length, with all positions",
            )
        chosen, places = np.broadcast_to(new, shape), self._places(name, shape)
        if places is None:
            return lambda value: chosen.astype(value.dtype)
        chosen = chosen[places]

        def change(value: np.ndarray) -> np.ndarray:
            changed = value.copy()
            changed[places] = chosen
            return changed

        return change

    def _places(self, name: str, shape: tuple[int, ...]) -> tuple[np.ndarray, ...] | None:
        """The index into the activation; None means all of it."""
        axes, places = tap_axes(name), [np.arange(n) for n in shape]
        asked = [
            ("positions", self.positions, row_axis(name)),
            ("heads", self.heads, axes.find("h")),
            ("neurons", self.neurons, axes.find("f")),
        ]
        for what, indices, axis in asked:
            if indices is not None and axis < 0:
                raise RefgptError(
                    f"this activation has no {what}",
                    where=name,
                    wanted="heads of q to z, neurons of mlp_pre and mlp_post",
                )
            found = find_indices(indices, shape[axis], f"{name}, {what}")
            if found is not None:
                places[axis] = found
        return None if self.positions is self.heads is self.neurons is None else np.ix_(*places)


def _numbers(where: str, value: object) -> np.ndarray:
    """An array of numbers, or one number without axes; a RefgptError for anything else."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        array = np.empty(0, object)
    if array.dtype.kind not in "fiub":
        raise RefgptError("is no array of numbers", where=where, got=shown(value), wanted="a number, or an array")
    return array


def _check_trace(where: str, trace: object) -> None:
    """Refuse a value that cannot be a result of ``record``."""
    if not isinstance(trace, Mapping):
        raise RefgptError("is no trace", where=where, got=shown(trace), wanted="what record returns")
    for name, value in trace.items():
        if not isinstance(name, str) or not isinstance(value, np.ndarray) or not value.ndim:
            raise RefgptError(
                "is no trace",
                where=where,
                got=f"{shown(name)}: {shown(value)}",
                wanted="what record returns: arrays by names of activations",
            )


Patch = Change | np.ndarray | Replacement
Patches = Mapping[str, Patch] | Sequence[Mapping[str, Patch]]
BoundPatches = dict[str, list[Change]]


def zero_ablation(
    names: Names, *, positions: Indices = None, heads: Indices = None, neurons: Indices = None
) -> dict[str, Patch]:
    """Patches that set activations, or some of their rows, heads or neurons, to 0.

    ``names`` are as for ``record``. After zeros in "pattern" its rows no longer sum to 1.
    """
    wanted = "names, as 'blocks.*.z'"
    patterns = [names] if isinstance(names, str) else collected("names", names, wanted, RefgptError)
    if other := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise RefgptError("is no name", where="names", got=shown(other[0]), wanted=wanted)
    return {pattern: Replacement(0.0, positions, heads, neurons) for pattern in patterns}


def zero_heads(layer: int, heads: Indices) -> dict[str, Patch]:
    """Patches that disable heads: their mixed values ("z") become 0, so that they write nothing."""
    return zero_ablation(f"blocks.{whole_number('layer', layer, 0, LARGEST['n_layer'], RefgptError)}.z", heads=heads)


def zero_neurons(layer: int, neurons: Indices) -> dict[str, Patch]:
    """Patches that disable neurons: their outputs ("mlp_post") become 0."""
    return zero_ablation(
        f"blocks.{whole_number('layer', layer, 0, LARGEST['n_layer'], RefgptError)}.mlp_post", neurons=neurons
    )


def patch_from(
    trace: Mapping[str, np.ndarray],
    names: Names | None = None,
    *,
    positions: Indices = None,
    heads: Indices = None,
    neurons: Indices = None,
) -> dict[str, Patch]:
    """Activation patching: patches that replace activations, or parts of them, by those of another run.

    Parameters
    ----------
    trace : mapping of str to ndarray
        A trace of a text with the same number of tokens, with all positions.
    names : str or collection of str, optional
        Names or patterns of activations in the trace; by default all.
    positions, heads, neurons : int, slice, sequence of int, optional
        See ``Replacement``.

    Raises
    ------
    RefgptError
        If the trace has no such activation.
    """
    _check_trace("trace", trace)
    found = find_names(names, list(trace))
    return {name: Replacement(trace[name], positions, heads, neurons) for name in found}


def mean_ablation(
    reference: Mapping[str, np.ndarray] | Sequence[Mapping[str, np.ndarray]],
    names: Names | None = None,
    *,
    positions: Indices = None,
    heads: Indices = None,
    neurons: Indices = None,
) -> dict[str, Patch]:
    """Patches that replace an activation by its mean, which removes the information about this text.

    Parameters
    ----------
    reference : trace or sequence of traces
        Traces of any texts; the mean is taken over all their rows, with equal weights.
    names : str or collection of str, optional
        Names or patterns of activations in the traces; by default all.
    positions, heads, neurons : int, slice, sequence of int, optional
        What to replace in the run that is patched; see ``Replacement``.

    Raises
    ------
    RefgptError
        If a trace has no such activation, or it is "pattern", whose rows look at other positions each.
    """
    wanted = "a trace, or a list of traces"
    traces = [reference] if isinstance(reference, Mapping) else collected("reference", reference, wanted, RefgptError)
    for trace in traces:
        _check_trace("reference", trace)
    if not traces:
        raise RefgptError("there is nothing to take a mean of", where="reference", got="no trace")
    found = find_names(names, list(traces[0]))
    for name in found:
        if name.rpartition(".")[2] == "pattern":
            raise RefgptError(
                "the rows of an attention pattern have no mean of use", where=name, fix="replace z by its mean instead"
            )
        for trace in traces:
            find_names([name], list(trace), "reference")
        widths = {trace[name].shape[1:] for trace in traces}
        if len(widths) > 1:
            raise RefgptError(
                "the traces are of different models",
                where=name,
                got=sorted(map(list, widths)),
                fix="take them from one model",
            )
    means = {name: np.concatenate([trace[name] for trace in traces]).mean(axis=0, dtype=np.float64) for name in found}
    return {name: Replacement(mean, positions, heads, neurons) for name, mean in means.items()}


def bind_patches(patches: Patches | None, config: AnyConfig, n: int) -> BoundPatches:
    """Patches as functions, by the full names of activations, with checked results.

    Parameters
    ----------
    patches : mapping, sequence of mappings, or None
    config : Config
    n : int
        Tokens of the text that is patched.

    Raises
    ------
    RefgptError
        If there is no such activation, or a patch is neither function nor array or does not fit.
    """
    wanted = "a mapping from names to functions or arrays, or a list of mappings"
    several: Sequence[Mapping[str, Patch]] = (
        []
        if patches is None
        else [patches]
        if isinstance(patches, Mapping)
        else collected("patch", patches, wanted, RefgptError)
    )
    shapes, bound = tap_shapes(config, n), BoundPatches()
    for mapping in several:
        if not isinstance(mapping, Mapping):
            raise RefgptError("cannot be used", where="patch", got=type(mapping).__name__, wanted=wanted)
        for pattern, patch in mapping.items():
            for name in find_names([pattern], tap_names(config), "patch"):
                bound.setdefault(name, []).append(_bound(patch, name, shapes[name]))
    return bound


def _bound(patch: Patch, name: str, shape: tuple[int, ...]) -> Change:
    if isinstance(patch, Replacement):
        return patch.at(name, shape)
    if isinstance(patch, np.ndarray):
        if patch.shape != shape:
            raise RefgptError(
                "a patch must have the shape of the activation",
                where=name,
                got=f"an array {list(patch.shape)}",
                wanted=f"an array {list(shape)}",
            )
        return Replacement(patch).at(name, shape)
    if not callable(patch):
        raise RefgptError(
            "cannot be used as a patch",
            where=name,
            got=type(patch).__name__,
            wanted="a function, an array, or what zero_ablation and its like make",
        )
    function: Change = patch

    def change(value: np.ndarray) -> np.ndarray:
        answer = function(value)
        if not isinstance(answer, np.ndarray) or answer.shape != shape:
            got = f"an array {list(answer.shape)}" if isinstance(answer, np.ndarray) else type(answer).__name__
            raise RefgptError(
                "a patch must return an array of the shape it was shown",
                where=name,
                got=got,
                wanted=f"an array {list(shape)}",
            )
        return answer.astype(value.dtype, copy=False)

    return change
