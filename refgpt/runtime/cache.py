"""The KV cache: keys (rotated) and values of every layer for some sequences, each at a position of its own."""

from __future__ import annotations

import numpy as np

from refgpt.config import ModelConfig
from refgpt.kernels import aligned_zeros, kv_shapes

DTYPES: dict[str, np.dtype] = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16)}


class KVCache:
    """Room for ``n_slots`` sequences of at most ``capacity`` positions.

    Attributes
    ----------
    k, v : ndarray [n_layer, n_slots, ...]
        Panels as the attention kernel reads them (``refgpt.kernels.kv_shapes``). Memory is taken as it is written.
    lengths : ndarray [n_slots], int64
        How many positions of each sequence are filled.
    """

    def __init__(self, config: ModelConfig, n_slots: int, capacity: int, dtype: str = "f32") -> None:
        k_shape, v_shape = kv_shapes(config.n_head, config.d_head, capacity)
        self.k = aligned_zeros((config.n_layer, n_slots, *k_shape), DTYPES[dtype])
        self.v = aligned_zeros((config.n_layer, n_slots, *v_shape), DTYPES[dtype])
        self.lengths = np.zeros(n_slots, np.int64)
        self.capacity = capacity

    @property
    def padded_capacity(self) -> int:
        """Capacity in whole panels."""
        n: int = self.v.shape[-2]
        return n
