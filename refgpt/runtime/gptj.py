"""GPT-J in kernels: ``refgpt/spec/gptj.py`` line by line, over rows of any sequences at any positions.

Three things differ from the spec. Keys and values of earlier rows come from the cache, so a pass only contains new
rows. Activations are stored in ``Buffers``, so a pass allocates nothing large except the logits. In the last
block, rows whose logits are not wanted get keys and values, and nothing else is computed for them. If the buffers have
a program, nothing is computed: the calls are recorded, to be run later, many times.
"""

from __future__ import annotations

import numpy as np

from refgpt import kernels
from refgpt.kernels import LinearInput, Program
from refgpt.runtime.attend import attend
from refgpt.runtime.batch import Batch
from refgpt.runtime.buffers import Buffers
from refgpt.runtime.cache import KVCache
from refgpt.runtime.rotation import rotary_tables
from refgpt.runtime.taps import TapView
from refgpt.spec.gptj import Block, Config, Params
from refgpt.spec.taps import Tap, no_tap

#: Cosines and sines of the rotary angles, [n_positions, d_rotary] each.
Rotation = tuple[np.ndarray, np.ndarray]
#: For each activation that is multiplied with matrices, the names of these; in the order of the pass.
INPUTS = {"ln": ("wq", "wk", "wv", "w_in"), "z": ("wo",), "mlp_post": ("w_out",)}


def tables(config: Config, n_positions: int) -> Rotation:
    """The tables that ``forward`` indexes by position, for ``n_positions`` positions."""
    return rotary_tables(config.d_rotary, n_positions)


def attention(
    x: LinearInput,
    p: Block,
    batch: Batch,
    kv: tuple[np.ndarray, np.ndarray],
    rotation: Rotation,
    to: Buffers,
    tap: TapView,
) -> np.ndarray:
    """Multi-head self-attention with rotary positions; new keys and values are added to the cache. x [t, c] -> [t,
    c]."""
    flat, heads = to.attn_out.shape, to.q.shape
    q = tap("q", kernels.linear(x, p.wq, None, to.q.reshape(flat), **to.how).reshape(heads))  # [t, h, d]
    k = tap("k", kernels.linear(x, p.wk, None, to.k.reshape(flat), **to.how).reshape(heads))  # [t, h, d]
    v = tap("v", kernels.linear(x, p.wv, None, to.v.reshape(flat), **to.how).reshape(heads))  # [t, h, d]
    q = tap("q_rot", kernels.rotary(q, *rotation, batch.positions, to.q, **to.how))  # [t, h, d]
    k = tap("k_rot", kernels.rotary(k, *rotation, batch.positions, to.k, **to.how))  # [t, h, d]
    z = attend(q, k, v, kv, batch, to, tap)  # [t, h, d]
    mixed = LinearInput(z.reshape(flat), to.ready, **to.how)  # [t, c]
    return tap("attn_out", kernels.linear(mixed, p.wo, None, to.attn_out, **to.how))  # [t, c]


def mlp(x: LinearInput, p: Block, to: Buffers, tap: TapView) -> np.ndarray:
    """Two linear layers with a GELU between them. x [t, c] -> [t, c]."""
    hidden = tap("mlp_pre", kernels.linear(x, p.w_in, p.b_in, to.mlp, **to.how))  # [t, f]
    hidden = tap("mlp_post", kernels.gelu(hidden, to.mlp_post, **to.how))  # [t, f]
    rows = LinearInput(hidden, to.ready, **to.how)
    return tap("mlp_out", kernels.linear(rows, p.w_out, p.b_out, to.mlp_out, **to.how))  # [t, c]


def block(
    x: np.ndarray,
    p: Block,
    cfg: Config,
    batch: Batch,
    kv: tuple[np.ndarray, np.ndarray],
    rotation: Rotation,
    to: Buffers,
    tap: TapView,
) -> np.ndarray:
    """Attention and MLP in parallel, both from the same LayerNorm. x [t, c] -> [t, c], overwrites x."""
    normed = tap("ln", kernels.layer_norm(x, p.ln_w, p.ln_b, cfg.ln_eps, to.ln, **to.how))  # [t, c]
    shared = LinearInput(normed, to.ln_ready, **to.how)
    attn_out = attention(shared, p, batch, kv, rotation, to, tap)  # [t, c]
    mlp_out = mlp(shared, p, to, tap)  # [t, c]
    return tap("resid_post", kernels.residual(x, attn_out, mlp_out, to.x, **to.how))  # [t, c]


