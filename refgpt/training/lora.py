"""Adapters of a loaded model: make new ones, read and write files, and merge an adapter into a model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.arguments import number, path_of, whole_number
from refgpt._common.errors import CheckpointError, RefgptError
from refgpt._common.float_state import default_float_state
from refgpt._common.wording import listed, shown
from refgpt.checkpoints.adapters import CONFIG, HEADS, MASK, SAFETENSORS, Module, Pair, modules_of, peft_key
from refgpt.conversion.staging import staged
from refgpt.conversion.tensor_files import write_tensors
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.tree import Tree
from refgpt.runtime.engine import Engine
from refgpt.spec.config import AnyConfig
from refgpt.training.parameters import TrainedModel, check_model

#: Limits on a new adapter's alpha, so that what is written can be read.
ALPHAS = 1e-6, 1e6
#: The matrices that ``new_adapter`` knows.
TARGETS = {"q": "wq", "k": "wk", "v": "wv", "o": "wo", "fc_in": "w_in", "fc_out": "w_out"}


@default_float_state()
def attach(engine: Engine, pairs: Mapping[str, Pair]) -> None:
    """Add adapters to some matrices of an engine, by leaf."""
    already = [name for name, leaf in engine.kept().items() if isinstance(leaf, Adapted)]
    if already:
        raise RefgptError(
            "the model has an adapter already", where="adapter", got=f"one of {already[0]}", fix="load the model anew"
        )

    engine.adopt(with_pairs(engine.kept(), pairs))


def with_pairs(params: Tree, pairs: Mapping[str, Pair]) -> Tree:
    """A copy of a tree in which some matrices, by leaf, have an adapter."""

    def adapted(name: str, leaf: Leaf) -> Leaf:
        pair = pairs.get(name)
        return leaf if pair is None else Adapted(leaf, pair.a, pair.b, pair.scale)

    return params.map(adapted)


def new_adapter(model: Any, rank: int = 8, alpha: float = 16, targets: str = "q,v", seed: int = 0) -> Any:
    """Give a model an adapter that changes nothing yet. A ``Trainer`` of that model trains it.

    Parameters
    ----------
    model : Model
        A model of ``refgpt.load``, in any dtype; it is changed in place.
    rank : int
        The number of rows of A and columns of B.
    alpha : float
        The product of B and A is multiplied by ``alpha / rank``.
    targets : str
        Which matrices of each block get an adapter: some of q, k, v, o, fc_in, fc_out, separated by commas, or "all".
        PEFT's names of the family's modules, such as "query_key_value", are accepted too.
    seed : int
        The seed of A, which is drawn uniformly between ``+-1 / sqrt(n_in)``, as PEFT does; B is zero.

    Returns
    -------
    Model
        The same model.

    Raises
    ------
    RefgptError
        If the family has no gradients, the model has an adapter already, or an argument cannot be used.
    """
    trained = check_model(model)
    rank = whole_number("rank", rank, 1, trained.engine.config.d_model, RefgptError)
    alpha = number("alpha", alpha, *ALPHAS, RefgptError)
    stream = np.random.RandomState(whole_number("seed", seed, 0, 2**32 - 1, RefgptError))
    kinds = _kinds(targets, trained.engine.config)
    pairs: dict[str, Pair] = {}
    for name, leaf in trained.engine.kept().items():
        if name.startswith("blocks.") and name.rpartition(".")[2] in kinds:
            n_out, n_in = leaf.shape
            a = ((stream.random_sample((rank, n_in)) * 2 - 1) / math.sqrt(n_in)).astype(np.float32)
            pairs[name] = Pair(a, np.zeros((n_out, rank), np.float32), alpha / rank)
    attach(trained.engine, pairs)
    return model


def _kinds(targets: Any, config: AnyConfig) -> set[str]:
    known = {name: {kind} for name, kind in TARGETS.items()}
    for module in modules_of(config).values():
        if module.leaves[0].startswith("blocks."):
            known.setdefault(_last(module.name), set()).update(_last(leaf) for leaf in module.leaves)
    asked = [one.strip() for one in targets.split(",")] if isinstance(targets, str) else []
    if asked == ["all"]:
        return set(TARGETS.values())
    if not asked or any(one not in known for one in asked):
        wanted = f"some of {listed(known)}, with commas between, or all"
        raise RefgptError("cannot be used", where="targets", got=shown(targets), wanted=wanted)
    return set().union(*(known[one] for one in asked))


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def write_adapter(model: TrainedModel, directory: str | Path) -> None:
    """Write a model's adapter as PEFT does.

    Parameters
    ----------
    directory : str or Path
        A new or empty directory. It appears when it is complete.

    Raises
    ------
    RefgptError
        If the model has no adapter, or the directory is not empty or cannot be written.
    """
    place, config = path_of("directory", directory, CheckpointError), model.engine.config
    adapted = {name: leaf for name, leaf in model.engine.kept().items() if isinstance(leaf, Adapted)}
    if not adapted:
        raise RefgptError("has no adapter to write", where="model", fix="give it one with new_adapter")
    modules = modules_of(config)
    pairs = {
        name: _joined(module, adapted, config) for name, module in modules.items() if {*module.leaves} & {*adapted}
    }
    tensors = {peft_key(name, side): x for name, pair in pairs.items() for side, x in (("A", pair.a), ("B", pair.b))}
    with staged(place, sum(x.nbytes for x in tensors.values())) as staging:
        write_tensors(staging / SAFETENSORS, tensors, {"format": "pt", MASK: model.checkpoint.mask})
        text = json.dumps(_config(pairs, modules), indent=2)
        (staging / CONFIG).write_text(text + "\n", encoding="utf-8")


def _joined(module: Module, adapted: Mapping[str, Adapted], config: AnyConfig) -> Pair:
    """The pair A and B of a module. If it holds queries, keys and values, their three adapters become one, and their
    ranks add up.

    Each column of B then writes to only one of the three, unless all three have the same A.
    """
    parts = [(part, adapted[leaf]) for part, leaf in enumerate(module.leaves) if leaf in adapted]
    first = parts[0][1]
    if len(module.leaves) == 1:
        return Pair(first.a, first.b, first.scale)
    n_out = first.shape[0]
    alike = len(parts) == 3 and all(np.array_equal(p.a, first.a) and p.scale == first.scale for _, p in parts)
    a = first.a if alike else np.concatenate([p.a for _, p in parts])  # [rank, n_in]
    b, start = np.zeros((3 * n_out, len(a)), np.float32), 0
    for part, p in parts:
        columns = slice(start, start + len(p.a))
        b[module.rows(part, n_out, config.n_head), columns] = p.b * np.float32(p.scale / first.scale)
        start += 0 if alike else len(p.a)
    return Pair(a, b, first.scale)


def _config(pairs: Mapping[str, Pair], modules: Mapping[str, Module]) -> dict[str, Any]:
    """The configuration file that PEFT needs."""
    ranks = {name: len(pair.a) for name, pair in pairs.items()}
    alphas = {name: _whole(pair.scale * len(pair.a)) for name, pair in pairs.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    last_names = sorted(set(map(_last, ranks)))
    everywhere = {name for name in modules if _last(name) in last_names} == ranks.keys()
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": last_names if everywhere and not HEADS & {*last_names} else sorted(ranks),
        "rank_pattern": {module: one for module, one in ranks.items() if one != rank},
        "alpha_pattern": {module: one for module, one in alphas.items() if one != alpha},
        "bias": "none",
        "fan_in_fan_out": any(module.turned for module in modules.values()),
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _whole(value: float) -> float:
    return round(value) if round(value) == value else value
