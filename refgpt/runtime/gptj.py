"""GPT-J in kernels: ``refgpt/spec/gptj.py`` line by line, over rows of any sequences at any positions.

Two things differ from the spec. Keys and values of earlier rows come from the cache, so a pass takes only new rows; and
every activation has its place in a ``Workspace``, so that nothing is allocated from one pass to the next but logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from refgpt.config import ModelConfig
from refgpt.kernels import attention as attend
from refgpt.kernels import embedding, gelu, kv_append, layer_norm, linear_scratch, query_tiles, rotary
from refgpt.kernels import linear as multiply
from refgpt.kernels.panels import Panels
from refgpt.runtime.cache import KVCache
from refgpt.runtime.packing import PackedBlock, PackedParams
from refgpt.spec.taps import Tap, checked, no_tap, prefixed


@dataclass(frozen=True)
class Rows:
    """The rows of one pass: new tokens of one sequence or of many.

    Attributes
    ----------
    ids, slots, positions : ndarray [t], int64
        Token, sequence and place in it of each row.
    n_visible : ndarray [t], int64
        Each row sees the keys of its sequence before this one: the causal and the prefix mask.
    tiles : ndarray
        Neighbouring rows of one sequence, for the attention kernel.
    """

    ids: np.ndarray
    slots: np.ndarray
    positions: np.ndarray
    n_visible: np.ndarray
    tiles: np.ndarray

    @classmethod
    def of(cls, ids: Sequence[int] | np.ndarray, slots: np.ndarray, positions: np.ndarray, prefix_len: int = 0) -> Rows:
        """Rows whose sequences have a prefix of ``prefix_len`` positions that see each other."""
        return cls(np.array(ids, np.int64), slots, positions, np.maximum(positions + 1, prefix_len), query_tiles(slots))


class Workspace:
    """One buffer an activation, for passes of up to ``n_rows`` rows."""

    def __init__(self, config: ModelConfig, n_rows: int, threads: int, capacity: int) -> None:
        c, f, heads = config.d_model, config.d_ff, (config.n_head, config.d_head)
        self.n_rows = n_rows
        self.threads = threads
        self.x, self.ln, self.attn_out, self.mlp_out = (np.empty((n_rows, c), np.float32) for _ in range(4))
        self.q, self.k, self.v, self.z = (np.empty((n_rows, *heads), np.float32) for _ in range(4))
        self.mlp = np.empty((n_rows, f), np.float32)
        self.packed = linear_scratch(n_rows, max(c, f))
        self.scores = np.empty((threads, 8, capacity), np.float32)

    def first(self, n_rows: int) -> Workspace:
        """The same buffers, cut to ``n_rows``."""
        part = object.__new__(Workspace)
        for name, value in vars(self).items():
            is_buffer = isinstance(value, np.ndarray) and name not in ("packed", "scores")
            setattr(part, name, value[:n_rows] if is_buffer else value)
        part.n_rows = n_rows
        return part


def linear(x: np.ndarray, w: Panels, b: np.ndarray | None, out: np.ndarray, to: Workspace) -> np.ndarray:
    """``x @ w.T + b`` into ``out``, the rows of which may be heads. x [t, n_in] -> [t, n_out]."""
    return multiply(x, w, b, out.reshape(len(x), -1), scratch=to.packed, threads=to.threads).reshape(out.shape)


def attention(x: np.ndarray, p: PackedBlock, cfg: ModelConfig, rows: Rows, layer: int, cache: KVCache,
              angles: tuple[np.ndarray, np.ndarray], to: Workspace, tap: Tap) -> np.ndarray:  # fmt: skip
    """Multi-head self-attention with rotary positions; new keys and values join the cache. x [t, c] -> [t, c]."""
    k_cache, v_cache, n = cache.k[layer], cache.v[layer], to.threads
    q = tap("q", linear(x, p.wq, None, to.q, to))  # [t, h, d]
    k = tap("k", linear(x, p.wk, None, to.k, to))  # [t, h, d]
    v = tap("v", linear(x, p.wv, None, to.v, to))  # [t, h, d]
    q = tap("q_rot", rotary(q, *angles, rows.positions, out=to.q, threads=n))  # [t, h, d]
    k = tap("k_rot", rotary(k, *angles, rows.positions, out=to.k, threads=n))  # [t, h, d]
    kv_append(k, v, k_cache, v_cache, rows.positions, rows.slots, threads=n)
    see = partial(attend, q, k_cache, v_cache, rows.tiles, rows.n_visible, out=to.z, scratch=to.scores, threads=n)
    z = tap("z", see() if tap is no_tap else _attend_tapped(see, v.astype(v_cache.dtype), tap))  # [t, h, d]
    return tap("attn_out", linear(z.reshape(len(x), -1), p.wo, None, to.attn_out, to))  # [t, c]


def _attend_tapped(see: partial[np.ndarray], v: np.ndarray, tap: Tap) -> np.ndarray:
    """Attention that shows its pattern to a tap; if the tap replaced it, z is made from what it returned."""
    n_rows, n_head, _ = v.shape  # a tapped pass holds a whole text, so its rows are its keys
    shown = np.empty((n_head, n_rows, n_rows), np.float32)
    z = see(pattern=shown)
    pattern = tap("pattern", shown)
    return z if pattern is shown else np.einsum("hts,shd->thd", pattern, v.astype(np.float32))


def mlp(x: np.ndarray, p: PackedBlock, to: Workspace, tap: Tap) -> np.ndarray:
    """Two linear layers with a GELU between them. x [t, c] -> [t, c]."""
    hidden = tap("mlp_pre", linear(x, p.w_in, p.b_in, to.mlp, to))  # [t, f]
    hidden = tap("mlp_post", gelu(hidden, out=to.mlp, threads=to.threads))  # [t, f]
    return tap("mlp_out", linear(hidden, p.w_out, p.b_out, to.mlp_out, to))  # [t, c]


def block(x: np.ndarray, p: PackedBlock, cfg: ModelConfig, rows: Rows, layer: int, cache: KVCache,
          angles: tuple[np.ndarray, np.ndarray], to: Workspace, tap: Tap) -> np.ndarray:  # fmt: skip
    """Attention and MLP side by side, both from the one LayerNorm. x [t, c] -> [t, c], in x's place."""
    normed = tap("ln", layer_norm(x, p.ln_w, p.ln_b, cfg.ln_eps, out=to.ln, threads=to.threads))  # [t, c]
    attn_out = attention(normed, p, cfg, rows, layer, cache, angles, to, tap)  # [t, c]
    mlp_out = mlp(normed, p, to, tap)  # [t, c]
    np.add(x, attn_out, out=to.x)
    np.add(to.x, mlp_out, out=to.x)
    return tap("resid_post", to.x)  # [t, c]


