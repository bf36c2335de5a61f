"""The rows of one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from refgpt.kernels import query_tiles

#: The arrays that have an entry for each row.
_OF_ROWS = ("ids", "positions", "blocks", "offsets", "n_visible", "first_visible")


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
    rows : slice or ndarray [n], int64
        The rows whose logits are wanted, in ascending order.
    asked : Batch or None
        Those rows as a batch of their own; None if the logits of all rows are wanted.
    """

    ids: np.ndarray
    positions: np.ndarray
    blocks: np.ndarray
    offsets: np.ndarray
    n_visible: np.ndarray
    first_visible: np.ndarray
    tiles: np.ndarray
    tables: np.ndarray | None = None
    rows: slice | np.ndarray = field(default_factory=lambda: slice(None))
    asked: Batch | None = None

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

    def asking(self, rows: slice | np.ndarray) -> Batch:
        """The same batch, of which the logits of these rows are wanted."""
        slots = np.repeat(self.tiles["slot"], self.tiles["n_rows"])
        some = {name: getattr(self, name)[rows] for name in _OF_ROWS}
        return replace(self, rows=rows, asked=replace(self, tiles=query_tiles(slots[rows]), **some))

    def copy(self) -> Batch:
        """The same batch in arrays of its own, but for the tables."""
        own = {name: getattr(self, name).copy() for name in (*_OF_ROWS, "tiles")}
        return replace(self, asked=None if self.asked is None else self.asked.copy(), **own)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays that ``copy`` copies, in one order."""
        own = (getattr(self, name) for name in (*_OF_ROWS, "tiles"))
        return *own, *(() if self.asked is None else self.asked.arrays)
