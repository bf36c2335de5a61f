"""Hidden states of several texts from one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refgpt.runtime.batch import Batch
from refgpt.runtime.buffers import Buffers
from refgpt.runtime.cache import KVCache
from refgpt.runtime.taps import OneActivation
from refgpt.spec.ids import check_ids, check_prefix


def hidden_states(
    engine: Any, texts: Sequence[Sequence[int]], prefix_lens: Sequence[int], name: str
) -> list[np.ndarray]:
    """``Engine.states`` for a ``Runtime``: one pass for all texts."""
    config = engine.config
    engine.check_files()
    tokens = [check_ids(ids, config) for ids in texts]
    sizes = [len(ids) for ids in tokens]
    prefixes = [check_prefix(n, size, config) for n, size in zip(prefix_lens, sizes, strict=True)]
    slots = np.repeat(np.arange(len(texts)), sizes)
    positions = np.concatenate([np.arange(size) for size in sizes])
    batch = Batch.of(np.concatenate(tokens), slots, positions, np.repeat(prefixes, sizes), config.window)
    cache = KVCache(config, len(texts), max(sizes), engine.kv_dtype, block=max(sizes))
    buffers = Buffers.of(config, len(slots), cache.padded_capacity, engine.threads)
    look = OneActivation(name)
    tables = engine.tables(max(sizes))
    with look.until_seen():
        engine.family.forward(engine.params, config, batch, cache, tables, buffers, tap=look)
    return np.split(look.value, np.cumsum(sizes)[:-1])
