"""Run texts through a model block by block, so that the weights of only one block need to be in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refgpt import kernels
from refgpt.kernels import check_threads, kv_shapes
from refgpt.numbers.panels import aligned_zeros
from refgpt.numbers.tree import ParamTree
from refgpt.runtime.batch import Batch
from refgpt.runtime.buffers import Buffers
from refgpt.runtime.families import FAMILIES
from refgpt.runtime.taps import OneActivation, TapView
from refgpt.spec.config import AnyConfig

#: Most rows that go through a block together; a longer text goes alone.
ROWS = 2048


class Blockwise:
    """Texts of one length on their way through a model. Results have the bits of ``Runtime.logits`` for each text.

    Each method reads only those leaves of its ``params`` that its docstring names: packed matrices, as
    ``refgpt.numbers.packing.pack_leaf`` makes them, and float32 vectors.

    Parameters
    ----------
    config : Config
    ids : ndarray [n_texts, t]
    prefix_len : int
        How many leading positions of each text see one another.
    threads : int, optional

    Attributes
    ----------
    states : ndarray [n_texts x t, c]
        The residual stream of all texts.
    inputs : mapping of str to tuple of str
        For each activation that matrices of a block are multiplied with, the names of those matrices, in the order of
        the forward pass.
    """

    def __init__(self, config: AnyConfig, ids: np.ndarray, prefix_len: int = 0, threads: int | None = None) -> None:
        self.config, self.ids, self.prefix_len, self.threads = config, ids, prefix_len, check_threads(threads)
        self._family = FAMILIES[config.model_type]
        self.inputs = self._family.INPUTS
        n_texts, length = ids.shape
        self._n_together = min(n_texts, max(1, ROWS // length))
        self._tables = self._family.tables(config, length)
        k_shape, v_shape = kv_shapes(config.n_head, config.d_head, length)
        self._kv = tuple(
            aligned_zeros((self._n_together, *shape), np.dtype(np.float32)) for shape in (k_shape, v_shape)
        )
        self._buffers = Buffers.of(config, self._n_together * length, v_shape[-2], self.threads)
        self.states = np.empty((n_texts * length, config.d_model), np.float32)

    def embed(self, params: ParamTree) -> None:
        """Set the states to the texts' embeddings: needs the embeddings."""
        for rows, batch, to in self._parts():
            self.states[rows] = self._family.embed(params, self.config, batch, to, TapView.to_nothing())

    def activations(self, i: int, params: ParamTree, name: str) -> Iterator[np.ndarray]:
        """Yield an activation of block ``i``, some rows at a time [rows, n]: needs the block's leaves that come before
        it in the forward pass."""
        for rows, batch, to in self._parts():
            look = OneActivation(name)
            with look.until_seen():
                self._layer(i, params, rows, batch, to, TapView.to(look))
            yield look.value.reshape(len(batch.ids), -1)

    def advance(self, i: int, params: ParamTree) -> None:
        """Run the texts through block ``i``: needs the block's leaves."""
        for rows, batch, to in self._parts():
            self.states[rows] = self._layer(i, params, rows, batch, to, TapView.to_nothing())

    def last_inputs(self, params: ParamTree) -> Iterator[np.ndarray]:
        """Yield the head's inputs, some rows at a time [rows, c]: needs the final LayerNorm."""
        for rows, _, to in self._parts():
            to.x[...] = self.states[rows]
            yield kernels.layer_norm(to.x, params.ln_w, params.ln_b, self.config.ln_eps, threads=self.threads)

    def _layer(self, i: int, params: ParamTree, rows: slice, batch: Batch, to: Buffers, tap: TapView) -> np.ndarray:
        to.x[...] = self.states[rows]
        k, v = self._kv
        return self._family.layer(i, to.x, params, self.config, batch, (k, v), self._tables, to, tap)

    def _parts(self) -> Iterator[tuple[slice, Batch, Buffers]]:
        """Yield for some texts at a time: their rows among the states, the batch, and memory for it."""
        n_texts, length = self.ids.shape
        for start in range(0, n_texts, self._n_together):
            ids = self.ids[start : start + self._n_together]
            slots, positions = np.divmod(np.arange(ids.size), length)
            batch = Batch.of(ids.reshape(-1), slots, positions, self.prefix_len, self.config.window)
            yield slice(start * length, start * length + ids.size), batch, self._buffers.first(ids.size)
