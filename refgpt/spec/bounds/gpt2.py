"""The bound of each activation of a GPT-2, from the activations that it was computed from: beside ``spec/gpt2.py``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from refgpt.numbers.dtypes import Compute, KVDtype
from refgpt.spec.bounds.ops import (
    ACTIVATION_BOUNDS,
    layer_norm_bound,
    linear_bound,
    pattern_bound,
    residual_bound,
    z_bound,
)
from refgpt.spec.gpt2 import Config, Params, score_divisor, taps
from refgpt.spec.masks import prefix_mask


def tap_bound(
    name: str,
    trace: Mapping[str, np.ndarray],
    params: Params,
    config: Config,
    prefix_len: int,
    kv_dtype: KVDtype,
    chunk: int | None,
    compute: Compute,
) -> np.ndarray:
    """See ``refgpt.spec.bounds.tap_bound``; ``name`` is one of ``tap_names(config)``."""
    stream, linear = taps(config).stream, partial(linear_bound, chunk=chunk, compute=compute)
    if name in ("embed", "pos_embed"):
        return np.zeros(config.d_model)
    if name == "resid_pre":
        return residual_bound(trace["embed"], trace["pos_embed"])
    if name == "ln_final":
        return layer_norm_bound(trace[stream(config.n_layer)], params.ln_w, params.ln_b, config.ln_eps)
    if name == "logits":
        return linear(trace["ln_final"], params.wte, None)
    _, number, part = name.split(".")
    i = int(number)
    p = params.blocks[i]

    def of(part: str) -> np.ndarray:
        return trace[f"blocks.{i}.{part}"]

    match part:
        case "ln1":
            return layer_norm_bound(trace[stream(i)], p.ln1_w, p.ln1_b, config.ln_eps)
        case "q" | "k" | "v":
            rows = linear(of("ln1"), getattr(p, f"w{part}"), getattr(p, f"b{part}"))
            return rows.reshape(-1, config.n_head, config.d_head)
        case "pattern":
            mask = prefix_mask(len(of("q")), prefix_len)
            return pattern_bound(of("q"), of("k"), mask, kv_dtype, chunk, score_divisor(config, i))
        case "z":
            return z_bound(of("pattern"), of("v"), kv_dtype, chunk)
        case "attn_out":
            return linear(of("z").reshape(len(of("z")), -1), p.wo, p.bo)
        case "resid_mid":
            return residual_bound(trace[stream(i)], of("attn_out"))
        case "ln2":
            return layer_norm_bound(of("resid_mid"), p.ln2_w, p.ln2_b, config.ln_eps)
        case "mlp_pre":
            return linear(of("ln2"), p.w_in, p.b_in)
        case "mlp_post":
            return ACTIVATION_BOUNDS[config.activation](of("mlp_pre"))
        case "mlp_out":
            return linear(of("mlp_post"), p.w_out, p.b_out)
        case _:  # resid_post
            return residual_bound(of("resid_mid"), of("mlp_out"))