def append_kv(
    x: np.ndarray,
    p: Block,
    cfg: Config,
    batch: Batch,
    kv: tuple[np.ndarray, np.ndarray],
    rotation: Rotation,
    to: Buffers,
) -> None:
    """The part of ``block`` that adds keys and values to the cache. x [t, c]"""
    flat = to.attn_out.shape
    normed = kernels.layer_norm(x, p.ln_w, p.ln_b, cfg.ln_eps, to.ln, **to.how)  # [t, c]
    rows = LinearInput(normed, to.ln_ready, **to.how)
    k = kernels.linear(rows, p.wk, None, to.k.reshape(flat), **to.how).reshape(to.k.shape)  # [t, h, d]
    v = kernels.linear(rows, p.wv, None, to.v.reshape(flat), **to.how).reshape(to.v.shape)  # [t, h, d]
    k = kernels.rotary(k, *rotation, batch.positions, to.k, **to.how)  # [t, h, d]
    kernels.kv_append(k, v, *kv, batch.offsets, batch.blocks, **to.how)


def embed(params: Params, config: Config, batch: Batch, to: Buffers, tap: TapView) -> np.ndarray:
    """What enters the first block. -> [t, c]"""
    return tap("embed", kernels.embedding(params.wte, batch.ids, to.x, **to.how))  # [t, c]


def layer(
    i: int,
    x: np.ndarray,
    params: Params,
    config: Config,
    batch: Batch,
    kv: tuple[np.ndarray, np.ndarray],
    tables: Rotation,
    to: Buffers,
    tap: TapView,
) -> np.ndarray:
    """Block ``i``. x [t, c] -> [t, c], overwrites x."""
    return block(x, params.blocks[i], config, batch, kv, tables, to, tap)  # [t, c]


def forward(
    params: Params,
    config: Config,
    batch: Batch,
    cache: KVCache,
    tables: Rotation,
    buffers: Buffers,
    tap: Tap = no_tap,
    program: Program | None = None,
    params_for_logits: Params | None = None,
) -> np.ndarray:
    """Logits of ``batch.logit_rows`` (all rows by default) after one pass over ``batch``.

    Keys and values of all rows are written to the cache; the caller updates its lengths. The last block is computed for
    the logit rows only: of the other rows nothing but keys and values is needed. (Those of the logit rows are written
    twice, with the same bits.) ``tables`` is the result of the function of that name. With a tap, the batch must be one
    whole text without ``logit_rows``. With a program the pass is recorded: each run then reads the current contents of
    the arrays of ``batch``, and writes to the logits returned here. ``params_for_logits`` are the weights for the logit
    rows, if rows have adapters.

    Returns
    -------
    ndarray [n, v], float32
        One row for each logit row.
    """
    shown = TapView.to(tap)
    to = buffers.first(len(batch.ids), program)
    x = embed(params, config, batch, to, shown)  # [t, c]
    for i, kv in enumerate(zip(cache.k, cache.v, strict=True)):
        if batch.logit_rows is not None and batch.for_logits is not None and i == config.n_layer - 1:
            # Of the other rows, only the keys and values are needed.
            append_kv(x, params.blocks[i], config, batch, kv, tables, to)
            to, batch, params = to.select(batch.logit_rows), batch.for_logits, params_for_logits or params
            x = to.x  # [n, c]
        x = layer(i, x, params, config, batch, kv, tables, to, shown.part(f"blocks.{i}."))  # [t, c]
    x = shown("ln_final", kernels.layer_norm(x, params.ln_w, params.ln_b, config.ln_eps, to.ln, **to.how))
    logits = np.empty((len(x), config.n_vocab), np.float32)
    rows_of_head = LinearInput(x, to.ready, **to.how)
    return shown("logits", kernels.linear(rows_of_head, params.w_head, params.b_head, logits, **to.how))  # [t, v]
