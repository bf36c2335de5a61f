"""The slots of a session and their memory: which are free, and whether one more sequence fits."""

from __future__ import annotations

from refgpt.numbers.cached import kv_bytes
from refgpt.runtime.engine import Engine

#: Memory is counted in blocks of this number of positions, for which the values of one head of 6B take a page.
BLOCK = 128


def position_bytes(*engines: Engine) -> int:
    """Bytes of the keys and values of one position, in the caches of a model and of its draft model."""
    return sum(
        kv_bytes(config.n_layer, config.n_head, config.d_head, engine.kv_dtype)
        for engine in engines
        for config in [engine.config]
    )


class Room:
    """Slots of equal capacity. A slot takes memory where it was written to, and keeps it when it is given back.

    Parameters
    ----------
    n_slots, capacity : int
    n_positions : int
        The number of positions, in all slots together, for which there is memory.

    Attributes
    ----------
    free : list of int
        Free slots, in ascending order.
    """

    def __init__(self, n_slots: int, capacity: int, n_positions: int) -> None:
        self.free = list(range(n_slots))
        self._capacity, self._n_positions = capacity, n_positions
        self._written = [0] * n_slots  # positions of each slot that may have been written to

    @property
    def unused(self) -> bool:
        """Whether all slots are free."""
        return len(self.free) == len(self._written)

    @property
    def clean(self) -> bool:
        """Whether nothing was ever taken."""
        return not any(self._written)

    def size(self, n_positions: int) -> int:
        """This number of positions, rounded up to whole blocks."""
        return min(self._capacity, -(-n_positions // BLOCK) * BLOCK)

    def take(self, n_slots: int, n_positions: int) -> list[int] | None:
        """Take slots for some sequences of up to ``n_positions``; None while slots or memory do not suffice.

        Slots that have enough memory already come first, the smallest of them first; then the largest of the others.
        """
        size = self.size(n_positions)
        order = sorted(self.free, key=lambda slot: (self._written[slot] < size, abs(self._written[slot] - size), slot))
        slots = order[:n_slots]
        more = sum(max(0, size - self._written[slot]) for slot in slots)
        if len(slots) < n_slots or sum(self._written) + more > self._n_positions:
            return None
        for slot in slots:
            self._written[slot] = max(size, self._written[slot])
            self.free.remove(slot)
        return sorted(slots)

    def give_back(self, slots: list[int]) -> None:
        """Free some slots."""
        self.free = sorted([*self.free, *slots])
