"""The names of GPT-J in Hugging Face checkpoints: tensors of the state dict, keys of config.json.

The names and defaults are those of transformers' ``GPTJForCausalLM`` and ``GPTJConfig``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError
from refgpt._common.wording import listed, shown
from refgpt.checkpoints.checkpoint import check_params
from refgpt.numbers.leaves import Leaf
from refgpt.spec.gptj import Config, Params, leaf_shapes

log = logging.getLogger("refgpt")

MODEL_TYPE = "gptj"
#: Of a list of ids that end a text; models have two or three.
MOST_ENDS = 64

LEAVES = {
    "wte": "wte.weight",
    "ln_w": "ln_f.weight",
    "ln_b": "ln_f.bias",
    "w_head": "lm_head.weight",
    "b_head": "lm_head.bias",
}
BLOCK_LEAVES = {
    "ln_w": "ln_1.weight",
    "ln_b": "ln_1.bias",
    "wq": "attn.q_proj.weight",
    "wk": "attn.k_proj.weight",
    "wv": "attn.v_proj.weight",
    "wo": "attn.out_proj.weight",
    "w_in": "mlp.fc_in.weight",
    "b_in": "mlp.fc_in.bias",
    "w_out": "mlp.fc_out.weight",
    "b_out": "mlp.fc_out.bias",
}

#: Leaves that are one where a model's embeddings are tied: each, and what stands for it.
TIED = (("w_head", "wte"), ("wte", "w_head"))

#: Everything but the head may be written with this in front (the whole model) or without (its body saved alone).
BODY = "transformer."
#: Constants that some versions save with the weights. Only ``attn.bias``, the mask, says anything.
BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias|embed_positions|(rotary|rotary_emb)\.\w+)")

#: config.json: the key of each field, then the other names under which transformers knows it.
KEYS = {
    "n_layer": ("n_layer", "num_hidden_layers"),
    "n_head": ("n_head", "num_attention_heads"),
    "d_model": ("n_embd", "hidden_size"),
    "n_ctx": ("n_positions", "max_position_embeddings"),
    "n_vocab": ("vocab_size",),
    "d_rotary": ("rotary_dim",),
    "ln_eps": ("layer_norm_epsilon",),
    "d_ff": ("n_inner",),
    "bos_id": ("bos_token_id",),
    "eos_id": ("eos_token_id",),
}

#: Keys that may be absent but must not say otherwise, and why.
DEMANDS: dict[str, tuple[tuple[object, ...], str]] = {
    "activation_function": (("gelu_new", "gelu_pytorch_tanh"), "GPT-J's MLP uses the tanh form of GELU"),
    "scale_attn_weights": ((True,), "GPT-J divides attention scores by the square root of the head's width"),
    "scale_attn_by_inverse_layer_idx": ((False, None), "GPT-J scales the scores of every layer alike"),
    "rotary": ((True,), "GPT-J encodes positions by rotation"),
    "add_cross_attention": ((False, None), "GPT-J is a decoder alone"),
    "is_encoder_decoder": ((False, None), "GPT-J is a decoder alone"),
    "eight_bit": ((False, None), "8-bit weights are not read; use the original weights"),
    "quantization_config": ((None,), "quantised weights are not read; use the original weights"),
}


def read_config(raw: Mapping[str, Any], path: Path) -> Config:
    """config.json's keys as a ``ModelConfig``; what is absent has ``GPTJConfig``'s default.

    Parameters
    ----------
    raw : mapping
        The parsed config.json.
    path : Path
        Its path, for errors.

    Raises
    ------
    ConfigError
        If a value makes no sense, two names of one value disagree, or the file describes something other than GPT-J.
    """
    for key, (accepted, reason) in DEMANDS.items():
        if key in raw and raw[key] not in accepted:
            raise ConfigError(
                f"{key} describes another model: {reason}",
                where=path,
                got=shown(raw[key]),
                wanted=" or ".join(map(repr, accepted)),
                fix="use a checkpoint of GPT-J or GPT-JT",
            )
    given: dict[str, Any] = {
        field: _value(raw, keys, path) for field, keys in KEYS.items() if any(key in raw for key in keys)
    }
    n_vocab, d_model = given.get("n_vocab", Config.n_vocab), given.get("d_model", Config.d_model)
    ids = {field: given.get(field, getattr(Config, field)) for field in ("bos_id", "eos_id")}
    given |= read_ids({KEYS[field][0]: value for field, value in ids.items()}, n_vocab, path)
    if given.get("d_ff") is None and isinstance(d_model, int):
        given["d_ff"] = 4 * d_model
    return build_config(given, {field: keys[0] for field, keys in KEYS.items()}, path)


def read_ids(raw: Mapping[str, Any], n_vocab: Any, path: Path) -> dict[str, Any]:
    """The fields of a ``ModelConfig`` for the ids that begin and end a text, as far as keys are there.

    Raises
    ------
    ConfigError
        If a list is absurdly long. (What is no id is checked with the other fields.)
    """
    found: dict[str, Any] = {}
    (bos,), (eos,) = KEYS["bos_id"], KEYS["eos_id"]
    if bos in raw:
        found["bos_id"], further = _token_ids(bos, raw[bos], n_vocab, path)
        if further:
            log.warning("%s: %s is a list, of which only the first counts: %s", path, bos, shown(raw[bos]))
    if eos in raw:
        found["eos_id"], found["further_eos_ids"] = _token_ids(eos, raw[eos], n_vocab, path)
    return found


def build_config(given: Mapping[str, Any], keys: Mapping[str, str], path: Path, fix: str = "") -> Config:
    """A ``ModelConfig`` of the fields that a file gives.

    Parameters
    ----------
    keys : mapping of str to str
        What the file calls the fields, for errors.
    fix : str, optional
        The way out of values that make no sense; by default to correct them, as in a file of text.

    Raises
    ------
    ConfigError
        Naming the first value that makes no sense.
    """
    for field, value in given.items():
        if not isinstance(value, (int, float, type(None))) and field != "further_eos_ids":
            raise ConfigError(f"{keys.get(field, field)} is not a number", where=path, got=shown(value))
    try:
        return Config(**given)
    except ConfigError as fault:
        key = keys.get(str(fault.where), fault.where)
        raise ConfigError(
            f"{key} {fault.what}",
            where=path,
            got=fault.got,
            wanted=fault.wanted,
            fix=fix or f"correct {key}, or use the {path.name} of these weights",
        ) from fault


def _value(raw: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> Any:
    values = [raw[key] for key in keys if key in raw]
    if any(value != values[0] for value in values):
        raise ConfigError(
            f"{' and '.join(keys)} mean the same and disagree",
            where=path,
            got=listed(map(shown, values)),
            fix="remove the wrong one",
        )
    return values[0]


def _token_ids(key: str, value: Any, n_vocab: Any, path: Path) -> tuple[Any, tuple[int, ...]]:
    """The first id or None, and the further ones of a list; none beyond the vocabulary.

    transformers writes its default, 50256, even for smaller vocabularies; any other such id deserves a warning.

    Raises
    ------
    ConfigError
        If a list is absurdly long. (What is no id is returned as the first, and checked with the other fields.)
    """
    ids = value if isinstance(value, list) else [value]
    if len(ids) > MOST_ENDS:
        raise ConfigError(f"{key} is absurdly long", where=path, got=f"{len(ids)} ids", wanted=f"at most {MOST_ENDS}")
    if isinstance(value, list) and (wrong := [one for one in ids if type(one) is not int or one < 0]):
        return wrong[0], ()
    kept: list[Any] = []
    for one in dict.fromkeys(ids) if isinstance(value, list) else ids:
        if type(one) is not int or type(n_vocab) is not int or one < n_vocab:
            kept.append(one)
        elif one != Config.eos_id:
            log.warning("%s: %s %d is not in the vocabulary of %d, so there is none", path, key, one, n_vocab)
    return (kept[0], tuple(kept[1:])) if kept else (None, ())


def split_names(tensors: Mapping[str, np.ndarray], path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights and buffers, each under its name without "transformer.".

    Raises
    ------
    CheckpointError
        If a tensor is there both with and without it.
    """
    weights: dict[str, np.ndarray] = {}
    buffers: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix(BODY)
        group = buffers if BUFFER.fullmatch(short) else weights
        if short in group:
            raise CheckpointError(
                "a tensor is there twice",
                where=path,
                got=f"{shown(short)} with and without {BODY!r}",
                fix="remove one of the two",
            )
        group[short] = tensor
    return weights, buffers