def forward(params: PackedParams, config: ModelConfig, rows: Rows, cache: KVCache,
            angles: tuple[np.ndarray, np.ndarray], workspace: Workspace, wanted: np.ndarray | slice = slice(None),
            tap: Tap = no_tap) -> np.ndarray:  # fmt: skip
    """Logits of the rows ``wanted`` (an index into rows; all by default) after one pass over ``rows``.

    Keys and values are written to the cache; its lengths are the caller's to move.

    Returns
    -------
    ndarray [len(wanted), v], float32
    """
    tap = tap if tap is no_tap else _on_copies(checked(tap, np.float32))
    to = workspace.first(len(rows.ids))
    x = tap("embed", embedding(params.wte, rows.ids, out=to.x, threads=to.threads))  # [t, c]
    for i, p in enumerate(params.blocks):
        part = tap if tap is no_tap else prefixed(tap, f"blocks.{i}.")
        x = block(x, p, config, rows, i, cache, angles, to, part)  # [t, c]
    x = np.ascontiguousarray(x[wanted])
    x = tap("ln_final", layer_norm(x, params.ln_w, params.ln_b, config.ln_eps, threads=to.threads))  # [t, c]
    logits = np.empty((len(x), config.n_vocab), np.float32)
    return tap("logits", linear(x, params.w_head, params.b_head, logits, to))  # [t, v]


def _on_copies(tap: Tap) -> Tap:
    """Show a tap copies, since buffers are overwritten; what it did not change stays the buffer."""

    def ask(name: str, value: np.ndarray) -> np.ndarray:
        shown = value.copy()
        answer = tap(name, shown)
        return value if answer is shown and np.array_equal(shown, value) else np.ascontiguousarray(answer)

    return ask
