"""Attention over the cache, shared by all families."""

from __future__ import annotations

import numpy as np

from refgpt import kernels
from refgpt.numbers.cached import kv_dtype_of, rounded_kv
from refgpt.runtime.batch import Batch
from refgpt.runtime.buffers import Buffers
from refgpt.runtime.taps import TapView


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    kv: tuple[np.ndarray, np.ndarray],
    batch: Batch,
    to: Buffers,
    tap: TapView,
    divisor: float | None = None,
    local: bool = False,
) -> np.ndarray:
    """Put new keys and values into the cache, then let each query mix the values that it sees. All [t, h, d].

    Scores are divided by ``divisor``, by default the root of the head's width. In a ``local`` layer a query sees the
    nearest keys only, and no others are read.
    """
    kernels.kv_append(k, v, *kv, batch.offsets, batch.blocks, **to.how)
    pattern = _room_for_pattern(q) if tap.wants("pattern") else None  # [h, t, s]
    z = kernels.attention(
        q,
        *kv,
        batch.tiles,
        batch.n_visible,
        to.z,
        tables=batch.tables,
        first_visible=batch.first_visible if local else None,
        divisor=divisor,
        pattern=pattern,
        scratch=to.scores,
        **to.how,
    )
    if pattern is not None and (patched := tap("pattern", pattern)) is not pattern:  # mix the values anew
        z = _mixed(patched, rounded_kv(v, kv_dtype_of(kv[1]) or "f32"))
    return tap("z", z)


def _room_for_pattern(q: np.ndarray) -> np.ndarray:
    """Memory for the pattern. A tapped pass holds a whole text, so it has as many keys as rows."""
    n_rows, n_head, _ = q.shape
    return np.empty((n_head, n_rows, n_rows), np.float32)


def _mixed(pattern: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Values mixed by a patched pattern, rounded once. pattern [h, t, s], v [s, h, d] -> [t, h, d]."""
    heads = [pattern[h].astype(np.float64) @ v[:, h].astype(np.float64) for h in range(len(pattern))]  # [t, d] each
    return np.stack(heads, axis=1, dtype=np.float32, casting="same_kind")
