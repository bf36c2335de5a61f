"""GPT-J in kernels: ``refgpt/spec/gptj.py`` line by line, over rows of any sequences at any positions.

Two things differ from the spec. Keys and values of earlier rows come from the cache, so a pass takes only new rows; and
activations go to the buffers of a ``Workspace``, so that nothing large but the logits is allocated for a pass. With a
program in the workspace nothing is computed: the calls are recorded, to be made later and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refgpt import kernels
from refgpt.config import ModelConfig
from refgpt.kernels import Activations, Program
from refgpt.panels import aligned_zeros
from refgpt.runtime.cache import KVCache
from refgpt.runtime.packing import PackedBlock, PackedParams
from refgpt.spec.taps import Tap, checked, no_tap


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
        n_visible = np.maximum(positions + 1, prefix_len)
        return cls(np.array(ids, np.int64), slots, positions, n_visible, kernels.query_tiles(slots))


@dataclass(frozen=True)
class Workspace:
    """Where a pass of up to ``n_rows`` rows puts its activations.

    Rotated queries and keys go over the plain ones, and the MLP's second activation over its first.
    """

    x: np.ndarray  # [n_rows, c]
    ln: np.ndarray  # [n_rows, c]
    q: np.ndarray  # [n_rows, h, d]
    k: np.ndarray  # [n_rows, h, d]
    v: np.ndarray  # [n_rows, h, d]
    z: np.ndarray  # [n_rows, h, d]
    attn_out: np.ndarray  # [n_rows, c]
    mlp: np.ndarray  # [n_rows, f]
    mlp_out: np.ndarray  # [n_rows, c]
    ln_ready: np.ndarray  # bytes: the normed rows as linear layers read them
    ready: np.ndarray  # bytes: other rows so
    scores: np.ndarray  # [threads, 8, capacity], for attention
    threads: int
    program: Program | None = None

    @classmethod
    def of(cls, config: ModelConfig, n_rows: int, capacity: int, threads: int) -> Workspace:
        """Room for ``n_rows`` rows of sequences of up to ``capacity`` (in whole panels) positions."""

        def rows(*width: int) -> np.ndarray:
            return np.empty((n_rows, *width), np.float32)

        c, f, heads = config.d_model, config.d_ff, (config.n_head, config.d_head)
        return cls(
            x=rows(c),
            ln=rows(c),
            q=rows(*heads),
            k=rows(*heads),
            v=rows(*heads),
            z=rows(*heads),
            attn_out=rows(c),
            mlp=rows(f),
            mlp_out=rows(c),
            threads=threads,
            ln_ready=aligned_zeros((kernels.scratch_bytes(n_rows, c),), np.dtype(np.uint8)),
            ready=aligned_zeros((kernels.scratch_bytes(n_rows, max(c, f)),), np.dtype(np.uint8)),
            scores=np.empty((threads, kernels.FEW_ROWS, capacity), np.float32),
        )

    @property
    def n_rows(self) -> int:
        """The most rows of a pass."""
        return len(self.x)

    @property
    def how(self) -> dict[str, Any]:
        """How kernels are called: on so many threads, now or as part of a program."""
        return {"threads": self.threads, "program": self.program}

    def first(self, n: int, program: Program | None = None) -> Workspace:
        """The same buffers for a pass of ``n`` rows."""
        return replace(
            self,
            x=self.x[:n],
            ln=self.ln[:n],
            q=self.q[:n],
            k=self.k[:n],
            v=self.v[:n],
            z=self.z[:n],
            attn_out=self.attn_out[:n],
            mlp=self.mlp[:n],
            mlp_out=self.mlp_out[:n],
            program=program,
        )


@dataclass(frozen=True)
class Shown:
    """A tap that is shown copies, since buffers are overwritten; what it did not change stays the buffer.

    Attributes
    ----------
    tap : Tap
    names : frozenset of str or None
        What it wants to see; None is everything.
    prefix : str
        Of the names in this part of the model.
    """

    tap: Tap
    names: frozenset[str] | None
    prefix: str = ""

    @classmethod
    def to(cls, tap: Tap) -> Shown:
        """Nothing for ``no_tap``; for others what their ``names`` say, if they have any."""
        names = () if tap is no_tap else getattr(tap, "names", None)
        return cls(checked(tap, np.float32), None if names is None else frozenset(names))

    def part(self, prefix: str) -> Shown:
        """The same for a part of the model."""
        return replace(self, prefix=prefix)

    def wants(self, name: str) -> bool:
        """Whether an activation is to be shown, and so to be computed into memory."""
        return self.names is None or self.prefix + name in self.names

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if not self.wants(name):
            return value
        copy = value.copy()
        answer = self.tap(self.prefix + name, copy)
        return value if answer is copy and np.array_equal(copy, value) else np.ascontiguousarray(answer)


def attention(
    x: Activations,
    p: PackedBlock,
    rows: Rows,
    kv: tuple[np.ndarray, np.ndarray],
    rotation: tuple[np.ndarray, np.ndarray],
    to: Workspace,
    tap: Shown,
) -> np.ndarray:
    """Multi-head self-attention with rotary positions; new keys and values join the cache. x [t, c] -> [t, c]."""
    flat, heads = to.attn_out.shape, to.q.shape
    q = tap("q", kernels.linear(x, p.wq, None, to.q.reshape(flat), **to.how).reshape(heads))  # [t, h, d]
    k = tap("k", kernels.linear(x, p.wk, None, to.k.reshape(flat), **to.how).reshape(heads))  # [t, h, d]
    v = tap("v", kernels.linear(x, p.wv, None, to.v.reshape(flat), **to.how).reshape(heads))  # [t, h, d]
    q = tap("q_rot", kernels.rotary(q, *rotation, rows.positions, to.q, **to.how))  # [t, h, d]
    k = tap("k_rot", kernels.rotary(k, *rotation, rows.positions, to.k, **to.how))  # [t, h, d]
    kernels.kv_append(k, v, *kv, rows.positions, rows.slots, **to.how)
    shown = _room_for_pattern(q) if tap.wants("pattern") else None  # [h, t, s]
    z = kernels.attention(q, *kv, rows.tiles, rows.n_visible, to.z, pattern=shown, scratch=to.scores, **to.how)
    if shown is not None and (pattern := tap("pattern", shown)) is not shown:  # patched: mix the values anew
        z = _mixed(pattern, v.astype(kv[1].dtype))
    mixed = Activations(tap("z", z).reshape(flat), to.ready, **to.how)  # [t, c]
    return tap("attn_out", kernels.linear(mixed, p.wo, None, to.attn_out, **to.how))  # [t, c]


def _room_for_pattern(q: np.ndarray) -> np.ndarray:
    """A tapped pass holds a whole text: its keys are its rows."""
    n_rows, n_head, _ = q.shape
    return np.empty((n_head, n_rows, n_rows), np.float32)


def _mixed(pattern: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Values mixed by a pattern that no kernel made, rounded once. pattern [h, t, s], v [s, h, d] -> [t, h, d]."""
    heads = [pattern[h].astype(np.float64) @ v[:, h].astype(np.float64) for h in range(len(pattern))]  # [t, d] each
    return np.stack(heads, axis=1, dtype=np.float32, casting="same_kind")


