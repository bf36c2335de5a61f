"""Memory for the activations of a pass, so that a pass allocates nothing large except the logits."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refgpt import kernels
from refgpt.kernels import Program
from refgpt.numbers.panels import aligned_zeros
from refgpt.spec.config import AnyConfig

#: By tap name, the memory that holds an activation of a block when the block is done.
HOLDS = {
    "resid_post": "x",
    "resid_mid": "mid",
    "ln": "ln",
    "ln1": "ln",
    "ln2": "ln2",
    **dict.fromkeys(("q", "q_rot"), "q"),
    **dict.fromkeys(("k", "k_rot"), "k"),
    "v": "v",
    "z": "z",
    "mlp_pre": "mlp",
    "mlp_post": "mlp_post",
}


@dataclass(frozen=True)
class Buffers:
    """Memory for the activations of a pass of up to ``n_rows`` rows.

    Rotated queries and keys overwrite the plain ones. Some others share memory, unless ``keeping`` separates them:
    ``mid`` is ``x``, ``ln2`` is ``ln``, and ``mlp_post`` is ``mlp``.
    """

    x: np.ndarray  # [n_rows, c]
    mid: np.ndarray  # [n_rows, c], the stream between attention and MLP
    ln: np.ndarray  # [n_rows, c]
    ln2: np.ndarray  # [n_rows, c], the second LayerNorm of a block
    q: np.ndarray  # [n_rows, h, d]
    k: np.ndarray  # [n_rows, h, d]
    v: np.ndarray  # [n_rows, h, d]
    z: np.ndarray  # [n_rows, h, d]
    attn_out: np.ndarray  # [n_rows, c]
    mlp: np.ndarray  # [n_rows, f]
    mlp_post: np.ndarray  # [n_rows, f]
    mlp_out: np.ndarray  # [n_rows, c]
    ln_ready: np.ndarray  # bytes: the normed rows in the form that linear layers read
    ready: np.ndarray  # bytes: other rows in that form
    scores: np.ndarray  # [threads, 8, capacity], for attention
    threads: int
    program: Program | None = None

    @classmethod
    def of(cls, config: AnyConfig, n_rows: int, capacity: int, threads: int) -> Buffers:
        """Buffers for ``n_rows`` rows of sequences of up to ``capacity`` (in whole panels) positions."""

        def rows(*width: int) -> np.ndarray:
            return np.empty((n_rows, *width), np.float32)

        c, f, heads = config.d_model, config.d_ff, (config.n_head, config.d_head)
        x, ln, mlp = rows(c), rows(c), rows(f)
        return cls(
            x=x,
            mid=x,
            ln=ln,
            ln2=ln,
            q=rows(*heads),
            k=rows(*heads),
            v=rows(*heads),
            z=rows(*heads),
            attn_out=rows(c),
            mlp=mlp,
            mlp_post=mlp,
            mlp_out=rows(c),
            threads=threads,
            ln_ready=aligned_zeros((kernels.scratch_bytes(n_rows, c),), np.dtype(np.uint8)),
            ready=aligned_zeros((kernels.scratch_bytes(n_rows, max(c, f)),), np.dtype(np.uint8)),
            scores=np.empty((threads, kernels.FEW_ROWS, capacity), np.float32),
        )

    @property
    def n_rows(self) -> int:
        """Largest number of rows of a pass."""
        return len(self.x)

    @property
    def how(self) -> dict[str, Any]:
        """Keyword arguments of kernel calls: the number of threads, and the program if calls are recorded."""
        return {"threads": self.threads, "program": self.program}

    def first(self, n: int, program: Program | None = None) -> Buffers:
        """The same buffers for a pass of ``n`` rows."""
        return replace(
            self,
            x=self.x[:n],
            mid=self.mid[:n],
            ln=self.ln[:n],
            ln2=self.ln2[:n],
            q=self.q[:n],
            k=self.k[:n],
            v=self.v[:n],
            z=self.z[:n],
            attn_out=self.attn_out[:n],
            mlp=self.mlp[:n],
            mlp_post=self.mlp_post[:n],
            mlp_out=self.mlp_out[:n],
            program=program,
        )

    def select(self, rows: slice | np.ndarray) -> Buffers:
        """The buffers for some rows of the pass.

        ``x`` and ``mid`` are these rows of the residual stream: a view for a slice, a copy for an array. A recorded
        pass needs a slice, since it would not make the copy again.
        """
        assert self.program is None or isinstance(rows, slice)
        x = self.x[rows]
        return replace(self.first(len(x), self.program), x=x, mid=x)

    def keeping(self, names: Collection[str]) -> Buffers:
        """The same buffers, with separate memory for these activations of a block, so that nothing overwrites them."""
        own = {HOLDS[name]: np.empty_like(getattr(self, HOLDS[name])) for name in names}
        return replace(self, **own)
