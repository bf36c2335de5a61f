"""Weights that change while an engine has them: packed again, where they were packed before."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refgpt.numbers.adapted import Adapted
from refgpt.numbers.dtypes import BFLOAT16, Compute
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.packing import Fill, Kept, computing, pack_leaf, plan
from refgpt.numbers.panels import Panels
from refgpt.numbers.tree import ParamTree


def repacked(params: ParamTree, current: ParamTree, own: bool, fill: Fill, compute: Compute = "f32") -> ParamTree:
    """Weights as kernels read them.

    Parameters
    ----------
    params : Params
        The new ones. A leaf that is the current one itself stays as it is; adapters are packed in any case.
    current : Params
        The packed ones.
    own : bool
        Whether the memory of those is the engine's own, to be written over: it may be that of a file.
    fill : callable
        ``refgpt.kernels.store``.
    compute : "f32" or "bf16"
        See ``refgpt.numbers.packing.plan``.
    """
    before = dict(current.items())

    def packed(name: str, leaf: Leaf) -> Leaf:
        if isinstance(leaf, Adapted):
            base = packed(name, leaf.base)
            a = _panels(leaf.a, leaf.panels and leaf.panels[0], fill)
            b = _panels(np.float32(leaf.scale) * leaf.b, leaf.panels and leaf.panels[1], fill)
            return Adapted(base, leaf.a, leaf.b, leaf.scale, (a, b))
        there = before[name]
        there = there.base if isinstance(there, Adapted) else there
        if leaf is there:
            return leaf
        kept = plan(name, leaf, None, params.looked_up, compute)
        return computing(pack_leaf(name, leaf, kept, fill, there if own else None), compute)

    return params.map(packed)


def _panels(matrix: np.ndarray, own: Panels | None, fill: Fill) -> Panels:
    found = pack_leaf("adapter", matrix, Kept("f32", "panels"), fill, own)
    assert isinstance(found, Panels)
    return found


def unrounded(
    given: ParamTree, packed: ParamTree, before: ParamTree | None = None, exact: Mapping[str, Leaf] | None = None
) -> dict[str, Leaf]:
    """The matrices that are rounded to bfloat16 only because they are multiplied in it, as they were given.

    Parameters
    ----------
    given, packed : Params
        The weights, and the same as kernels read them.
    before : Params, optional
        The former packed ones: a leaf of these in ``given`` has not changed.
    exact : mapping of str to Leaf, optional
        What this function returned for ``before``.
    """
    same, kernels = dict(before.items()) if before else {}, dict(packed.items())
    found: dict[str, Leaf] = {}
    for name, leaf in given.items():
        own = kernels[name]
        if exact and name in exact and leaf is same.get(name):
            found[name] = exact[name]
        elif isinstance(own, Panels) and own.kind == "bf16" and leaf.dtype != BFLOAT16:
            found[name] = leaf
    return found


def rounds_rows(params: ParamTree) -> bool:
    """Whether products with some of these weights round the rows of activations to bfloat16."""
    return any(isinstance(leaf, Panels) and (leaf.kind, leaf.compute) == ("bf16", "bf16") for _, leaf in params.items())
