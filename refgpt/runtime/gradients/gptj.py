"""GPT-J's backward pass in kernels: ``refgpt/spec/gradients/gptj.py`` line by line, head by head in attention."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from refgpt.runtime.gradients.ops import Ops
from refgpt.runtime.rotation import rotary_tables
from refgpt.spec.gptj import Block, Config, Params
from refgpt.spec.gradients import LeafGradients
from refgpt.spec.taps import Tap, no_tap, prefixed


def attention_backward(
    dy: np.ndarray, p: Block, cfg: Config, trace: Mapping[str, np.ndarray], tap: Tap, leaves: LeafGradients, ops: Ops
) -> np.ndarray:
    """From the gradient of "attn_out" to that of "ln", as far as attention reads it. dy [t, c] -> [t, c]."""
    heads, flat, root = trace["q"].shape, dy.shape, np.float32(math.sqrt(cfg.d_head))
    x, pattern = trace["ln"], trace["pattern"]  # [t, c], [h, t, s]
    leaves.add("wo", lambda: ops.linear_weight_backward(dy, trace["z"].reshape(flat)))
    dz = tap("z", ops.linear_backward(dy, p.wo).reshape(heads))  # [t, h, d]
    by_head = [np.ascontiguousarray(trace[name].transpose(1, 0, 2)) for name in ("q_rot", "k_rot", "v")]
    q, k, v = by_head  # [h, t, d]
    dz_by_head = np.ascontiguousarray(dz.transpose(1, 0, 2))  # [h, t, d]
    dpattern = np.stack([ops.product(dz_by_head[h], v[h]) for h in range(cfg.n_head)])  # [h, t, s]
    dpattern = tap("pattern", dpattern)
    dq, dk, dv = (np.empty(heads, np.float32) for _ in range(3))  # [t, h, d] each
    for h in range(cfg.n_head):
        dscores = ops.softmax_backward(dpattern[h], pattern[h]) / root  # [t, s], of the products q k
        dk[:, h] = ops.product(dscores.T, q[h].T)  # [s, d]
        dq[:, h] = ops.product(dscores, k[h].T)  # [t, d]
        dv[:, h] = ops.product(pattern[h].T, dz_by_head[h].T)  # [s, d]
    rotation = rotary_tables(cfg.d_rotary, len(dy))
    dk, dq = tap("k_rot", dk), tap("q_rot", dq)  # [s, h, d], [t, h, d]
    dv = tap("v", dv).reshape(flat)  # [s, c]
    dk = tap("k", ops.rotate_pairs_backward(dk, rotation)).reshape(flat)  # [s, c]
    dq = tap("q", ops.rotate_pairs_backward(dq, rotation)).reshape(flat)  # [t, c]
    leaves.add("wv", lambda: ops.linear_weight_backward(dv, x))
    leaves.add("wk", lambda: ops.linear_weight_backward(dk, x))
    leaves.add("wq", lambda: ops.linear_weight_backward(dq, x))
    return ops.linear_backward(dq, p.wq) + ops.linear_backward(dk, p.wk) + ops.linear_backward(dv, p.wv)  # [t, c]


def mlp_backward(
    dy: np.ndarray, p: Block, trace: Mapping[str, np.ndarray], tap: Tap, leaves: LeafGradients, ops: Ops
) -> np.ndarray:
    """From the gradient of "mlp_out" to that of "ln", as far as the MLP reads it. dy [t, c] -> [t, c]."""
    leaves.add("b_out", lambda: ops.bias_backward(dy))
    leaves.add("w_out", lambda: ops.linear_weight_backward(dy, trace["mlp_post"]))
    dhidden = tap("mlp_post", ops.linear_backward(dy, p.w_out))  # [t, f]
    dhidden = tap("mlp_pre", ops.gelu_backward(dhidden, trace["mlp_pre"]))  # [t, f]
    leaves.add("b_in", lambda: ops.bias_backward(dhidden))
    leaves.add("w_in", lambda: ops.linear_weight_backward(dhidden, trace["ln"]))
    return ops.linear_backward(dhidden, p.w_in)  # [t, c]


def block_backward(
    dy: np.ndarray,
    x: np.ndarray,
    p: Block,
    cfg: Config,
    trace: Mapping[str, np.ndarray],
    tap: Tap,
    leaves: LeafGradients,
    ops: Ops,
) -> np.ndarray:
    """From the gradient of "resid_post" to that of the block's input. dy, x [t, c] -> [t, c]."""
    dy = tap("resid_post", dy)  # [t, c]
    dln = mlp_backward(tap("mlp_out", dy), p, trace, tap, leaves, ops)  # [t, c]
    dln = dln + attention_backward(tap("attn_out", dy), p, cfg, trace, tap, leaves, ops)  # [t, c]
    dx, dw, db = ops.layer_norm_backward(tap("ln", dln), x, p.ln_w, cfg.ln_eps)  # [t, c], [c], [c]
    leaves.add("ln_b", lambda: db)
    leaves.add("ln_w", lambda: dw)
    return dy + dx  # [t, c]


def backward(
    params: Params,
    config: Config,
    ids: np.ndarray,
    trace: Mapping[str, np.ndarray],
    dlogits: np.ndarray,
    leaves: LeafGradients,
    ops: Ops,
    tap: Tap = no_tap,
) -> None:
    """Gradients of leaves and activations: see ``refgpt.spec.gradients.gptj.backward``."""
    dlogits = tap("logits", dlogits)  # [t, v]
    leaves.add("b_head", lambda: ops.bias_backward(dlogits))
    leaves.add("w_head", lambda: ops.linear_weight_backward(dlogits, trace["ln_final"]))
    dln = tap("ln_final", ops.linear_backward(dlogits, params.w_head))  # [t, c]
    streams = [trace["embed"], *(trace[f"blocks.{i}.resid_post"] for i in range(config.n_layer))]  # [t, c] each
    dx, dw, db = ops.layer_norm_backward(dln, streams[-1], params.ln_w, config.ln_eps)  # [t, c], [c], [c]
    leaves.add("ln_b", lambda: db)
    leaves.add("ln_w", lambda: dw)
    for i in reversed(range(config.n_layer)):
        part = f"blocks.{i}."
        block = {name.removeprefix(part): value for name, value in trace.items() if name.startswith(part)}
        to = leaves.within(part)
        dx = block_backward(dx, streams[i], params.blocks[i], config, block, prefixed(tap, part), to, ops)
    dx = tap("embed", dx)  # [t, c]
    leaves.add("wte", lambda: ops.embedding_backward(dx, ids, config.n_vocab))