def mlp(x: Activations, p: PackedBlock, to: Workspace, tap: Shown) -> np.ndarray:
    """Two linear layers with a GELU between them. x [t, c] -> [t, c]."""
    hidden = tap("mlp_pre", kernels.linear(x, p.w_in, p.b_in, to.mlp, **to.how))  # [t, f]
    hidden = tap("mlp_post", kernels.gelu(hidden, to.mlp, **to.how))  # [t, f]
    rows = Activations(hidden, to.ready, **to.how)
    return tap("mlp_out", kernels.linear(rows, p.w_out, p.b_out, to.mlp_out, **to.how))  # [t, c]


def block(
    x: np.ndarray,
    p: PackedBlock,
    cfg: ModelConfig,
    rows: Rows,
    kv: tuple[np.ndarray, np.ndarray],
    rotation: tuple[np.ndarray, np.ndarray],
    to: Workspace,
    tap: Shown,
) -> np.ndarray:
    """Attention and MLP side by side, both from the one LayerNorm. x [t, c] -> [t, c], in x's place."""
    normed = tap("ln", kernels.layer_norm(x, p.ln_w, p.ln_b, cfg.ln_eps, to.ln, **to.how))  # [t, c]
    shared = Activations(normed, to.ln_ready, **to.how)
    attn_out = attention(shared, p, rows, kv, rotation, to, tap)  # [t, c]
    mlp_out = mlp(shared, p, to, tap)  # [t, c]
    return tap("resid_post", kernels.residual(x, attn_out, mlp_out, to.x, **to.how))  # [t, c]


def forward(
    params: PackedParams,
    config: ModelConfig,
    rows: Rows,
    cache: KVCache,
    rotation: tuple[np.ndarray, np.ndarray],
    workspace: Workspace,
    wanted: slice = slice(None),
    tap: Tap = no_tap,
    program: Program | None = None,
) -> np.ndarray:
    """Logits of the rows ``wanted`` (all by default) after one pass over ``rows``.

    Keys and values are written to the cache; its lengths are the caller's to move. ``rotation`` are the cosines and
    sines of ``rotary_tables``. With a tap the rows must be one whole text. With a program the pass is recorded: each
    run of it computes with what the arrays of ``rows`` hold by then, and writes to the logits returned here.

    Returns
    -------
    ndarray [len(wanted), v], float32
    """
    shown = Shown.to(tap)
    to = workspace.first(len(rows.ids), program)
    x = shown("embed", kernels.embedding(params.wte, rows.ids, to.x, **to.how))  # [t, c]
    for i, p in enumerate(params.blocks):
        x = block(x, p, config, rows, (cache.k[i], cache.v[i]), rotation, to, shown.part(f"blocks.{i}."))  # [t, c]
    x, ln = x[wanted], to.ln[wanted]
    x = shown("ln_final", kernels.layer_norm(x, params.ln_w, params.ln_b, config.ln_eps, ln, **to.how))
    logits = np.empty((len(x), config.n_vocab), np.float32)
    rows_of_head = Activations(x, to.ready, **to.how)
    return shown("logits", kernels.linear(rows_of_head, params.w_head, params.b_head, logits, **to.how))  # [t, v]
