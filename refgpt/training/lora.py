"""Adapters of a loaded model: new ones, those of files, and models into which one is merged."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.arguments import number, whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.float_state import default_float_state
from refgpt._common.wording import listed, shown
from refgpt.checkpoints.adapters import CONFIG, MASK, SAFETENSORS, Pair, module_name, peft_key
from refgpt.conversion.staging import staged
from refgpt.conversion.tensor_files import write_tensors
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.tree import Tree
from refgpt.runtime.engine import Engine
from refgpt.training.parameters import TrainedModel, check_model

#: The matrices that ``new_adapter`` knows, by short names and by PEFT's.
TARGETS = {"q": "wq", "k": "wk", "v": "wv", "o": "wo", "fc_in": "w_in", "fc_out": "w_out"}
TARGETS |= {"q_proj": "wq", "k_proj": "wk", "v_proj": "wv", "out_proj": "wo"}


@default_float_state()
def attach(engine: Engine, pairs: Mapping[str, Pair]) -> None:
    """Put adapters beside some matrices of an engine, by leaf."""
    already = [name for name, leaf in engine.kept().items() if isinstance(leaf, Adapted)]
    if already:
        raise RefgptError(
            "the model has an adapter already", where="adapter", got=f"one of {already[0]}", fix="load the model anew"
        )

    engine.adopt(with_pairs(engine.kept(), pairs))


def with_pairs(params: Tree, pairs: Mapping[str, Pair]) -> Tree:
    """A tree in which some matrices, by leaf, have an adapter beside them."""

    def adapted(name: str, leaf: Leaf) -> Leaf:
        pair = pairs.get(name)
        return leaf if pair is None else Adapted(leaf, pair.a, pair.b, pair.scale)

    return params.map(adapted)


def new_adapter(model: Any, rank: int = 8, alpha: float = 16, targets: str = "q,v", seed: int = 0) -> Any:
    """Give a model an adapter that changes nothing yet: what a ``Trainer`` of that model will train.

    Parameters
    ----------
    model : Model
        As ``refgpt.load`` gives it, in any dtype; it is changed in place.
    rank : int
        Rows of A, columns of B.
    alpha : float
        The product of B and A is multiplied by ``alpha / rank``.
    targets : str
        Which matrices of each block: of q, k, v, o, fc_in, fc_out, with commas between, or "all".
    seed : int
        Of A, which is drawn evenly from ``+-1 / sqrt(n_in)``, as PEFT does; B is zero.

    Returns
    -------
    Model
        The same.

    Raises
    ------
    RefgptError
        If the family has no gradients, the model has an adapter already, or an argument cannot be used.
    """
    trained = check_model(model)
    if trained.engine.config.model_type != "gptj":
        what = "adapters of this family of models are not written; all its weights can be trained"
        raise RefgptError(what, where="model", got=trained.engine.config.model_type, wanted="gptj")
    rank = whole_number("rank", rank, 1, trained.engine.config.d_model, RefgptError)
    alpha = number("alpha", alpha, math.ulp(0), None, RefgptError)
    stream = np.random.RandomState(whole_number("seed", seed, 0, 2**32 - 1, RefgptError))
    kinds = _kinds(targets)
    pairs: dict[str, Pair] = {}
    for name, leaf in trained.engine.kept().items():
        if name.startswith("blocks.") and name.rpartition(".")[2] in kinds:
            n_out, n_in = leaf.shape
            a = ((stream.random_sample((rank, n_in)) * 2 - 1) / math.sqrt(n_in)).astype(np.float32)
            pairs[name] = Pair(a, np.zeros((n_out, rank), np.float32), alpha / rank)
    attach(trained.engine, pairs)
    return model


def _kinds(targets: Any) -> set[str]:
    asked = [one.strip() for one in targets.split(",")] if isinstance(targets, str) else []
    if asked == ["all"]:
        return set(TARGETS.values())
    if not asked or any(one not in TARGETS for one in asked):
        wanted = f"some of {listed(TARGETS)}, with commas between, or all"
        raise RefgptError("cannot be used", where="targets", got=shown(targets), wanted=wanted)
    return {TARGETS[one] for one in asked}


def write_adapter(model: TrainedModel, directory: str | Path) -> None:
    """Write a model's adapter as PEFT does.

    Parameters
    ----------
    directory : str or Path
        Not there yet, or empty. It appears when it is whole.

    Raises
    ------
    RefgptError
        If the model has none, or the directory is taken or cannot be written.
    """
    adapted = {name: leaf for name, leaf in model.engine.kept().items() if isinstance(leaf, Adapted)}
    if not adapted:
        raise RefgptError("has no adapter to write", where="model", fix="give it one with new_adapter")
    tensors = {peft_key(n, side): x for n, leaf in adapted.items() for side, x in (("A", leaf.a), ("B", leaf.b))}
    with staged(Path(directory), sum(x.nbytes for x in tensors.values())) as staging:
        write_tensors(staging / SAFETENSORS, tensors, {"format": "pt", MASK: model.checkpoint.mask})
        text = json.dumps(_config(adapted, model.engine.config.n_layer), indent=2)
        (staging / CONFIG).write_text(text + "\n", encoding="utf-8")


def _config(adapted: Mapping[str, Adapted], n_layer: int) -> dict[str, Any]:
    """What PEFT needs to know."""
    ranks = {module_name(name): len(leaf.a) for name, leaf in adapted.items()}
    alphas = {module_name(name): _whole(leaf.scale * len(leaf.a)) for name, leaf in adapted.items()}
    rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
    last_names = Counter(module.rpartition(".")[2] for module in ranks)
    everywhere = all(n == n_layer for n in last_names.values()) and "lm_head" not in last_names
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(last_names) if everywhere else sorted(ranks),
        "rank_pattern": {module: one for module, one in ranks.items() if one != rank},
        "alpha_pattern": {module: one for module, one in alphas.items() if one != alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _whole(value: float) -> float:
    return round(value) if round(value) == value else value
