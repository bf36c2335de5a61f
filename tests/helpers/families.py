"""A small model of every variant of every family: GPT-J's kin differ in what a configuration can say."""

from __future__ import annotations

from typing import Any

from refgpt.spec import gpt2, gpt_neo, gpt_neox
from tests.helpers.tiny import tiny_config

COMMON: dict[str, Any] = {"n_layer": 2, "n_head": 4, "d_model": 32, "d_ff": 80, "n_vocab": 61, "n_ctx": 64}
COMMON |= {"bos_id": None, "eos_id": None}
LAYERS = ("global", "local")

VARIANTS: dict[str, Any] = {
    "gptj": tiny_config(),
    "gpt2": gpt2.Config(**COMMON),
    "gpt2, scores divided by layer": gpt2.Config(**COMMON | {"n_layer": 3, "scale_attn_by_inverse_layer_idx": True}),
    "gpt2, scores undivided, exact GELU": gpt2.Config(
        **COMMON | {"n_head": 2, "d_model": 36, "scale_attn_weights": False, "activation": "gelu"}
    ),
    "gpt_neo": gpt_neo.Config(**COMMON, attention_layers=LAYERS, window_size=5),
    "gpt_neo, global only": gpt_neo.Config(**COMMON | {"d_model": 40}, attention_layers=("global", "global")),
    "gpt_neo, local first": gpt_neo.Config(
        **COMMON | {"n_layer": 3}, attention_layers=("local", "global", "local"), window_size=2
    ),
    "gpt_neox": gpt_neox.Config(**COMMON, d_rotary=4, activation="gelu"),
    "gpt_neox, tanh GELU, another base": gpt_neox.Config(
        **COMMON, d_rotary=8, activation="gelu_fast", rotary_base=500.0
    ),
    "gpt_neox, one after the other": gpt_neox.Config(
        **COMMON | {"n_head": 2}, d_rotary=10, activation="gelu_new", use_parallel_residual=False
    ),
    "gpt_neox, attention without biases": gpt_neox.Config(
        **COMMON | {"d_model": 24}, d_rotary=2, activation="gelu", attention_bias=False
    ),
}
