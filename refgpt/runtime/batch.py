"""The rows of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refgpt.kernels import query_tiles


@dataclass(frozen=True)
class Batch:
    """Rows of one pass: new tokens of one sequence or of many.

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
    def of(
        cls,
        ids: Sequence[int] | np.ndarray,
        slots: np.ndarray,
        positions: np.ndarray,
        prefix_lens: int | np.ndarray = 0,
    ) -> Batch:
        """Rows whose sequences have a prefix of ``prefix_lens`` (one for all, or one a row) that sees itself whole."""
        n_visible = np.maximum(positions + 1, prefix_lens)
        return cls(np.array(ids, np.int64), slots, positions, n_visible, query_tiles(slots))
