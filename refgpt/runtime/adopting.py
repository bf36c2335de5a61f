"""Weights that change while an engine has them: packed again, where they were packed before."""

from __future__ import annotations

import numpy as np

from refgpt.numbers.adapted import Adapted
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.packing import Fill, Kept, pack_leaf, plan
from refgpt.numbers.panels import Panels
from refgpt.numbers.tree import ParamTree


def repacked(params: ParamTree, current: ParamTree, own: bool, fill: Fill) -> ParamTree:
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
        return pack_leaf(name, leaf, plan(name, leaf, None, params.looked_up), fill, there if own else None)

    return params.map(packed)


def _panels(matrix: np.ndarray, own: Panels | None, fill: Fill) -> Panels:
    found = pack_leaf("adapter", matrix, Kept("f32", "panels"), fill, own)
    assert isinstance(found, Panels)
    return found
