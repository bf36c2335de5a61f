"""Adapters of random numbers, and engines that have several."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np

import refgpt
from refgpt import training
from refgpt.checkpoints.adapters import Pair
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.tree import ParamTree
from refgpt.training.lora import attach


def random_pairs(tree: ParamTree, seed: int, kinds: str = "wq wv", rank: int = 3) -> dict[str, Pair]:
    """An adapter of the matrices of these kinds, "w_head" among them, that changes every logit."""
    stream, pairs = np.random.RandomState(seed), {}
    for name, leaf in tree.items():
        if leaf.ndim == 2 and name.rpartition(".")[2] in kinds.split():
            a, b = (stream.standard_normal(shape) for shape in ((rank, leaf.shape[1]), (leaf.shape[0], rank)))
            pairs[name] = Pair((a / leaf.shape[1] ** 0.5).astype(np.float32), (b / 4).astype(np.float32), 1.5)
    return pairs


def with_pairs(engine: Any, pairs: Mapping[str, Pair]) -> Any:
    """The engine with one adapter that is always applied."""
    found = copy(engine)
    attach(found, pairs)
    return found


def with_named(engine: Any, named: Mapping[str, Mapping[str, Pair]]) -> Any:
    """The engine with several adapters that are chosen by name."""
    found = copy(engine)
    found.adapters = {name: with_pairs(engine, pairs) for name, pairs in named.items()}
    return found


def written(base: Path | None, path: Path, kinds: str, seed: int, mask: str | None = None) -> Path:
    """A directory with a random adapter for a model, trained with this mask if one is given."""
    model = training.new_adapter(refgpt.load(base, mask=mask or "auto"), targets="all", rank=2)
    pairs = random_pairs(model.checkpoint.params, seed, kinds, rank=2)

    def exchanged(name: str, leaf: Leaf) -> Leaf:
        base = leaf.base if isinstance(leaf, Adapted) else leaf
        return Adapted(base, pairs[name].a, 3 * pairs[name].b, 1.0) if name in pairs else base

    model.engine.adopt(model.engine.kept().map(exchanged))
    training.Trainer(model).write(path)
    return path


def oz_and_law(folder: Path, law: str = "law") -> dict[str, Path]:
    """Two adapters of the included model by name, each of other matrices; the second was trained with a prefix mask."""
    return {
        "oz": written(None, folder / "oz", "wq wv", 1),
        law: written(None, folder / "law", "w_in w_out", 2, mask="prefix"),
    }
