"""GPT-NeoX's backward pass, from the gradient of the logits down: ``refgpt/spec/gpt_neox.py`` read from its end.

As in ``refgpt/spec/gradients/gptj.py`` it reads the trace of the taps. Where attention and MLP are
parallel, both read the block's input; where they follow each other, the stream between them has a gradient too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from refgpt.spec.gpt_neox import Block, Config, Params
from refgpt.spec.gradients.ops import (
    ACTIVATIONS_BACKWARD,
    bias_backward,
    embedding_backward,
    layer_norm_backward,
    linear_backward,
    linear_weight_backward,
    rotate_halves_backward,
    softmax_backward,
)
from refgpt.spec.gradients.wanted import LeafGradients
from refgpt.spec.taps import Tap, no_tap, prefixed


def attention_backward(
    dy: np.ndarray, p: Block, cfg: Config, trace: Mapping[str, np.ndarray], tap: Tap, leaves: LeafGradients
) -> np.ndarray:
    """From the gradient of "attn_out" to that of "ln1". dy [t, c] -> [t, c]."""
    x, flat, positions = trace["ln1"], dy.shape, np.arange(len(dy))  # [t, c], [t]
    leaves.add("bo", lambda: bias_backward(dy))
    leaves.add("wo", lambda: linear_weight_backward(dy, trace["z"].reshape(flat)))
    dz = tap("z", linear_backward(dy, p.wo).reshape(trace["z"].shape))  # [t, h, d]
    dpattern = tap("pattern", np.einsum("thd,shd->hts", dz, trace["v"]))  # [h, t, s]
    dscores = softmax_backward(dpattern, trace["pattern"]) / math.sqrt(cfg.d_head)  # [h, t, s], of the products q k
    dk = tap("k_rot", np.einsum("hts,thd->shd", dscores, trace["q_rot"]))  # [s, h, d]
    dq = tap("q_rot", np.einsum("hts,shd->thd", dscores, trace["k_rot"]))  # [t, h, d]
    dv = tap("v", np.einsum("hts,thd->shd", trace["pattern"], dz)).reshape(flat)  # [s, c]
    dk = tap("k", rotate_halves_backward(dk, positions, cfg.d_rotary, cfg.rotary_base)).reshape(flat)  # [s, c]
    dq = tap("q", rotate_halves_backward(dq, positions, cfg.d_rotary, cfg.rotary_base)).reshape(flat)  # [t, c]
    leaves.add("bv", lambda: bias_backward(dv))
    leaves.add("wv", lambda: linear_weight_backward(dv, x))
    leaves.add("bk", lambda: bias_backward(dk))
    leaves.add("wk", lambda: linear_weight_backward(dk, x))
    leaves.add("bq", lambda: bias_backward(dq))
    leaves.add("wq", lambda: linear_weight_backward(dq, x))
    return linear_backward(dq, p.wq) + linear_backward(dk, p.wk) + linear_backward(dv, p.wv)  # [t, c]


def mlp_backward(
    dy: np.ndarray, p: Block, cfg: Config, trace: Mapping[str, np.ndarray], tap: Tap, leaves: LeafGradients
) -> np.ndarray:
    """From the gradient of "mlp_out" to that of "ln2". dy [t, c] -> [t, c]."""
    leaves.add("b_out", lambda: bias_backward(dy))
    leaves.add("w_out", lambda: linear_weight_backward(dy, trace["mlp_post"]))
    dhidden = tap("mlp_post", linear_backward(dy, p.w_out))  # [t, f]
    dhidden = tap("mlp_pre", ACTIVATIONS_BACKWARD[cfg.activation](dhidden, trace["mlp_pre"]))  # [t, f]
    leaves.add("b_in", lambda: bias_backward(dhidden))
    leaves.add("w_in", lambda: linear_weight_backward(dhidden, trace["ln2"]))
    return linear_backward(dhidden, p.w_in)  # [t, c]


def block_backward(
    dy: np.ndarray,
    x: np.ndarray,
    p: Block,
    cfg: Config,
    trace: Mapping[str, np.ndarray],
    tap: Tap,
    leaves: LeafGradients,
) -> np.ndarray:
    """From the gradient of "resid_post" to that of the block's input. dy, x [t, c] -> [t, c]."""
    dy = tap("resid_post", dy)  # [t, c]
    between = x if cfg.use_parallel_residual else trace["resid_mid"]  # [t, c]
    dln = tap("ln2", mlp_backward(tap("mlp_out", dy), p, cfg, trace, tap, leaves))  # [t, c]
    dmid, dw2, db2 = layer_norm_backward(dln, between, p.ln2_w, cfg.ln_eps)  # [t, c], [c], [c]
    leaves.add("ln2_b", lambda: db2)
    leaves.add("ln2_w", lambda: dw2)
    dattn = dy if cfg.use_parallel_residual else tap("resid_mid", dy + dmid)  # [t, c]
    dln = tap("ln1", attention_backward(tap("attn_out", dattn), p, cfg, trace, tap, leaves))  # [t, c]
    dx, dw1, db1 = layer_norm_backward(dln, x, p.ln1_w, cfg.ln_eps)  # [t, c], [c], [c]
    leaves.add("ln1_b", lambda: db1)
    leaves.add("ln1_w", lambda: dw1)
    return dattn + dmid + dx if cfg.use_parallel_residual else dattn + dx  # [t, c]


def backward(
    params: Params,
    config: Config,
    ids: np.ndarray,
    trace: Mapping[str, np.ndarray],
    dlogits: np.ndarray,
    leaves: LeafGradients,
    tap: Tap = no_tap,
) -> None:
    """See ``refgpt.spec.gradients.gptj.backward``."""
    dlogits = tap("logits", dlogits)  # [t, v]
    leaves.add("w_head", lambda: linear_weight_backward(dlogits, trace["ln_final"]))
    dln = tap("ln_final", linear_backward(dlogits, params.w_head))  # [t, c]
    streams = [trace["embed"], *(trace[f"blocks.{i}.resid_post"] for i in range(config.n_layer))]  # [t, c] each
    dx, dw, db = layer_norm_backward(dln, streams[-1], params.ln_w, config.ln_eps)  # [t, c], [c], [c]
    leaves.add("ln_b", lambda: db)
    leaves.add("ln_w", lambda: dw)
    for i in reversed(range(config.n_layer)):
        part = f"blocks.{i}."
        block = {name.removeprefix(part): value for name, value in trace.items() if name.startswith(part)}
        to = leaves.within(part)
        dx = block_backward(dx, streams[i], params.blocks[i], config, block, prefixed(tap, part), to)
    dx = tap("embed", dx)  # [t, c]
    leaves.add("wte", lambda: embedding_backward(dx, ids, config.n_vocab))
