"""Bounds of the activations of a GPT-NeoX, from those they were computed from: beside ``spec/gpt_neox.py``."""

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
    rotary_bound,
    z_bound,
)
from refgpt.spec.gpt_neox import Config, Params, taps
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
    if name == "embed":
        return np.zeros(config.d_model)
    if name == "ln_final":
        return layer_norm_bound(trace[stream(config.n_layer)], params.ln_w, params.ln_b, config.ln_eps)
    if name == "logits":
        return linear(trace["ln_final"], params.w_head, None)
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
        case "q_rot" | "k_rot":
            rows = of(part[0])
            return rotary_bound(rows, np.arange(len(rows)), config.d_rotary, config.rotary_base, halves=True)
        case "pattern":
            mask = prefix_mask(len(of("q_rot")), prefix_len)
            return pattern_bound(of("q_rot"), of("k_rot"), mask, kv_dtype, chunk)
        case "z":
            return z_bound(of("pattern"), of("v"), kv_dtype, chunk)
        case "attn_out":
            return linear(of("z").reshape(len(of("z")), -1), p.wo, p.bo)
        case "resid_mid":
            return residual_bound(trace[stream(i)], of("attn_out"))
        case "ln2":
            seen = trace[stream(i)] if config.use_parallel_residual else of("resid_mid")
            return layer_norm_bound(seen, p.ln2_w, p.ln2_b, config.ln_eps)
        case "mlp_pre":
            return linear(of("ln2"), p.w_in, p.b_in)
        case "mlp_post":
            return ACTIVATION_BOUNDS[config.activation](of("mlp_pre"))
        case "mlp_out":
            return linear(of("mlp_post"), p.w_out, p.b_out)
        case _:  # resid_post
            if config.use_parallel_residual:
                return residual_bound(trace[stream(i)], of("attn_out"), of("mlp_out"))
            return residual_bound(of("resid_mid"), of("mlp_out"))
