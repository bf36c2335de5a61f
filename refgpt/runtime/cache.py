"""The KV cache: rotated keys and values of every layer for several sequences of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from refgpt._common.errors import GenerationError
from refgpt.numbers.cached import KV_ARRAYS, kv_shapes, scales_in, values_in
from refgpt.numbers.dtypes import KVDtype
from refgpt.numbers.panels import LANES, aligned_zeros
from refgpt.spec.config import AnyConfig


class KVCache:
    """A cache of ``n_slots`` slots, each for a sequence of at most ``capacity`` positions.

    Attributes
    ----------
    k, v : ndarray [n_layer, n_slots, ...]
        Panels for the attention kernel, or records (``refgpt.kernels.kv_shapes``). The system allocates the memory when
        it is written.
    dtype : "f32", "f16" or "q8"
    lengths : ndarray [n_slots], int64
        Number of filled positions of each sequence.
    prefix_lens : ndarray [n_slots], int64
        How many leading positions of each sequence have seen one another. Their keys and values depend on all of them,
        so they cannot be shortened, extended, or used for a sequence with another prefix.
    ids : ndarray [n_slots, capacity], int64
    n_held, held_prefixes : ndarray [n_slots], int64
        The tokens whose keys and values a slot holds, their number, and the prefix that they were computed with. If a
        sequence was truncated or released, these are more tokens than ``lengths`` says, since a later sequence may
        reuse them.

    Raises
    ------
    GenerationError
        If there is not enough memory.
    """

    def __init__(self, config: AnyConfig, n_slots: int, capacity: int, dtype: KVDtype = "f32") -> None:
        k_shape, v_shape = kv_shapes(config.n_head, config.d_head, capacity, dtype)
        shapes = [(config.n_layer, n_slots, *shape) for shape in (k_shape, v_shape)]
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
        self.lengths = np.zeros(n_slots, np.int64)
        self.prefix_lens = np.zeros(n_slots, np.int64)
        self.ids = np.zeros((n_slots, capacity), np.int64)
        self.n_held = np.zeros(n_slots, np.int64)
        self.held_prefixes = np.zeros(n_slots, np.int64)
        self.capacity, self._d_head, self.dtype = capacity, config.d_head, dtype

    def hold(self, slot: int, start: int, ids: np.ndarray) -> None:
        """Keys and values of these tokens have been written to a slot, from position ``start`` on."""
        stop = start + len(ids)
        self.ids[slot, start:stop] = ids
        self.n_held[slot] = self.lengths[slot] = stop
        if not start:
            self.held_prefixes[slot] = self.prefix_lens[slot]

    def n_common(self, slot: int, ids: np.ndarray, prefix_len: int) -> int:
        """How many leading positions of a slot a sequence of these tokens can reuse.

        The slot may have been released. A prefix is reused as a whole or not at all.
        """
        n = min(int(self.n_held[slot]), len(ids))
        if self.held_prefixes[slot] != prefix_len or n < prefix_len:
            return 0
        differing = np.flatnonzero(self.ids[slot, :n] != ids[:n])
        n = int(differing[0]) if differing.size else n
        return n if n >= prefix_len else 0

    def copy(self, source: int, target: int, start: int) -> None:
        """Copy the sequence of slot ``source`` to slot ``target``, which has its first ``start`` positions already."""
        stop = int(self.lengths[source])
        if start < stop:
            panels = slice(start // LANES, -(-stop // LANES))
            self.k[:, target, :, panels] = self.k[:, source, :, panels]
            self._values(target, panels)[...] = self._values(source, panels)
        self.prefix_lens[target] = self.prefix_lens[source]
        self.held_prefixes[target] = self.prefix_lens[source]
        self.ids[target, start:stop] = self.ids[source, start:stop]
        self.lengths[target] = self.n_held[target] = stop

    def exported(self, slot: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of keys and values of some positions, in whole panels."""
        panels = slice(start // LANES, stop // LANES)
        return self.k[:, slot, :, panels].copy(), self._values(slot, panels).copy()

    def adopt(self, slot: int, ids: np.ndarray, contents: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Fill a slot from its beginning with the copies of ``exported`` for these tokens."""
        first = 0
        for k, v in contents:
            panels = slice(first, first + k.shape[2])
            self.k[:, slot, :, panels], self._values(slot, panels)[...] = k, v
            first = panels.stop
        self.prefix_lens[slot] = 0
        self.hold(slot, 0, ids)

    def layer(self, layer: int, slot: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of one layer's keys and values of the first ``n`` positions, in whole panels; zeros past them."""
        panels = slice(0, -(-n // LANES))
        keys, values = self.k[layer, slot, :, panels].copy(), self._values(slot, panels)[layer].copy()
        past = n - (panels.stop - 1) * LANES  # of the last panel
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
        panels, n_all = -(-n // LANES), self.k.shape[3]
        of_all = [cache[0, 0].nbytes for cache in (self.k, self.v)]
        return of_all[0] // n_all * panels, of_all[1] // n_all * panels

    def set_layer(self, layer: int, slot: int, n: int, n_kept: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Write back the first ``n_kept`` positions of bytes that ``layer`` gave for ``n`` positions."""
        n_whole, n_kept = -(-n // LANES), -(-n_kept // LANES)  # in panels: the slot may have room for the latter alone
        k, v = self.k[layer, slot, :, :n_kept], self._values(slot, slice(0, n_kept))[layer]
        k[...] = keys.view(k.dtype).reshape(k.shape[0], n_whole, *k.shape[2:])[:, :n_kept]
        values = values.view(v.dtype)
        if self.dtype == "q8":
            v[...] = values.reshape(v.shape[0], n_whole, *v.shape[2:])[:, :n_kept]
        else:
            v[...] = values.reshape(*v.shape[:2], n_whole * LANES, LANES)[:, :, : n_kept * LANES]

    def check_overflow(self, logits: np.ndarray, slots: np.ndarray, positions: np.ndarray) -> None:
        """Raise an error if logits are NaN because keys or values of these rows were too large for the cache's dtype.

        Such a number, or its scale, becomes NaN in the cache, and so do all logits of the rows that see it.

        Raises
        ------
        GenerationError
        """
        if self.dtype == "f32" or not np.isnan(logits[:, :1]).any():
            return
        for layer in range(len(self.k)):
            keys, values = (np.isnan(x).reshape(len(slots), -1) for x in self._rows(layer, slots, positions))
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
        """Capacity in whole panels."""
        n: int = self.k.shape[3] * LANES
        return n

    def _values(self, slot: int, panels: slice) -> np.ndarray:
        """A view of a slot's values at some panels of positions, in all layers."""
        if self.dtype == "q8":
            return self.v[:, slot, :, panels]
        return self.v[:, slot, :, :, panels.start * LANES : panels.stop * LANES]

    def _rows(self, layer: int, slots: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of rows, or their scales, [t, ...]."""
        k, v, panels, lanes = self.k[layer], self.v[layer], positions // LANES, positions % LANES
        if self.dtype == "q8":
            k, v = (scales_in(records, self._d_head) for records in (k, v))  # [slots, h, panels, blocks, 16]
            return k[slots, :, panels, :, lanes], v[slots, :, panels, :, lanes]
        values = v[slots, :, :, positions, :].reshape(len(slots), v.shape[1], -1)  # [t, h, whole panels of d]
        return k[slots, :, panels, :, lanes], values[..., : self._d_head]
