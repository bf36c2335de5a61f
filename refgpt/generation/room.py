"""The slots of a session and their memory: which are free, and whether one more sequence fits."""

from __future__ import annotations

from collections.abc import Hashable

from refgpt.numbers.cached import kv_bytes
from refgpt.runtime.cache import BLOCK
from refgpt.runtime.engine import Engine


def position_bytes(*engines: Engine) -> int:
    """Bytes of the keys and values of one position, in the caches of a model and of its draft model."""
    return sum(
        kv_bytes(config.n_layer, config.n_head, config.d_head, engine.kv_dtype)
        for engine in engines
        for config in [engine.config]
    )


def whole_blocks(n_positions: int) -> int:
    """How many of these positions are in full blocks."""
    return n_positions // BLOCK * BLOCK


class Room:
    """Slots of equal capacity, and the memory that their sequences share: blocks, which any slot can have.

    Parameters
    ----------
    n_slots, capacity : int
    n_positions : int
        The number of positions, in all slots together, for which there is memory.

    Attributes
    ----------
    free : list of int
        Free slots, in ascending order.
    n_taken : int
        The number of positions that are reserved. What several sequences share is counted once.
    """

    def __init__(self, n_slots: int, capacity: int, n_positions: int) -> None:
        self.free = list(range(n_slots))
        self.n_taken = 0
        self._capacity, self._n_positions = capacity, n_positions
        self._own: dict[int, int] = {}  # positions of each slot, without those that it shares
        self._group_of: dict[int, Hashable] = {}
        # For each group, the positions that its slots share, and how many slots it has.
        self._groups: dict[Hashable, tuple[int, int]] = {}

    def size(self, n_positions: int) -> int:
        """This number of positions, rounded up to whole blocks."""
        return min(self._capacity, -(-n_positions // BLOCK) * BLOCK)

    def needed(self, n_slots: int, n_positions: int, n_shared: int = 0) -> int:
        """The positions of some sequences of up to ``n_positions``, of which ``n_shared`` are the same in all."""
        shared = whole_blocks(n_shared)
        return shared + n_slots * (self.size(n_positions) - shared)

    def take(self, n_slots: int, n_positions: int, n_shared: int = 0, group: Hashable = None) -> list[int] | None:
        """Take slots for some sequences of up to ``n_positions``; None while slots or memory do not suffice.

        The first ``n_shared`` positions are the same in all sequences of a ``group``.
        """
        shared, n_sharers = self._groups.get(group, (whole_blocks(n_shared), 0))
        n_more = self.needed(n_slots, n_positions, shared) - (shared if n_sharers else 0)
        if len(self.free) < n_slots or self.n_taken + n_more > self._n_positions:
            return None
        slots, self.free = self.free[:n_slots], self.free[n_slots:]
        self.n_taken += n_more
        self._own |= dict.fromkeys(slots, self.size(n_positions) - shared)
        self._group_of |= dict.fromkeys(slots, group)
        self._groups[group] = shared, n_sharers + n_slots
        return slots

    def give_back(self, slots: list[int]) -> None:
        """Free some slots."""
        for slot in slots:
            self.n_taken -= self._own.pop(slot)
            group = self._group_of.pop(slot)
            shared, n_sharers = self._groups.pop(group)
            if n_sharers > 1:
                self._groups[group] = shared, n_sharers - 1
            else:
                self.n_taken -= shared
        self.free = sorted([*self.free, *slots])