def build_params(weights: Mapping[str, np.ndarray], config: Config, tied: bool, path: Path) -> Params:
    """The parameter tree over the tensors of a checkpoint; nothing is copied.

    Parameters
    ----------
    weights : mapping
        Tensors by their names without "transformer.", buffers left out.
    config : Config
        Says how many blocks there are and how large everything is.
    tied : bool
        Whether config.json says that the head is the embedding; only then may one of the two be absent: which one is
        kept depends on what wrote the file.
    path : Path
        For errors.

    Raises
    ------
    CheckpointError
        Naming every tensor that is missing, unknown or of another shape than the configuration says.
    """
    if tied:
        shared = {LEAVES[one]: weights[LEAVES[other]] for one, other in TIED if LEAVES[other] in weights}
        weights = {**shared, **weights}
    return named_params(weights, tensor_name, config, path, _way_out)


def named_params(
    tensors: Mapping[str, Leaf],
    tensor_name: Callable[[str], str],
    config: Config,
    path: Path,
    way_out: Callable[[list[str], list[str]], str],
) -> Params:
    """The parameter tree over named tensors; nothing is copied.

    Parameters
    ----------
    tensor_name : callable
        From a leaf to what the file calls it.
    way_out : callable
        From the names of tensors that are missing and of those that are unknown; neither if a shape is another.

    Raises
    ------
    CheckpointError
        Naming every tensor that is missing, unknown or of another shape than the configuration says.
    """
    names = {leaf: tensor_name(leaf) for leaf in leaf_shapes(config)}
    missing = [name for name in names.values() if name not in tensors]
    unknown = sorted(tensors.keys() - set(names.values()))
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(names)} tensors of a GPT-J are missing",
            where=path,
            got=f"no {listed(missing)}",
            fix=way_out(missing, unknown),
        )
    if unknown:
        raise CheckpointError(
            "there are tensors that have no place in GPT-J",
            where=path,
            got=listed(unknown),
            fix=way_out(missing, unknown),
        )
    params = Params.from_leaves({leaf: tensors[name] for leaf, name in names.items()}, config.n_layer)
    check_params(params, config, names, path, way_out(missing, unknown))
    return params


def tensor_name(leaf: str) -> str:
    """Where a leaf is stored, without "transformer.": "blocks.3.wq" -> "h.3.attn.q_proj.weight"."""
    if leaf in LEAVES:
        return LEAVES[leaf]
    _, i, name = leaf.split(".")
    return f"h.{i}.{BLOCK_LEAVES[name]}"


def full_name(leaf: str) -> str:
    """The same in a whole ``GPTJForCausalLM``: all but the head with "transformer." in front."""
    name = tensor_name(leaf)
    return name if name.startswith("lm_head.") else BODY + name


def _way_out(missing: list[str], unknown: list[str]) -> str:
    if missing == ["lm_head.bias"]:
        return "GPT-J's head has a bias: take it from the original weights, or add zeros if there is none"
    if missing and all(name.startswith("lm_head.") for name in missing):
        return "the body was saved without its head: save the whole GPTJForCausalLM"
    if missing:
        return "check that the download is complete and that config.json came with these weights"
    if any("lora_" in name for name in unknown):
        return "these are LoRA adapters: load their base model with adapter="
    if unknown:
        return "check that these are GPT-J's weights and that n_layer in config.json is theirs"
    return "use the config.json that came with these weights"
