"""The forward pass of a text that is learnt from, and what of it the backward pass reads.

Either every block's activations are kept, or only the residual stream between blocks: then a block is computed again
when the backward pass comes to it (Chen et al. 2016, https://arxiv.org/abs/1604.06174). The bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import numpy as np

from refgpt import kernels
from refgpt.numbers.cached import KV_ARRAYS, kv_shapes
from refgpt.numbers.dtypes import KVDtype
from refgpt.numbers.panels import LANES, aligned_zeros
from refgpt.runtime.batch import Batch
from refgpt.runtime.buffers import Buffers
from refgpt.runtime.families import Family
from refgpt.runtime.taps import TapView
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import taps_of
from refgpt.spec.gradients import LeafGradients

Block = Mapping[str, np.ndarray]
#: Activations that only the gradient of one leaf of the block reads.
READ_FOR = {"mlp_post": "w_out", "z": "wo"}


class Kernels(Protocol):
    """The engine in kernels, as far as it matters here: see ``refgpt.runtime.Runtime``."""

    @property
    def params(self) -> Any: ...
    @property
    def config(self) -> AnyConfig: ...
    @property
    def family(self) -> Family: ...
    @property
    def threads(self) -> int: ...
    @property
    def kv_dtype(self) -> KVDtype: ...
    def tables(self, n_positions: int) -> Any: ...


class Activations:
    """What the backward pass of a family reads.

    Attributes
    ----------
    streams : list of ndarray [t, c]
        What enters each block, and what leaves the last.
    block : callable
        ``block(i)``: the activations within a block by their names, without "blocks.i.".
    """

    def __init__(self, streams: list[np.ndarray], block: Callable[[int], Block]) -> None:
        self.streams, self.block = streams, block

    @classmethod
    def of_trace(cls, trace: Mapping[str, np.ndarray], n_layer: int, stream: Callable[[int], str]) -> Activations:
        """Those of a whole trace, whose streams have the names ``stream(i)``."""

        def block(i: int) -> Block:
            part = f"blocks.{i}."
            return {name.removeprefix(part): value for name, value in trace.items() if name.startswith(part)}

        return cls([trace[stream(i)] for i in range(n_layer + 1)], block)


class TextPass:
    """The forward pass of one text, a block at a time.

    Parameters
    ----------
    engine : Kernels
    ids : ndarray of int [t]
    prefix_len : int
    reads : collection of str
        Names of a block's activations that the backward pass reads.
    leaves : LeafGradients
        Those that are wanted: what only others read is not kept.
    """

    def __init__(
        self, engine: Kernels, ids: np.ndarray, prefix_len: int, reads: Collection[str], leaves: LeafGradients
    ) -> None:
        config, n = engine.config, len(ids)
        self._engine = engine
        self._reads = [
            [name for name in reads if name not in READ_FOR or leaves.wants(f"blocks.{i}.{READ_FOR[name]}")]
            for i in range(config.n_layer)
        ]
        self._batch = Batch.of(ids, np.zeros(n, np.int64), np.arange(n, dtype=np.int64), prefix_len, config.window)
        dtype = KV_ARRAYS[engine.kv_dtype]
        shapes = kv_shapes(config.n_head, config.d_head, n, engine.kv_dtype)
        self._kv = aligned_zeros((1, *shapes[0]), dtype), aligned_zeros((1, *shapes[1]), dtype)
        self._to = Buffers.of(config, n, self._kv[0].shape[2] * LANES, engine.threads).first(n)
        self._tables = engine.tables(n)

    def run(self, recompute: bool) -> tuple[np.ndarray, Activations]:
        """The last LayerNorm's rows [t, c], and what the backward pass reads."""
        engine, to = self._engine, self._to
        config, params = engine.config, engine.params
        x = engine.family.embed(params, config, self._batch, to, TapView.to_nothing())  # [t, c]
        streams, blocks = [x.copy()], dict[int, Block]()
        for i in range(config.n_layer):
            kept: dict[str, np.ndarray] = {}
            x = self._block(i, x, TapView.to_nothing() if recompute else self._keeping(i, kept))
            streams.append(x.copy())
            blocks[i] = kept
        last = kernels.layer_norm(x, params.ln_w, params.ln_b, config.ln_eps, **to.how)  # [t, c]
        if recompute:
            return last, Activations(streams, lambda i: self._again(i, streams[i]))
        return last, Activations(streams, blocks.pop)  # each is read once, from the last on

    def _block(self, i: int, x: np.ndarray, tap: TapView) -> np.ndarray:
        engine = self._engine
        return engine.family.layer(
            i, x, engine.params, engine.config, self._batch, self._kv, self._tables, self._to, tap
        )

    def _keeping(self, i: int, kept: dict[str, np.ndarray], until: str | None = None) -> TapView:
        def keep(name: str, value: np.ndarray) -> np.ndarray:
            kept[name] = value
            if name == until:
                raise _Enough
            return value

        return TapView(keep, frozenset(self._reads[i]), looks_only=True)

    def _again(self, i: int, x: np.ndarray) -> Block:
        """A block's activations, computed once more from what enters it; nothing after the last that is read."""
        kept: dict[str, np.ndarray] = {}
        names = taps_of(self._engine.config).block
        until = [name for name in names if name in self._reads[i]][-1]
        np.copyto(self._to.x, x)
        try:
            self._block(i, self._to.x, self._keeping(i, kept, until))
        except _Enough:
            return kept
        raise AssertionError(until)


class _Enough(Exception):
    """Ends a block after the last activation that is read."""
