"""The bound of each activation of GPT-J, given the activations that it was computed from. Belongs to
``spec/gptj.py``."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from refgpt.numbers.dtypes import Compute, KVDtype
from refgpt.spec.bounds.ops import (
    gelu_bound,
    layer_norm_bound,
    linear_bound,
    pattern_bound,
    residual_bound,
    rotary_bound,
    z_bound,
)
from refgpt.spec.gptj import Config, Params, taps
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
        return linear(trace["ln_final"], params.w_head, params.b_head)
    _, number, part = name.split(".")
    i = int(number)
    p = params.blocks[i]

    def of(part: str) -> np.ndarray:
        return trace[f"blocks.{i}.{part}"]

    match part:
        case "ln":
            return layer_norm_bound(trace[stream(i)], p.ln_w, p.ln_b, config.ln_eps)
        case "q" | "k" | "v":
            return linear(of("ln"), getattr(p, f"w{part}"), None).reshape(-1, config.n_head, config.d_head)
        case "q_rot" | "k_rot":
            rows = of(part[0])
            return rotary_bound(rows, np.arange(len(rows)), config.d_rotary)
        case "pattern":
            mask = prefix_mask(len(of("q_rot")), prefix_len)
            return pattern_bound(of("q_rot"), of("k_rot"), mask, kv_dtype, chunk)
        case "z":
            return z_bound(of("pattern"), of("v"), kv_dtype, chunk)
        case "attn_out":
            return linear(of("z").reshape(len(of("z")), -1), p.wo, None)
        case "mlp_pre":
            return linear(of("ln"), p.w_in, p.b_in)
        case "mlp_post":
            return gelu_bound(of("mlp_pre"))
        case "mlp_out":
            return linear(of("mlp_post"), p.w_out, p.b_out)
        case _:  # resid_post
            return residual_bound(trace[stream(i)], of("attn_out"), of("mlp_out"))
