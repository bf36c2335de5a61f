"""GPT-J's backward pass, from the gradient of the logits down: ``refgpt/spec/gptj.py`` read from its end.

It needs no second forward pass, only the trace of the taps: every activation's value, by its name. The mask is in that
trace too: what a query may not look at has a weight of zero in "pattern", through which no gradient flows.

Where the forward pass gives one activation to several readers, their gradients are added: the residual stream is read
by the block and by what follows it, the LayerNorm's rows by queries, keys, values and MLP.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from refgpt.spec.gptj import Block, Config, Params
from refgpt.spec.gradients.ops import (
    bias_backward,
    embedding_backward,
    gelu_backward,
    layer_norm_backward,
    linear_backward,
    linear_weight_backward,
    rotate_pairs_backward,
    softmax_backward,
)
from refgpt.spec.gradients.wanted import LeafGradients
from refgpt.spec.taps import Tap, no_tap, prefixed


def attention_backward(
    dy: np.ndarray, p: Block, cfg: Config, trace: Mapping[str, np.ndarray], tap: Tap, leaves: LeafGradients
) -> np.ndarray:
    """From the gradient of "attn_out" to that of "ln", as far as attention reads it. dy [t, c] -> [t, c]."""
    heads, flat = trace["q"].shape, dy.shape
    x, pattern, positions = trace["ln"], trace["pattern"], np.arange(len(dy))  # [t, c], [h, t, s], [t]
    leaves.add("wo", lambda: linear_weight_backward(dy, trace["z"].reshape(flat)))
    dz = tap("z", linear_backward(dy, p.wo).reshape(heads))  # [t, h, d]
    dpattern = tap("pattern", np.einsum("thd,shd->hts", dz, trace["v"]))  # [h, t, s]
    dscores = softmax_backward(dpattern, pattern) / math.sqrt(cfg.d_head)  # [h, t, s], of the products q k
    dk = tap("k_rot", np.einsum("hts,thd->shd", dscores, trace["q_rot"]))  # [s, h, d]
    dq = tap("q_rot", np.einsum("hts,shd->thd", dscores, trace["k_rot"]))  # [t, h, d]
    dv = tap("v", np.einsum("hts,thd->shd", pattern, dz)).reshape(flat)  # [s, c]
    dk = tap("k", rotate_pairs_backward(dk, positions, cfg.d_rotary)).reshape(flat)  # [s, c]
    dq = tap("q", rotate_pairs_backward(dq, positions, cfg.d_rotary)).reshape(flat)  # [t, c]
    leaves.add("wv", lambda: linear_weight_backward(dv, x))
    leaves.add("wk", lambda: linear_weight_backward(dk, x))
    leaves.add("wq", lambda: linear_weight_backward(dq, x))
    return linear_backward(dq, p.wq) + linear_backward(dk, p.wk) + linear_backward(dv, p.wv)  # [t, c]


def mlp_backward(
    dy: np.ndarray, p: Block, trace: Mapping[str, np.ndarray], tap: Tap, leaves: LeafGradients
) -> np.ndarray:
    """From the gradient of "mlp_out" to that of "ln", as far as the MLP reads it. dy [t, c] -> [t, c]."""
    leaves.add("b_out", lambda: bias_backward(dy))
    leaves.add("w_out", lambda: linear_weight_backward(dy, trace["mlp_post"]))
    dhidden = tap("mlp_post", linear_backward(dy, p.w_out))  # [t, f]
    dhidden = tap("mlp_pre", gelu_backward(dhidden, trace["mlp_pre"]))  # [t, f]
    leaves.add("b_in", lambda: bias_backward(dhidden))
    leaves.add("w_in", lambda: linear_weight_backward(dhidden, trace["ln"]))
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
    dln = mlp_backward(tap("mlp_out", dy), p, trace, tap, leaves)  # [t, c]
    dln = dln + attention_backward(tap("attn_out", dy), p, cfg, trace, tap, leaves)  # [t, c]
    dx, dw, db = layer_norm_backward(tap("ln", dln), x, p.ln_w, cfg.ln_eps)  # [t, c], [c], [c]
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
    tap: Tap = no_tap,
) -> None:
    """Gradients of all leaves that ``leaves`` wants, and of all activations, for ``tap``.

    Parameters
    ----------
    params : Params
        Leaves as stored; each is widened to the dtype of ``dlogits`` where it is used.
    config : Config
    ids : ndarray of int [t]
    trace : mapping of str to ndarray
        Every activation of the forward pass, in the dtype of ``dlogits``.
    dlogits : ndarray [t, v]
        The gradient of "logits".
    leaves : LeafGradients
        Takes the gradients of the leaves.
    tap : callable
        ``tap(name, gradient) -> gradient``, from "logits" to "embed".
    """
    dlogits = tap("logits", dlogits)  # [t, v]
    leaves.add("b_head", lambda: bias_backward(dlogits))
    leaves.add("w_head", lambda: linear_weight_backward(dlogits, trace["ln_final"]))
    dln = tap("ln_final", linear_backward(dlogits, params.w_head))  # [t, c]
    streams = [trace["embed"], *(trace[f"blocks.{i}.resid_post"] for i in range(config.n_layer))]  # [t, c] each
    dx, dw, db = layer_norm_backward(dln, streams[-1], params.ln_w, config.ln_eps)  # [t, c], [c], [c]
    leaves.add("ln_b", lambda: db)
    leaves.add("ln_w", lambda: dw)
    for i in reversed(range(config.n_layer)):
        part = f"blocks.{i}."
        block = {name.removeprefix(part): value for name, value in trace.items() if name.startswith(part)}
        dx = block_backward(dx, streams[i], params.blocks[i], config, block, prefixed(tap, part), leaves.within(part))
    dx = tap("embed", dx)  # [t, c]
    leaves.add("wte", lambda: embedding_backward(dx, ids, config.n_vocab))
