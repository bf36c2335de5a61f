"""The rows of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from refgpt.kernels import query_tiles

#: The arrays that have an entry for each row.
_PER_ROW = ("ids", "positions", "blocks", "offsets", "n_visible", "first_visible")


@dataclass(frozen=True)
class Batch:
    """Rows of one pass: new tokens of one sequence or of many.

    Attributes
    ----------
    ids, positions : ndarray [t], int64
        Token and position of each row.
    blocks, offsets : ndarray [t], int64
        Where its keys and values go: the block of the cache, and the position in it.
    n_visible : ndarray [t], int64
        Each row sees the keys of its sequence before this one: the causal and the prefix mask.
    first_visible : ndarray [t], int64
        In local layers each row sees the keys from this one on; zeros in models that have none.
    tiles : ndarray
        Groups of neighbouring rows of one sequence, for the attention kernel.
    tables : ndarray [n_slots, n], int64, or None
        The blocks of each sequence in the cache: the cache's own array. None if sequence ``i`` has block ``i`` alone.
    logit_rows : slice or ndarray [n], int64, or None
        The rows whose logits are wanted, in ascending order; None for all.
    for_logits : Batch or None
        These rows as a batch of their own; None for all.
    """

    ids: np.ndarray
    positions: np.ndarray
    blocks: np.ndarray
    offsets: np.ndarray
    n_visible: np.ndarray
    first_visible: np.ndarray
    tiles: np.ndarray
    tables: np.ndarray | None = None
    logit_rows: slice | np.ndarray | None = None
    for_logits: Batch | None = None

    @classmethod
    def of(
        cls,
        ids: Sequence[int] | np.ndarray,
        slots: np.ndarray,
        positions: np.ndarray,
        prefix_lens: int | np.ndarray = 0,
        window: int | None = None,
        tables: np.ndarray | None = None,
        block: int = 1,
    ) -> Batch:
        """Rows of the sequences ``slots``, which have a prefix of ``prefix_lens`` positions (one for all, or one per
        row), in a cache with these ``tables`` of blocks of ``block`` positions.

        Rows of local layers see no more than the ``window`` keys that end with their own.
        """
        n_visible = np.maximum(positions + 1, prefix_lens)
        first_visible = np.zeros_like(positions) if window is None else np.maximum(positions + 1 - window, 0)
        blocks, offsets = slots, positions
        if tables is not None:
            i, offsets = np.divmod(positions, block)
            blocks = tables[slots, i]
        tiles = query_tiles(slots)
        return cls(np.array(ids, np.int64), positions, blocks, offsets, n_visible, first_visible, tiles, tables)

    def with_logit_rows(self, rows: slice | np.ndarray) -> Batch:
        """The same batch, with these as its logit rows."""
        slots = np.repeat(self.tiles["slot"], self.tiles["n_rows"])  # of each row
        some = {name: getattr(self, name)[rows] for name in _PER_ROW}
        return replace(self, logit_rows=rows, for_logits=replace(self, tiles=query_tiles(slots[rows]), **some))

    def copy(self) -> Batch:
        """A copy that shares only the tables."""
        own = {name: getattr(self, name).copy() for name in (*_PER_ROW, "tiles")}
        return replace(self, for_logits=None if self.for_logits is None else self.for_logits.copy(), **own)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All arrays but the tables, in a fixed order, then those of ``for_logits``."""
        own = (getattr(self, name) for name in (*_PER_ROW, "tiles"))
        return *own, *(() if self.for_logits is None else self.for_logits.arrays)
