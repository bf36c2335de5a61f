"""The names of GPT-NeoX, and so of Pythia, in every format."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refgpt._common.errors import ConfigError
from refgpt._common.wording import listed, shown
from refgpt.checkpoints.families.formats import Ggml, Gguf, HuggingFace
from refgpt.checkpoints.families.names import Names, thirds
from refgpt.checkpoints.families.settings import DECODER
from refgpt.checkpoints.files.ggml_file import Header
from refgpt.spec.gpt_neox import Config

TITLE = "GPT-NeoX"
MODEL_TYPE = Config.model_type
CTRANSLATE2 = MESH = None

#: The share of each head that is rotated, and the base: transformers' defaults.
SHARE, BASE = 0.25, 10000.0
#: What errors call the keys of these two in config.json, by field; in brackets the names in transformers 5.
_KNOWN_AS = {"d_rotary": "rotary_pct (partial_rotary_factor)", "rotary_base": "rotary_emb_base (rope_theta)"}
#: All keys that the object of the rotation has where nothing is scaled. Others are those of a scaling.
_UNSCALED = ("rope_type", "type", "rope_theta", "partial_rotary_factor")


def _read_rotation(raw: Mapping[str, Any], given: dict[str, Any], path: Path) -> None:
    """``rotary_pct`` and ``rotary_emb_base``; since transformers 5 ``rope_parameters``, an object that has both.

    The object's earlier name was ``rope_scaling``, which comes first where both are there and it is not empty.
    """
    found = [(key, raw[key]) for key in ("rope_scaling", "rope_parameters") if raw.get(key) not in (None, {})]
    where, parameters = found[0] if found else ("", {})
    if not isinstance(parameters, dict):
        raise ConfigError(f"{where} is no object", where=path, got=shown(parameters))
    for key, wanted in (("rope_type", "default"), ("type", "default")):
        if parameters.get(key) not in (None, wanted):
            raise ConfigError(
                f"{key} in {where} describes another model: GPT-NeoX's positions are not scaled",
                where=path,
                got=shown(parameters[key]),
                wanted=repr(wanted),
                fix="use a checkpoint of GPT-NeoX",
            )
    others = [key for key, value in parameters.items() if key not in _UNSCALED and value is not None]
    if others and parameters.get("rope_type") is None and parameters.get("type") is None:
        raise ConfigError(
            f"{where} describes another model: GPT-NeoX's positions are not scaled",
            where=path,
            got=listed(shown(f"{key}") for key in others),
            wanted=f"nothing but {listed(_UNSCALED)}, or the rope_type 'default', with which nothing is scaled",
            fix="use a checkpoint of GPT-NeoX",
        )
    base = parameters.get("rope_theta", raw.get("rotary_emb_base", BASE))
    share = parameters.get("partial_rotary_factor", raw.get("rotary_pct", SHARE))
    for field, value in (("rotary_base", base), ("d_rotary", share)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ConfigError(f"{_KNOWN_AS[field]} is not a number", where=path, got=shown(value))
    if not 0 < share <= 1:
        wanted = "more than 0, at most 1"
        raise ConfigError(f"{_KNOWN_AS['d_rotary']} cannot be used", where=path, got=share, wanted=wanted)
    given["rotary_base"] = base
    width, n_head = given.get("d_model", Config.d_model), given.get("n_head", Config.n_head)
    if type(width) is int and type(n_head) is int and n_head > 0:
        given["d_rotary"] = int(width // n_head * share)


def _write_rotation(config: Config) -> dict[str, Any]:
    share = config.d_rotary / config.d_head
    while int(config.d_head * share) < config.d_rotary:  # as transformers counts
        share = math.nextafter(share, 2)
    return {"rotary_pct": share, "rotary_emb_base": config.rotary_base}


#: The names and defaults are those of transformers' ``GPTNeoXForCausalLM`` and ``GPTNeoXConfig``.
HUGGING_FACE = HuggingFace(
    title=TITLE,
    config=Config,
    architecture="GPTNeoXForCausalLM",
    names=Names(
        body="gpt_neox.",
        head="embed_out.",
        model={
            "wte": "embed_in.weight",
            "ln_w": "final_layer_norm.weight",
            "ln_b": "final_layer_norm.bias",
            "w_head": "embed_out.weight",
        },
        block={
            "ln1_w": "layers.{}.input_layernorm.weight",
            "ln1_b": "layers.{}.input_layernorm.bias",
            **thirds("layers.{}.attention.query_key_value.weight", "wq wk wv", by_head=True),
            **thirds("layers.{}.attention.query_key_value.bias", "bq bk bv", by_head=True),
            "wo": "layers.{}.attention.dense.weight",
            "bo": "layers.{}.attention.dense.bias",
            "ln2_w": "layers.{}.post_attention_layernorm.weight",
            "ln2_b": "layers.{}.post_attention_layernorm.bias",
            "w_in": "layers.{}.mlp.dense_h_to_4h.weight",
            "b_in": "layers.{}.mlp.dense_h_to_4h.bias",
            "w_out": "layers.{}.mlp.dense_4h_to_h.weight",
            "b_out": "layers.{}.mlp.dense_4h_to_h.bias",
        },
    ),
    buffer=re.compile(r"(layers\.\d+\.attention\.(bias|masked_bias|norm_factor)|(.+\.)?rotary_emb\.\w+)"),
    keys={
        "n_layer": ("num_hidden_layers",),
        "n_head": ("num_attention_heads",),
        "d_model": ("hidden_size",),
        "n_ctx": ("max_position_embeddings",),
        "n_vocab": ("vocab_size",),
        "activation": ("hidden_act",),
        "use_parallel_residual": ("use_parallel_residual",),
        "attention_bias": ("attention_bias",),
        "ln_eps": ("layer_norm_eps",),
        "d_ff": ("intermediate_size",),
        "bos_id": ("bos_token_id",),
        "eos_id": ("eos_token_id",),
    },
    demands=DECODER,
    constants={"model_type": MODEL_TYPE, "tie_word_embeddings": False},
    defaults={"d_ff": Config.d_ff, "activation": "gelu", "eos_id": 2},
    mask="layers.{}.attention.bias",
    aliases={"lm_head.weight": "embed_out.weight"},
    known_as=_KNOWN_AS,
    read=_read_rotation,
    write=_write_rotation,
)

_NOTE = (
    "the file does not say which GELU the MLP uses: it is the exact one here, as in Pythia; llama.cpp and ggml compute "
    "the tanh form, which changes the logits by about 0.001"
)

#: As llama.cpp writes them: first all queries, then keys, then values. The base and the activation are not stored.
GGUF = Gguf(
    title=TITLE,
    config=Config,
    architecture="gptneox",
    names=Names(
        model={
            "wte": "token_embd.weight",
            "ln_w": "output_norm.weight",
            "ln_b": "output_norm.bias",
            "w_head": "output.weight",
        },
        block={
            "ln1_w": "blk.{}.attn_norm.weight",
            "ln1_b": "blk.{}.attn_norm.bias",
            **thirds("blk.{}.attn_qkv.weight", "wq wk wv"),
            **thirds("blk.{}.attn_qkv.bias", "bq bk bv"),
            "wo": "blk.{}.attn_output.weight",
            "bo": "blk.{}.attn_output.bias",
            "ln2_w": "blk.{}.ffn_norm.weight",
            "ln2_b": "blk.{}.ffn_norm.bias",
            "w_in": "blk.{}.ffn_up.weight",
            "b_in": "blk.{}.ffn_up.bias",
            "w_out": "blk.{}.ffn_down.weight",
            "b_out": "blk.{}.ffn_down.bias",
        },
    ),
    keys={
        "n_layer": ("{}.block_count", "{}.layer_count"),
        "n_head": ("{}.attention.head_count",),
        "d_model": ("{}.embedding_length",),
        "n_ctx": ("{}.context_length",),
        "d_rotary": ("{}.rope.dimension_count",),
        "rotary_base": ("{}.rope.freq_base",),
        "use_parallel_residual": ("{}.use_parallel_residual",),
        "ln_eps": ("{}.attention.layer_norm_epsilon",),
        "d_ff": ("{}.feed_forward_length",),
    },
    optional=("d_ff", "ln_eps", "rotary_base", "use_parallel_residual"),
    demands={
        "{}.rope.scale": ((1.0,), "GPT-NeoX's positions are not scaled"),
        "{}.rope.scale_linear": ((1.0,), "GPT-NeoX's positions are not scaled"),
        "{}.rope.scaling.type": ((b"none",), "GPT-NeoX's positions are not scaled"),
    },
    told={"attention_bias": lambda tensors: "blk.0.attn_qkv.bias" in tensors},
    own={"activation": "gelu"},
    assumed={"attention_bias": (True,)},
    note=_NOTE,
)

#: The header's numbers in ggml's example gpt-neox. Before 13 May 2023 ``par_res`` was not among them, and attention and
#: MLP always parallel.
_NUMBERS = ("n_vocab", "n_ctx", "n_embd", "n_head", "n_layer", "n_rot", "par_res", "ftype")

#: As ggml's example gpt-neox writes them; the tensors have the names of transformers.
GGML = Ggml(
    title=TITLE,
    config=Config,
    headers=(
        Header(TITLE, _NUMBERS, (12, 4), counted=False),
        Header(TITLE, tuple(name for name in _NUMBERS if name != "par_res"), (12, 4), counted=False),
    ),
    fields={
        "n_layer": "n_layer",
        "n_head": "n_head",
        "d_model": "n_embd",
        "d_rotary": "n_rot",
        "n_vocab": "n_vocab",
        "n_ctx": "n_ctx",
        "use_parallel_residual": "par_res",
    },
    names=HUGGING_FACE.names,
    constants={"ln_eps": 1e-5, "rotary_base": BASE, "activation": "gelu", "use_parallel_residual": True},
    told={
        "attention_bias": lambda tensors: HUGGING_FACE.names("blocks.0.bq") in tensors,
    },
    note=_NOTE,
)
