"""The forward pass of training texts, and the activations that the backward pass reads.

Either every block's activations are kept, or only the residual stream between blocks: then a block is computed again
when the backward pass comes to it (Chen et al. 2016, https://arxiv.org/abs/1604.06174). The bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from refgpt import kernels
from refgpt.numbers.cached import KV_ARRAYS, kv_shapes
from refgpt.numbers.dtypes import Compute, KVDtype
from refgpt.numbers.panels import LANES, aligned_zeros
from refgpt.runtime.batch import Batch
from refgpt.runtime.buffers import Buffers
from refgpt.runtime.families import Family
from refgpt.runtime.gradients.room import Room, StepMemory
from refgpt.runtime.gradients.texts import Texts, groups
from refgpt.runtime.taps import TapView
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import taps_of
from refgpt.spec.gradients import LeafGradients, Text

Block = Mapping[str, np.ndarray]
#: Activations that only the gradient of one leaf of the block reads.
READ_FOR = {"mlp_post": "w_out", "z": "wo"}
#: The most rows of a pass that several texts share, and the most bytes of all its memory.
MOST_ROWS, MOST_BYTES = 2048, 1 << 28


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
    @property
    def compute(self) -> Compute: ...
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
        """The activations of a whole trace, whose streams have the names ``stream(i)``."""

        def block(i: int) -> Block:
            part = f"blocks.{i}."
            return {name.removeprefix(part): value for name, value in trace.items() if name.startswith(part)}

        return cls([trace[stream(i)] for i in range(n_layer + 1)], block)


@dataclass(frozen=True)
class _Memory:
    """Memory of a pass: for the first block's input, each block, a block that is computed again, and linear layers."""

    start: Buffers
    of_blocks: list[Buffers]
    again: Buffers
    scratch: np.ndarray


class Passes:
    """Forward passes of texts, some together, a block at a time. If they are small, all use the same memory.

    Parameters
    ----------
    engine : Kernels
    reads : collection of str
        Names of a block's activations that the backward pass reads.
    leaves : LeafGradients
        Those that are wanted: what only others read is not kept.
    recompute : bool
        Keep only the residual stream between blocks of each pass.
    memory : StepMemory
    """

    def __init__(
        self, engine: Kernels, reads: Collection[str], leaves: LeafGradients, recompute: bool, memory: StepMemory
    ) -> None:
        self._step_memory = memory
        config = engine.config
        self._engine, self._recompute, self._kv_dtype = engine, recompute, KV_ARRAYS[engine.kv_dtype]
        there = [name for name in taps_of(config).block if name in reads]
        self._reads = [
            [name for name in there if name not in READ_FOR or leaves.wants(f"blocks.{i}.{READ_FOR[name]}")]
            for i in range(config.n_layer)
        ]

    def groups(self, texts: Sequence[Text], apart: bool) -> list[Texts]:
        """The texts of each pass, in their order; one for each pass if they go ``apart``."""
        config = self._engine.config
        c, f = config.d_model, config.d_ff
        kept = self._reads[:1] if self._recompute else self._reads
        n_floats = sum(f if name.startswith("mlp") else c for names in kept for name in names)
        n_floats += (config.n_layer + 20) * c + 5 * f  # between blocks, and while a block is worked on
        key_bytes = 2 * c * self._kv_dtype.itemsize
        most = (0, 0) if apart else (MOST_ROWS, MOST_BYTES)
        found = [Texts.of(some) for some in groups(texts, 4 * n_floats, key_bytes, *most)]
        n_rows = max(len(some.slots) for some in found)
        self._kept = None
        if len(found) > 1 and 4 * n_floats * n_rows <= MOST_BYTES:
            key = self._recompute, tuple(map(tuple, self._reads))
            self._kept = self._step_memory.get("pass", key, n_rows, lambda: self._memory(n_rows))
        n_longest = max(some.n_longest for some in found)
        n_floats = n_rows * (10 * c + f)  # of a block's backward pass
        n_floats += self._engine.threads * kernels.attention_backward_scratch(n_longest, config.d_head)
        self.room = self._step_memory.get("room", None, n_floats, lambda: Room(n_floats))
        self.room.scratch = None if self._kept is None else self._kept.scratch
        return found

    def _memory(self, n_rows: int) -> _Memory:
        """Memory for a pass of so many rows."""
        shared = Buffers.of(self._engine.config, n_rows, 0, self._engine.threads)
        of_blocks = [shared.keeping(["resid_post", *([] if self._recompute else names)]) for names in self._reads]
        again = shared.keeping(self._reads[-1]) if self._recompute else shared
        return _Memory(shared.keeping(["resid_post"]), of_blocks, again, shared.ready)

    def run(self, texts: Texts) -> tuple[np.ndarray, Activations]:
        """The last LayerNorm's rows [t, c], and what the backward pass reads: both until the next pass."""
        engine, config = self._engine, self._engine.config
        memory = self._memory(len(texts.slots)) if self._kept is None else self._kept
        shapes = kv_shapes(config.n_head, config.d_head, texts.n_longest, engine.kv_dtype)
        k, v = (aligned_zeros((len(texts.texts), *shape), self._kv_dtype) for shape in shapes)
        batch = Batch.of(texts.ids, texts.slots, texts.positions, texts.prefix_lens, config.window)
        scores = np.empty((engine.threads, kernels.FEW_ROWS, k.shape[2] * LANES), np.float32)
        tables = engine.tables(texts.n_longest)

        def room(buffers: Buffers) -> Buffers:
            return replace(buffers.first(len(texts.slots)), scores=scores)

        def block(i: int, x: np.ndarray, to: Buffers, tap: TapView) -> np.ndarray:
            return engine.family.layer(i, x, engine.params, config, batch, (k, v), tables, to, tap)

        def again(i: int) -> Block:
            """A block's activations, computed again from its input, up to the last one that is read."""
            kept: dict[str, np.ndarray] = {}
            try:
                block(i, streams[i], room(memory.again), keeping(kept, self._reads[i], self._reads[i][-1]))
            except _Enough:
                return kept
            raise AssertionError(self._reads[i])

        to = room(memory.start)
        x = engine.family.embed(engine.params, config, batch, to, TapView.to_nothing())  # [t, c]
        streams, blocks = [x], dict[int, Block]()
        for i, names in enumerate(self._reads):
            kept: dict[str, np.ndarray] = {}
            to = room(memory.of_blocks[i])
            x = block(i, x, to, TapView.to_nothing() if self._recompute else keeping(kept, names))
            streams.append(x)
            blocks[i] = kept
        last = kernels.layer_norm(x, engine.params.ln_w, engine.params.ln_b, config.ln_eps, **to.how)  # [t, c]
        return last, Activations(streams, again if self._recompute else blocks.pop)  # each is read once


def keeping(kept: dict[str, np.ndarray], names: Collection[str], until: str | None = None) -> TapView:
    """Takes activations in their buffers; ends the block after a named one."""

    def keep(name: str, value: np.ndarray) -> np.ndarray:
        kept[name] = value
        if name == until:
            raise _Enough
        return value

    return TapView(keep, frozenset(names), looks_only=True)


class _Enough(Exception):
    """Ends a block after the last activation that is read."""
