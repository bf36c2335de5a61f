"""GPT-NeoX's backward pass in kernels: ``refgpt/spec/gradients/gpt_neox.py`` line by line."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refgpt.runtime.gradients.activations import Activations
from refgpt.runtime.gradients.ops import Ops
from refgpt.runtime.rotation import rotary_tables
from refgpt.spec.gpt_neox import Block, Config, Params
from refgpt.spec.gradients import LeafGradients
from refgpt.spec.taps import Tap, no_tap, prefixed

#: The activations of a block that its backward pass reads.
READS: tuple[str, ...] = ("ln1", "q_rot", "k_rot", "v", "z", "resid_mid", "ln2", "mlp_pre", "mlp_post")
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
    """From the gradient of "attn_out" to that of "ln1". dy [t, c] -> [t, c]."""
    heads, flat, x = kept["q_rot"].shape, dy.shape, kept["ln1"]
    leaves.add("bo", lambda: ops.bias_backward(dy))
    leaves.add("wo", lambda: ops.linear_weight_backward(dy, kept["z"].reshape(flat)))
    dz = tap("z", ops.linear_backward(dy, p.wo).reshape(heads))  # [t, h, d]
    dq, dk, dv = ops.attention_backward(dz, kept["q_rot"], kept["k_rot"], kept["v"], tap)  # [t, h, d] each
    rotation = rotary_tables(cfg.d_rotary, ops.texts.n_longest, cfg.rotary_base, halves=True)
    dk, dq = tap("k_rot", dk), tap("q_rot", dq)  # [s, h, d], [t, h, d]
    dv = tap("v", dv).reshape(flat)  # [s, c]
    dk = tap("k", ops.rotate_halves_backward(dk, rotation)).reshape(flat)  # [s, c]
    dq = tap("q", ops.rotate_halves_backward(dq, rotation)).reshape(flat)  # [t, c]
    leaves.add("bv", lambda: ops.bias_backward(dv))
    leaves.add("wv", lambda: ops.linear_weight_backward(dv, x))
    leaves.add("bk", lambda: ops.bias_backward(dk))
    leaves.add("wk", lambda: ops.linear_weight_backward(dk, x))
    leaves.add("bq", lambda: ops.bias_backward(dq))
    leaves.add("wq", lambda: ops.linear_weight_backward(dq, x))
    if not onwards:
        return None
    return ops.add(ops.add(ops.linear_backward(dq, p.wq), ops.linear_backward(dk, p.wk)), ops.linear_backward(dv, p.wv))


def mlp_backward(
    dy: np.ndarray, p: Block, cfg: Config, kept: Mapping[str, np.ndarray], tap: Tap, leaves: LeafGradients, ops: Ops
) -> np.ndarray:
    """From the gradient of "mlp_out" to that of "ln2". dy [t, c] -> [t, c]."""
    leaves.add("b_out", lambda: ops.bias_backward(dy))
    leaves.add("w_out", lambda: ops.linear_weight_backward(dy, kept["mlp_post"]))
    dhidden = tap("mlp_post", ops.linear_backward(dy, p.w_out))  # [t, f]
    dhidden = tap("mlp_pre", ops.activation_backward(cfg.activation, dhidden, kept["mlp_pre"]))  # [t, f]
    leaves.add("b_in", lambda: ops.bias_backward(dhidden))
    leaves.add("w_in", lambda: ops.linear_weight_backward(dhidden, kept["ln2"]))
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
    dln = tap("ln2", mlp_backward(tap("mlp_out", dy), p, cfg, kept, tap, leaves, ops))  # [t, c]
    between = x if cfg.use_parallel_residual else kept["resid_mid"]  # [t, c]
    dmid, norm = ops.layer_norm_backward(dln, between, p.ln2_w, cfg.ln_eps)  # [t, c]
    leaves.add("ln2_b", lambda: ops.bias_backward(dln))
    leaves.add("ln2_w", lambda: norm)
    dattn = dy if cfg.use_parallel_residual else tap("resid_mid", ops.add(dmid, dy))  # [t, c]
    onwards_to_ln = onwards or leaves.wants("ln1_")
    through = attention_backward(tap("attn_out", dattn), p, cfg, kept, tap, leaves, ops, onwards_to_ln)
    if through is None:
        return dy
    dln = tap("ln1", through)  # [t, c]
    dx, norm = ops.layer_norm_backward(dln, x, p.ln1_w, cfg.ln_eps)  # [t, c]
    leaves.add("ln1_b", lambda: ops.bias_backward(dln))
    leaves.add("ln1_w", lambda: norm)
    dx = ops.add(dx, dattn)  # [t, c]
    return ops.add(dx, dmid) if cfg.use_parallel_residual else dx  # [t, c]


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
    """Gradients of leaves and activations from that of "ln_final" down: see ``refgpt.runtime.gradients.gptj``."""
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
        to, kept, p = leaves.within(part), activations.block(i), params.blocks[i]
        dx = block_backward(dx, streams[i], p, config, kept, prefixed(tap, part), to, ops, onwards)
    dx = tap("embed", dx)  # [t, c]
    leaves.add("wte", lambda: ops.embedding_backward(dx, ids, config.n_vocab))
