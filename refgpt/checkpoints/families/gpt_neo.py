"""The names of GPT-Neo in every format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refgpt._common.errors import ConfigError
from refgpt._common.wording import shown
from refgpt.checkpoints.families.formats import Gguf, HuggingFace
from refgpt.checkpoints.families.names import Names
from refgpt.checkpoints.families.settings import DECODER
from refgpt.spec.config import LARGEST
from refgpt.spec.gpt_neo import Config

TITLE = "GPT-Neo"
MODEL_TYPE = Config.model_type
CTRANSLATE2 = MESH = GGML = None
ALTERNATING = ("global", "local")


def _read_layers(raw: Mapping[str, Any], given: dict[str, Any], path: Path) -> None:
    """Which layers are local: spelt out as ``attention_layers``, or as ``attention_types``, pairs of a pattern and how
    often it comes, [[["global", "local"], 12]].
    """
    found = []
    if raw.get("attention_types") is not None:
        found.append(_spelt_out(raw["attention_types"], path))
    if isinstance(raw.get("attention_layers"), list):
        found.append(tuple(raw["attention_layers"]))
    elif raw.get("attention_layers") is not None:
        raise ConfigError("attention_layers is no list", where=path, got=shown(raw["attention_layers"]))
    if found and found[0] != found[-1]:
        raise ConfigError(
            "attention_types and attention_layers disagree",
            where=path,
            got=f"{shown(raw['attention_types'])} and {shown(raw['attention_layers'])}",
            fix="remove the wrong one",
        )
    given["attention_layers"] = found[0] if found else ALTERNATING * 12


def _spelt_out(types: Any, path: Path) -> tuple[str, ...]:
    layers: list[str] = []
    pairs: list[Any] = types if isinstance(types, list) else [None]
    for pair in pairs:
        pair = pair if isinstance(pair, list) else []
        fits = len(pair) == 2 and isinstance(pair[0], list) and type(pair[1]) is int
        if not fits or not 0 <= pair[1] * len(pair[0]) <= LARGEST["n_layer"]:
            raise ConfigError(
                "attention_types makes no sense",
                where=path,
                got=shown(types),
                wanted='pairs of a pattern and a count, such as [[["global", "local"], 12]]',
            )
        layers += pair[0] * pair[1]
    return tuple(layers)


def _write_layers(config: Config) -> dict[str, Any]:
    layers = list(config.attention_layers)
    n = len(layers) // 2
    pattern = [[list(ALTERNATING), n]] if layers == list(ALTERNATING) * n else [[[kind], 1] for kind in layers]
    return {"attention_types": pattern, "attention_layers": layers}


#: The names and defaults are those of transformers' ``GPTNeoForCausalLM`` and ``GPTNeoConfig``.
HUGGING_FACE = HuggingFace(
    title=TITLE,
    config=Config,
    architecture="GPTNeoForCausalLM",
    names=Names(
        body="transformer.",
        head="lm_head.",
        model={"wte": "wte.weight", "wpe": "wpe.weight", "ln_w": "ln_f.weight", "ln_b": "ln_f.bias"},
        block={
            "ln1_w": "h.{}.ln_1.weight",
            "ln1_b": "h.{}.ln_1.bias",
            "wq": "h.{}.attn.attention.q_proj.weight",
            "wk": "h.{}.attn.attention.k_proj.weight",
            "wv": "h.{}.attn.attention.v_proj.weight",
            "wo": "h.{}.attn.attention.out_proj.weight",
            "bo": "h.{}.attn.attention.out_proj.bias",
            "ln2_w": "h.{}.ln_2.weight",
            "ln2_b": "h.{}.ln_2.bias",
            "w_in": "h.{}.mlp.c_fc.weight",
            "b_in": "h.{}.mlp.c_fc.bias",
            "w_out": "h.{}.mlp.c_proj.weight",
            "b_out": "h.{}.mlp.c_proj.bias",
        },
    ),
    buffer=re.compile(r"h\.\d+\.attn\.attention\.(bias|masked_bias)"),
    keys={
        "n_layer": ("num_layers", "num_hidden_layers"),
        "n_head": ("num_heads", "num_attention_heads"),
        "d_model": ("hidden_size",),
        "n_ctx": ("max_position_embeddings",),
        "n_vocab": ("vocab_size",),
        "activation": ("activation_function",),
        "window_size": ("window_size",),
        "ln_eps": ("layer_norm_epsilon",),
        "d_ff": ("intermediate_size",),
        "bos_id": ("bos_token_id",),
        "eos_id": ("eos_token_id",),
    },
    demands=DECODER,
    constants={"model_type": MODEL_TYPE, "tie_word_embeddings": True},
    defaults={"n_layer": 24, "n_head": 16, "d_model": 2048},
    tied_head="lm_head.weight",
    read=_read_layers,
    write=_write_layers,
)

#: No other program writes or reads GGUF files of GPT-Neo. The names are llama.cpp's names of the same tensors in other
#: families.
GGUF = Gguf(
    title=TITLE,
    config=Config,
    architecture="gptneo",
    names=Names(
        model={
            "wte": "token_embd.weight",
            "wpe": "position_embd.weight",
            "ln_w": "output_norm.weight",
            "ln_b": "output_norm.bias",
        },
        block={
            "ln1_w": "blk.{}.attn_norm.weight",
            "ln1_b": "blk.{}.attn_norm.bias",
            "wq": "blk.{}.attn_q.weight",
            "wk": "blk.{}.attn_k.weight",
            "wv": "blk.{}.attn_v.weight",
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
        "n_layer": ("{}.block_count",),
        "n_head": ("{}.attention.head_count",),
        "d_model": ("{}.embedding_length",),
        "n_ctx": ("{}.context_length",),
        "ln_eps": ("{}.attention.layer_norm_epsilon",),
        "d_ff": ("{}.feed_forward_length",),
        "window_size": ("{}.attention.sliding_window",),
    },
    optional=("d_ff", "ln_eps", "window_size"),
    own={
        "activation": "gelu_new",
        "attention_layers": lambda given: (ALTERNATING * LARGEST["n_layer"])[: given["n_layer"]],
    },
    tied_head="output.weight",
)
