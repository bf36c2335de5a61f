"""GPT-J, top to bottom. This file is the specification: every kernel and engine is held to what it computes.

A text of ``t`` tokens is a matrix of ``t`` rows, the residual stream. Each block reads it through a LayerNorm, lets
rows exchange information (attention) and works on each row by itself (MLP), both from the same normalised rows, and
adds what they found. A last LayerNorm and a matrix turn row ``t`` into scores for the token at position ``t + 1``.

Shapes: t query position, s key position, h head, d head width, c d_model, f d_ff, v vocabulary. No batch, no cache.
Structure and names follow EleutherAI's model (https://github.com/kingoflolz/mesh-transformer-jax).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from refgpt.config import ModelConfig
from refgpt.errors import RefgptError
from refgpt.params import Block, Params
from refgpt.prompts import check_ids
from refgpt.spec.masks import prefix_mask
from refgpt.spec.primitives import embedding, gelu, layer_norm, linear, softmax
from refgpt.spec.rotary import rotate_pairs
from refgpt.spec.taps import Tap, checked, no_tap, prefixed


def attention(
    x: np.ndarray, p: Block, cfg: ModelConfig, mask: np.ndarray, positions: np.ndarray, tap: Tap = no_tap
) -> np.ndarray:
    """Multi-head self-attention with rotary positions (GPT-J: no biases). x [t, c], mask [t, s] -> [t, c]."""
    heads = (-1, cfg.n_head, cfg.d_head)
    q = tap("q", linear(x, p.wq).reshape(heads))  # [t, h, d]
    k = tap("k", linear(x, p.wk).reshape(heads))  # [s, h, d]
    v = tap("v", linear(x, p.wv).reshape(heads))  # [s, h, d]
    q = tap("q_rot", rotate_pairs(q, positions, cfg.d_rotary))  # [t, h, d]
    k = tap("k_rot", rotate_pairs(k, positions, cfg.d_rotary))  # [s, h, d]
    scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(cfg.d_head)  # [h, t, s]
    scores = np.where(mask, scores, -np.inf)  # [h, t, s], mask True = may look
    pattern = tap("pattern", softmax(scores))  # [h, t, s], rows sum to 1
    z = tap("z", np.einsum("hts,shd->thd", pattern, v))  # [t, h, d]
    return tap("attn_out", linear(z.reshape(len(x), -1), p.wo))  # [t, c]


def mlp(x: np.ndarray, p: Block, tap: Tap = no_tap) -> np.ndarray:
    """Two linear layers with a GELU between them, on each row by itself. x [t, c] -> [t, c]."""
    hidden = tap("mlp_pre", linear(x, p.w_in, p.b_in))  # [t, f]
    hidden = tap("mlp_post", gelu(hidden))  # [t, f]
    return tap("mlp_out", linear(hidden, p.w_out, p.b_out))  # [t, c]


def block(
    x: np.ndarray, p: Block, cfg: ModelConfig, mask: np.ndarray, positions: np.ndarray, tap: Tap = no_tap
) -> np.ndarray:
    """Attention and MLP side by side: both read the one LayerNorm, neither sees the other. x [t, c] -> [t, c]."""
    normed = tap("ln", layer_norm(x, p.ln_w, p.ln_b, cfg.ln_eps))  # [t, c]
    attn_out = attention(normed, p, cfg, mask, positions, tap)  # [t, c]
    mlp_out = mlp(normed, p, tap)  # [t, c]
    return tap("resid_post", x + attn_out + mlp_out)  # [t, c]


def forward(
    params: Params,
    config: ModelConfig,
    ids: Sequence[int] | np.ndarray,
    prefix_len: int = 0,
    dtype: DTypeLike = np.float64,
    tap: Tap = no_tap,
) -> np.ndarray:
    """Scores for the next token at every position of a text.

    Parameters
    ----------
    params : Params
        Leaves as stored; each is widened to ``dtype`` where it is used.
    config : ModelConfig
    ids : sequence of int [t]
        The text as token ids.
    prefix_len : int
        So many leading positions see one another (GPT-JT's prompt); 0 is GPT-J's causal mask.
    dtype : floating dtype
        What to compute in; float64 makes this the oracle.
    tap : callable
        ``tap(name, value) -> value``, called for every activation of ``tap_names(config)`` in that order.

    Returns
    -------
    ndarray [t, v]
        Logits: row ``t`` scores every id as the token at position ``t + 1``.

    Raises
    ------
    GenerationError
        If ``ids`` or ``prefix_len`` cannot be used.
    RefgptError
        If ``dtype`` is not a floating dtype, or a tap returns something of another shape.
    """
    if not np.issubdtype(np.dtype(dtype), np.floating):
        raise RefgptError("the spec computes with floating-point numbers", where="dtype", got=np.dtype(dtype))
    ids = check_ids(ids, config, prefix_len)
    tap = checked(tap, dtype)
    positions = np.arange(len(ids))  # [t]
    mask = prefix_mask(len(ids), prefix_len)  # [t, s]
    x = tap("embed", embedding(ids, params.wte, dtype))  # [t, c]
    for i, p in enumerate(params.blocks):
        x = block(x, p, config, mask, positions, prefixed(tap, f"blocks.{i}."))  # [t, c]
    x = tap("ln_final", layer_norm(x, params.ln_w, params.ln_b, config.ln_eps))  # [t, c]
    return tap("logits", linear(x, params.w_head, params.b_head))  # [t, v]
