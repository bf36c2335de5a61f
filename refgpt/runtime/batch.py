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
        Token, slot of the sequence, and position of each row.
    n_visible : ndarray [t], int64
        Each row sees the keys of its sequence before this one: the causal and the prefix mask.
    first_visible : ndarray [t], int64
        In local layers each row sees the keys from this one on; zeros in models that have none.
    tiles : ndarray
        Groups of neighbouring rows of one sequence, for the attention kernel.
    """

    ids: np.ndarray
    slots: np.ndarray
    positions: np.ndarray
    n_visible: np.ndarray
    first_visible: np.ndarray
    tiles: np.ndarray

    @classmethod
    def of(
        cls,
        ids: Sequence[int] | np.ndarray,
        slots: np.ndarray,
        positions: np.ndarray,
        prefix_lens: int | np.ndarray = 0,
        window: int | None = None,
    ) -> Batch:
        """Rows whose sequences have a prefix of ``prefix_lens`` positions (one for all, or one per row).

        Rows of local layers see no more than the ``window`` keys that end with their own.
        """
        n_visible = np.maximum(positions + 1, prefix_lens)
        first_visible = np.zeros_like(positions) if window is None else np.maximum(positions + 1 - window, 0)
        return cls(np.array(ids, np.int64), slots, positions, n_visible, first_visible, query_tiles(slots))

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All of them, in the order of the attributes."""
        return self.ids, self.slots, self.positions, self.n_visible, self.first_visible, self.tiles
