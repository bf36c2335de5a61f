"""GPT-2's backward pass in kernels: ``refgpt/spec/gradients/gpt2.py`` line by line."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refgpt.runtime.gradients.activations import Activations
from refgpt.runtime.gradients.ops import Ops
from refgpt.spec.gpt2 import Block, Config, Params, score_divisor
from refgpt.spec.gradients import LeafGradients
from refgpt.spec.taps import Tap, no_tap, prefixed

#: The activations of a block that its backward pass reads.
READS: tuple[str, ...] = ("ln1", "q", "k", "v", "z", "resid_mid", "ln2", "mlp_pre", "mlp_post")
#: The leaf that gives the logits: the embeddings, whose gradient has two parts.
HEAD = "wte"


def attention_backward(
    dy: np.ndarray,
    p: Block,
    divisor: float,
    kept: Mapping[str, np.ndarray],
    tap: Tap,
    leaves: LeafGradients,
    ops: Ops,
    onwards: bool,
) -> np.ndarray | None:
    """From the gradient of "attn_out" to that of "ln1". dy [t, c] -> [t, c]."""
    heads, flat, x = kept["q"].shape, dy.shape, kept["ln1"]
    leaves.add("bo", lambda: ops.bias_backward(dy))
    leaves.add("wo", lambda: ops.linear_weight_backward(dy, kept["z"].reshape(flat)))
    dz = tap("z", ops.linear_backward(dy, p.wo).reshape(heads))  # [t, h, d]
    dq, dk, dv = ops.attention_backward(dz, kept["q"], kept["k"], kept["v"], tap, divisor)  # [t, h, d] each
    dk, dq, dv = tap("k", dk).reshape(flat), tap("q", dq).reshape(flat), tap("v", dv).reshape(flat)  # [t, c] each
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
    divisor: float,
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
    dmid, norm = ops.layer_norm_backward(dln, kept["resid_mid"], p.ln2_w, cfg.ln_eps)  # [t, c]
    leaves.add("ln2_b", lambda: ops.bias_backward(dln))
    leaves.add("ln2_w", lambda: norm)
    dy = tap("resid_mid", ops.add(dmid, dy))  # [t, c]
    onwards_to_ln = onwards or leaves.wants("ln1_")
    through = attention_backward(tap("attn_out", dy), p, divisor, kept, tap, leaves, ops, onwards_to_ln)
    if through is None:
        return dy
    dln = tap("ln1", through)  # [t, c]
    dx, norm = ops.layer_norm_backward(dln, x, p.ln1_w, cfg.ln_eps)  # [t, c]
    leaves.add("ln1_b", lambda: ops.bias_backward(dln))
    leaves.add("ln1_w", lambda: norm)
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
    """Gradients of leaves and activations from that of "ln_final" down: see ``refgpt.runtime.gradients.gptj``."""
    streams = activations.streams  # [t, c] each
    dx, norm = ops.layer_norm_backward(dlast, streams[-1], params.ln_w, config.ln_eps)  # [t, c]
    leaves.add("ln_b", lambda: ops.bias_backward(dlast))
    leaves.add("ln_w", lambda: norm)
    for i in reversed(range(config.n_layer)):
        part = f"blocks.{i}."
        onwards = tap is not no_tap or leaves.wants("wte", "wpe", *(f"blocks.{j}." for j in range(i)))
        if not onwards and not leaves.wants(part):
            return
        ops.next_block()
        to, kept, p = leaves.within(part), activations.block(i), params.blocks[i]
        dx = block_backward(
            dx, streams[i], p, config, score_divisor(config, i), kept, prefixed(tap, part), to, ops, onwards
        )
    dx = tap("resid_pre", dx)  # [t, c]
    dplaces, dtokens = tap("pos_embed", dx), tap("embed", dx)  # [t, c] each
    leaves.add("wpe", lambda: ops.embedding_backward(dplaces, ops.texts.positions, config.n_ctx))
    leaves.add("wte", lambda: ops.embedding_backward(dtokens, ids, config.n_vocab))
