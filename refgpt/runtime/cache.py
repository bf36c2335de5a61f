"""The KV cache: rotated keys and values of every layer for several sequences of different lengths."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from refgpt._common.errors import GenerationError
from refgpt.kernels import kv_shapes
from refgpt.numbers.dtypes import STORED_DTYPES
from refgpt.numbers.panels import LANES, aligned_zeros
from refgpt.spec.config import AnyConfig


class KVCache:
    """A cache of ``n_slots`` slots, each for a sequence of at most ``capacity`` positions.

    Attributes
    ----------
    k, v : ndarray [n_layer, n_slots, ...]
        Panels for the attention kernel (``refgpt.kernels.kv_shapes``). The system allocates the memory when it is
        written.
    lengths : ndarray [n_slots], int64
        Number of filled positions of each sequence.
    prefix_lens : ndarray [n_slots], int64
        How many leading positions of each sequence have seen one another. Their keys and values depend on all of them,
        so they can be neither cut, nor extended, nor lent to a sequence with another prefix.
    ids : ndarray [n_slots, capacity], int64
    n_held, held_prefixes : ndarray [n_slots], int64
        The tokens whose keys and values a slot holds, how many they are, and the prefix that they were computed with.
        That is more than ``lengths`` says where a sequence was cut or released: what follows may be of use.

    Raises
    ------
    GenerationError
        If there is not enough memory.
    """

    def __init__(self, config: AnyConfig, n_slots: int, capacity: int, dtype: str = "f32") -> None:
        k_shape, v_shape = kv_shapes(config.n_head, config.d_head, capacity)
        shapes = [(config.n_layer, n_slots, *shape) for shape in (k_shape, v_shape)]
        try:
            self.k, self.v = (aligned_zeros(shape, STORED_DTYPES[dtype]) for shape in shapes)
        except MemoryError:
            n_bytes = sum(map(prod, shapes)) * STORED_DTYPES[dtype].itemsize
            raise GenerationError(
                "the attention cache does not fit into memory",
                where=f"{n_slots} x {capacity} positions in {dtype}",
                wanted=f"{n_bytes} bytes",
                fix="use kv_dtype='f16' (--kv-dtype f16), fewer prompts at once or fewer new tokens",
            ) from None
        self.lengths = np.zeros(n_slots, np.int64)
        self.prefix_lens = np.zeros(n_slots, np.int64)
        self.ids = np.zeros((n_slots, capacity), np.int64)
        self.n_held = np.zeros(n_slots, np.int64)
        self.held_prefixes = np.zeros(n_slots, np.int64)
        self.capacity = capacity

    def hold(self, slot: int, start: int, ids: np.ndarray) -> None:
        """Keys and values of these tokens have been written to a slot, from position ``start`` on."""
        stop = start + len(ids)
        self.ids[slot, start:stop] = ids
        self.n_held[slot] = self.lengths[slot] = stop
        if not start:
            self.held_prefixes[slot] = self.prefix_lens[slot]

    def n_common(self, slot: int, ids: np.ndarray, prefix_len: int) -> int:
        """How many leading positions of a slot are what they would be in a sequence of these tokens.

        The slot may have been released. A prefix is common as a whole or not at all.
        """
        n = min(int(self.n_held[slot]), len(ids))
        if self.held_prefixes[slot] != prefix_len or n < prefix_len:
            return 0
        differing = np.flatnonzero(self.ids[slot, :n] != ids[:n])
        n = int(differing[0]) if differing.size else n
        return n if n >= prefix_len else 0

    def copy(self, source: int, target: int, start: int) -> None:
        """Make slot ``target`` hold the sequence of slot ``source``, of which it has ``start`` positions already."""
        stop, first = int(self.lengths[source]), start // LANES
        if start < stop:
            panels = slice(first, -(-stop // LANES))
            self.k[:, target, :, panels] = self.k[:, source, :, panels]
            self.v[:, target, :, :, start:stop] = self.v[:, source, :, :, start:stop]
        self.prefix_lens[target] = self.prefix_lens[source]
        self.held_prefixes[target] = self.prefix_lens[source]
        self.ids[target, start:stop] = self.ids[source, start:stop]
        self.lengths[target] = self.n_held[target] = stop

    def exported(self, slot: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of keys and values of some positions, in whole panels."""
        panels = slice(start // LANES, stop // LANES)
        return self.k[:, slot, :, panels].copy(), self.v[:, slot, :, :, start:stop].copy()

    def adopt(self, slot: int, ids: np.ndarray, contents: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Fill a slot from its beginning with what ``exported`` gave for these tokens."""
        start = 0
        for k, v in contents:
            stop = start + v.shape[-2]
            self.k[:, slot, :, start // LANES : stop // LANES], self.v[:, slot, :, :, start:stop] = k, v
            start = stop
        self.prefix_lens[slot] = 0
        self.hold(slot, 0, ids)

    def layer(self, layer: int, slot: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Copies of one layer's keys and values of the first ``n`` positions, in whole panels; zeros past them."""
        panels = -(-n // LANES)
        keys, values = self.k[layer, slot, :, :panels].copy(), self.v[layer, slot, :, :, : panels * LANES].copy()
        keys[:, -1, :, n - (panels - 1) * LANES :] = 0
        values[:, :, n:] = 0
        return keys, values

    def layer_bytes(self, n: int) -> tuple[int, int]:
        """What the two that ``layer`` gives take."""
        n_head, _, d_head, _ = self.k.shape[2:]
        positions = -(-n // LANES) * LANES * n_head * self.k.dtype.itemsize
        return positions * d_head, positions * self.v.shape[3] * LANES

    def set_layer(self, layer: int, slot: int, n: int, n_kept: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Put back bytes that ``layer`` gave for ``n`` positions, the first ``n_kept`` of them."""
        n_head, _, d_head, _ = self.k.shape[2:]
        panels, kept = -(-n // LANES), -(-n_kept // LANES)
        self.k[layer, slot, :, :kept] = keys.view(self.k.dtype).reshape(n_head, panels, d_head, LANES)[:, :kept]
        shape = n_head, self.v.shape[3], panels * LANES, LANES
        self.v[layer, slot, :, :, : kept * LANES] = values.view(self.v.dtype).reshape(shape)[:, :, : kept * LANES]

    def check_overflow(self, logits: np.ndarray, slots: np.ndarray, positions: np.ndarray) -> None:
        """Raise an error if logits are NaN because keys or values of these rows were too large for float16.

        Such a number becomes NaN in the cache, and so do all logits of the rows that see it.

        Raises
        ------
        GenerationError
        """
        if self.k.dtype != np.float16 or not np.isnan(logits[:, :1]).any():
            return
        for layer, (k, v) in enumerate(zip(self.k, self.v, strict=True)):
            keys = np.isnan(k[slots, :, positions // LANES, :, positions % LANES]).reshape(len(slots), -1)  # [t, h x d]
            lanes = v[slots, :, :, positions, :].reshape(len(slots), v.shape[1], -1)  # [t, h, whole panels of d]
            values = np.isnan(lanes[..., : k.shape[-2]]).reshape(len(slots), -1)
            lost = keys.any(1) | values.any(1)
            if (lost & ~(keys.all(1) & values.all(1))).any():  # a row that was NaN before is NaN everywhere
                raise GenerationError(
                    "keys or values are too large for float16, in which they are kept",
                    where=f"blocks.{layer}",
                    fix="load with kv_dtype='f32' (--kv-dtype f32)",
                )
            if lost.any():
                return

    @property
    def padded_capacity(self) -> int:
        """Capacity in whole panels."""
        n: int = self.v.shape[-2]
        return n
