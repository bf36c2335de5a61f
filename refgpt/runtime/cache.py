"""The KV cache: rotated keys and values of every layer for several sequences of different lengths.

They lie in blocks of 64 positions, and a table says which blocks each sequence has. Sequences with a common beginning
share its blocks, until one of them writes to a block that it shares: then it gets a copy of that block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import numpy as np

from refgpt._common.errors import GenerationError
from refgpt.numbers.cached import KV_ARRAYS, kv_shapes, scales_in, values_in
from refgpt.numbers.dtypes import KVDtype
from refgpt.numbers.panels import LANES, aligned_zeros
from refgpt.spec.config import AnyConfig

#: Positions of a block: whole chunks of the kernels' sums, and few enough that copying some is quick.
BLOCK = 64


class KVCache:
    """A cache of ``n_slots`` slots, each for a sequence of at most ``capacity`` positions.

    Parameters
    ----------
    config : Config
    n_slots, capacity : int
    dtype : "f32", "f16" or "q8"
    block : int
        Positions of a block. With as many as ``capacity``, slot ``i`` has block ``i`` alone, and shares nothing.

    Attributes
    ----------
    k, v : ndarray [n_layer, n_blocks, ...]
        Panels for the attention kernel, or records (``refgpt.kernels.kv_shapes``). The system allocates the memory when
        it is written, and blocks that were used before are used again first.
    tables : ndarray [n_slots, most blocks of a sequence], int64
        The blocks of each sequence; zeros after them.
    dtype : "f32", "f16" or "q8"
    lengths : ndarray [n_slots], int64
        Number of filled positions of each sequence.
    prefix_lens : ndarray [n_slots], int64
        How many leading positions of each sequence have seen one another. Their keys and values depend on all of them,
        so they cannot be shortened or extended.
    ids : ndarray [n_slots, capacity], int64
        The tokens of each sequence.
    block : int

    Raises
    ------
    GenerationError
        If there is not enough memory.
    """

    def __init__(
        self, config: AnyConfig, n_slots: int, capacity: int, dtype: KVDtype = "f32", block: int = BLOCK
    ) -> None:
        self.block = -(-min(block, capacity) // LANES) * LANES
        n_table = -(-capacity // self.block)
        n_blocks = n_slots * n_table  # enough even if no sequences share blocks
        k_shape, v_shape = kv_shapes(config.n_head, config.d_head, self.block, dtype)
        shapes = [(config.n_layer, n_blocks, *shape) for shape in (k_shape, v_shape)]
        try:
            self.k, self.v = (aligned_zeros(shape, KV_ARRAYS[dtype]) for shape in shapes)
        except MemoryError:
            n_bytes = sum(map(prod, shapes)) * KV_ARRAYS[dtype].itemsize
            smaller = "" if dtype == "q8" else "use kv_dtype='q8' (--kv-dtype q8), "
            raise GenerationError(
                "the attention cache does not fit into memory",
                where=f"{n_slots} x {capacity} positions in {dtype}",
                wanted=f"{n_bytes} bytes",
                fix=f"{smaller}fewer prompts at once or fewer new tokens",
            ) from None
        self.tables = np.zeros((n_slots, n_table), np.int64)
        self.lengths = np.zeros(n_slots, np.int64)
        self.prefix_lens = np.zeros(n_slots, np.int64)
        self.ids = np.zeros((n_slots, capacity), np.int64)
        self.capacity, self._d_head, self.dtype = capacity, config.d_head, dtype
        self._blocks: list[list[int]] = [[] for _ in range(n_slots)]  # of each slot: what its table says
        self._free = list(range(n_blocks))[::-1]  # the last one is taken first
        self._n_users = [0] * n_blocks

    @property
    def n_blocks_used(self) -> int:
        """How many blocks some sequence has."""
        return len(self._n_users) - len(self._free)

    def make_writable(self, slot: int, stop: int) -> None:
        """Give a slot blocks that no other has, for the positions from its length up to ``stop``."""
        own = self._blocks[slot]
        first, n_inside = divmod(int(self.lengths[slot]), self.block)
        if first < len(own) and self._n_users[own[first]] > 1:
            shared, own[first] = own[first], self._taken()
            self._n_users[shared] -= 1
            self.tables[slot, first] = own[first]
            self._copy(shared, own[first], -(-n_inside // LANES))
        while len(own) * self.block < stop:
            self.tables[slot, len(own)] = block = self._taken()
            own.append(block)

    def hold(self, slot: int, start: int, ids: np.ndarray) -> None:
        """Keys and values of these tokens have been written to a slot, from position ``start`` on."""
        stop = start + len(ids)
        self.ids[slot, start:stop] = ids
        self.lengths[slot] = stop

    def truncate(self, slot: int, n: int) -> None:
        """Forget all but the first ``n`` positions of a sequence, and give back the blocks after them."""
        own = self._blocks[slot]
        for i in reversed(range(-(-n // self.block), len(own))):
            self._n_users[own[i]] -= 1
            if not self._n_users[own[i]]:
                self._free.append(own[i])
            del own[i]
        self.tables[slot, len(own) :] = 0
        self.lengths[slot], self.prefix_lens[slot] = n, min(n, self.prefix_lens[slot])

    def fork(self, source: int, target: int) -> None:
        """Let an empty slot share the sequence of another."""
        n = int(self.lengths[source])
        self.truncate(target, 0)
        self._blocks[target] = shared = self._blocks[source][: -(-n // self.block)]
        for block in shared:
            self._n_users[block] += 1
        self.tables[target, : len(shared)] = shared
        self.ids[target, :n] = self.ids[source, :n]
        self.lengths[target], self.prefix_lens[target] = n, self.prefix_lens[source]

    def exported(self, slot: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of keys and values of some positions, in whole panels."""
        return self._gathered(slice(None), slot, start, stop)

    def adopt(self, slot: int, ids: np.ndarray, contents: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Fill an empty slot with the copies of ``exported`` for these tokens."""
        self.make_writable(slot, len(ids))
        start = 0
        for keys, values in contents:
            stop = start + keys.shape[-3] * LANES
            self._scatter(slice(None), slot, start, stop, keys, values)
            start = stop
        self.hold(slot, 0, ids)

    def layer(self, layer: int, slot: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of one layer's keys and values of the first ``n`` positions, in whole panels; zeros past them."""
        keys, values = self._gathered(layer, slot, 0, n)
        past = n - (keys.shape[-3] - 1) * LANES  # of the last panel
        keys[:, -1, : self._d_head, past:] = 0
        if self.dtype == "q8":
            values_in(values, self._d_head)[:, -1, :, past:] = 0
            for records in keys, values:
                scales_in(records, self._d_head)[:, -1, :, past:] = 0
        else:
            values[:, :, n:] = 0
        return keys, values

    def layer_bytes(self, n: int) -> tuple[int, int]:
        """Bytes of the two copies of ``layer``."""
        panels, of_block = -(-n // LANES), self.block // LANES
        k, v = (cache[0, 0].nbytes // of_block * panels for cache in (self.k, self.v))
        return k, v

    def set_layer(self, layer: int, slot: int, n: int, n_kept: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Write the first ``n_kept`` positions of bytes that ``layer`` gave for ``n`` positions to an empty slot."""
        self.make_writable(slot, n_kept)
        panels, (k, v) = -(-n // LANES), (cache[layer, 0] for cache in (self.k, self.v))  # [h, panels of a block, ..]
        keys = keys.view(k.dtype).reshape(k.shape[0], panels, *k.shape[2:])
        if self.dtype == "q8":
            values = values.view(v.dtype).reshape(v.shape[0], panels, *v.shape[2:])
        else:
            values = values.view(v.dtype).reshape(*v.shape[:2], panels * LANES, LANES)
        self._scatter(layer, slot, 0, n_kept, keys, values)

    def check_overflow(self, logits: np.ndarray, blocks: np.ndarray, offsets: np.ndarray) -> None:
        """Raise an error if logits are NaN because keys or values of these rows were too large for the cache's dtype.

        Such a number, or its scale, becomes NaN in the cache, and so do all logits of the rows that see it.

        Raises
        ------
        GenerationError
        """
        if self.dtype == "f32" or not np.isnan(logits[:, :1]).any():
            return
        for layer in range(len(self.k)):
            keys, values = (np.isnan(x).reshape(len(blocks), -1) for x in self._rows(layer, blocks, offsets))
            lost = keys.any(1) | values.any(1)
            if (lost & ~(keys.all(1) & values.all(1))).any():  # a row that was NaN before is NaN everywhere
                raise GenerationError(
                    f"keys or values are too large for {self.dtype}, in which they are kept",
                    where=f"blocks.{layer}",
                    fix="load with kv_dtype='f32' (--kv-dtype f32)",
                )
            if lost.any():
                return

    @property
    def padded_capacity(self) -> int:
        """Capacity in whole blocks."""
        return self.tables.shape[1] * self.block

    def _taken(self) -> int:
        """Take a free block for one user."""
        block = self._free.pop()
        self._n_users[block] = 1
        return block

    def _copy(self, source: int, target: int, n_panels: int) -> None:
        """Copy the first panels of a block."""
        panels = slice(0, n_panels)
        self.k[:, target, :, panels] = self.k[:, source, :, panels]
        self._values(self.v[:, target], panels)[...] = self._values(self.v[:, source], panels)

    def _values(self, values: np.ndarray, panels: slice) -> np.ndarray:
        """A view of some panels of positions of values [..., h, ..., ..., 16]."""
        if self.dtype == "q8":
            return values[..., panels, :, :]
        return values[..., panels.start * LANES : panels.stop * LANES, :]

    def _pieces(self, slot: int, start: int, stop: int) -> Iterator[tuple[int, slice, slice]]:
        """Yield each block of some positions with its panels, counted within the block and from ``start`` on."""
        first, end, of_block = start // LANES, -(-stop // LANES), self.block // LANES
        at = first
        while at < end:
            i, inner = divmod(at, of_block)
            n = min(of_block - inner, end - at)
            yield self._blocks[slot][i], slice(inner, inner + n), slice(at - first, at - first + n)
            at += n

    def _gathered(self, layers: int | slice, slot: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of keys and values of some positions, in whole panels."""
        pieces = list(self._pieces(slot, start, stop))
        keys = [self.k[layers, block][..., panels, :, :] for block, panels, _ in pieces]
        values = [self._values(self.v[layers, block], panels) for block, panels, _ in pieces]
        return np.concatenate(keys, -3), np.concatenate(values, -3 if self.dtype == "q8" else -2)

    def _scatter(
        self, layers: int | slice, slot: int, start: int, stop: int, keys: np.ndarray, values: np.ndarray
    ) -> None:
        """Write keys and values to some positions, in whole panels; those given may be more."""
        for block, panels, given in self._pieces(slot, start, stop):
            self.k[layers, block][..., panels, :, :] = keys[..., given, :, :]
            self._values(self.v[layers, block], panels)[...] = self._values(values, given)

    def _rows(self, layer: int, blocks: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of rows, or their scales, [t, ...]."""
        k, v, panels, lanes = self.k[layer], self.v[layer], offsets // LANES, offsets % LANES
        if self.dtype == "q8":
            k, v = (scales_in(records, self._d_head) for records in (k, v))  # [blocks, h, panels, blocks of d, 16]
            return k[blocks, :, panels, :, lanes], v[blocks, :, panels, :, lanes]
        values = v[blocks, :, :, offsets, :].reshape(len(blocks), v.shape[1], -1)  # [t, h, whole panels of d]
        return k[blocks, :, panels, :, lanes], values[..., : self._d_head]
