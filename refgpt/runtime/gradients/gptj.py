"""GPT-J's backward pass in kernels: ``refgpt/spec/gradients/gptj.py`` line by line."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refgpt.runtime.gradients.activations import Activations
from refgpt.runtime.gradients.ops import Ops
from refgpt.runtime.rotation import rotary_tables
from refgpt.spec.gptj import Block, Config, Params
from refgpt.spec.gradients import LeafGradients
from refgpt.spec.taps import Tap, no_tap, prefixed

#: The activations of a block that its backward pass reads.
READS: tuple[str, ...] = ("ln", "q_rot", "k_rot", "v", "z", "mlp_pre", "mlp_post")
#: The leaf that gives the logits.
HEAD = "w_head"


def attention_backward(
    dy: np.ndarray,
    p: Block,
    cfg: Config,
    kept: Mapping[str, np.ndarray],
    tap: Tap,
    leaves: LeafGradients,
    ops: Ops,
    onwards: bool,
) -> np.ndarray | None:
    """From the gradient of "attn_out" to that of "ln", as far as attention reads it. dy [t, c] -> [t, c]."""
    heads, flat, x = kept["q_rot"].shape, dy.shape, kept["ln"]
    leaves.add("wo", lambda: ops.linear_weight_backward(dy, kept["z"].reshape(flat)))
    dz = tap("z", ops.linear_backward(dy, p.wo).reshape(heads))  # [t, h, d]
    dq, dk, dv = ops.attention_backward(dz, kept["q_rot"], kept["k_rot"], kept["v"], tap)  # [t, h, d] each
    rotation = rotary_tables(cfg.d_rotary, ops.texts.n_longest)
    dk, dq = tap("k_rot", dk), tap("q_rot", dq)  # [s, h, d], [t, h, d]
    dv = tap("v", dv).reshape(flat)  # [s, c]
    dk = tap("k", ops.rotate_pairs_backward(dk, rotation)).reshape(flat)  # [s, c]
    dq = tap("q", ops.rotate_pairs_backward(dq, rotation)).reshape(flat)  # [t, c]
    leaves.add("wv", lambda: ops.linear_weight_backward(dv, x))
    leaves.add("wk", lambda: ops.linear_weight_backward(dk, x))
    leaves.add("wq", lambda: ops.linear_weight_backward(dq, x))
    if not onwards:
        return None
    return ops.add(ops.add(ops.linear_backward(dq, p.wq), ops.linear_backward(dk, p.wk)), ops.linear_backward(dv, p.wv))


def mlp_backward(
    dy: np.ndarray, p: Block, kept: Mapping[str, np.ndarray], tap: Tap, leaves: LeafGradients, ops: Ops
) -> np.ndarray:
    """From the gradient of "mlp_out" to that of "ln", as far as the MLP reads it. dy [t, c] -> [t, c]."""
    leaves.add("b_out", lambda: ops.bias_backward(dy))
    leaves.add("w_out", lambda: ops.linear_weight_backward(dy, kept["mlp_post"]))
    dhidden = tap("mlp_post", ops.linear_backward(dy, p.w_out))  # [t, f]
    dhidden = tap("mlp_pre", ops.gelu_backward(dhidden, kept["mlp_pre"]))  # [t, f]
    leaves.add("b_in", lambda: ops.bias_backward(dhidden))
    leaves.add("w_in", lambda: ops.linear_weight_backward(dhidden, kept["ln"]))
    return ops.linear_backward(dhidden, p.w_in)  # [t, c]


def block_backward(
    dy: np.ndarray,
    x: np.ndarray,
    p: Block,
    cfg: Config,
    kept: Mapping[str, np.ndarray],
    tap: Tap,
    leaves: LeafGradients,
    ops: Ops,
    onwards: bool,
) -> np.ndarray:
    """From the gradient of "resid_post" to that of the block's input. dy, x [t, c] -> [t, c].

    Where nothing below the block is wanted, only what its own leaves need is computed: ``onwards`` is False.
    """
    dy = tap("resid_post", dy)  # [t, c]
    onwards_to_ln = onwards or leaves.wants("ln_")
    dmlp, dattn = tap("mlp_out", dy), tap("attn_out", dy)  # [t, c] each
    dln = mlp_backward(dmlp, p, kept, tap, leaves, ops) if onwards_to_ln or leaves.wants("w_", "b_") else None
    through_attention = attention_backward(dattn, p, cfg, kept, tap, leaves, ops, onwards_to_ln)
    if dln is None or through_attention is None:
        return dy
    dln = tap("ln", ops.add(dln, through_attention))  # [t, c]
    dx, norm = ops.layer_norm_backward(dln, x, p.ln_w, cfg.ln_eps)  # [t, c]
    leaves.add("ln_b", lambda: ops.bias_backward(dln))
    leaves.add("ln_w", lambda: norm)
    return ops.add(dx, dy)  # [t, c]


def backward(
    params: Params,
    config: Config,
    ids: np.ndarray,
    activations: Activations,
    dlast: np.ndarray,
    leaves: LeafGradients,
    ops: Ops,
    tap: Tap = no_tap,
) -> None:
    """Gradients of leaves and activations from that of "ln_final", dlast [t, c], down.

    See ``refgpt.spec.gradients.gptj.backward``.
    """
    streams = activations.streams  # [t, c] each
    dx, norm = ops.layer_norm_backward(dlast, streams[-1], params.ln_w, config.ln_eps)  # [t, c]
    leaves.add("ln_b", lambda: ops.bias_backward(dlast))
    leaves.add("ln_w", lambda: norm)
    for i in reversed(range(config.n_layer)):
        part = f"blocks.{i}."
        onwards = tap is not no_tap or leaves.wants("wte", *(f"blocks.{j}." for j in range(i)))
        if not onwards and not leaves.wants(part):
            return
        ops.next_block()
        to, kept = leaves.within(part), activations.block(i)
        dx = block_backward(dx, streams[i], params.blocks[i], config, kept, prefixed(tap, part), to, ops, onwards)
    dx = tap("embed", dx)  # [t, c]
    leaves.add("wte", lambda: ops.embedding_backward(dx, ids, config.n_vocab))
