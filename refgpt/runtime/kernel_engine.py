"""A model in C kernels: its packed weights, and what is computed with them. Texts in progress are in ``session``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from refgpt._common.arguments import one_of
from refgpt._common.errors import GenerationError
from refgpt._common.progress import Progress
from refgpt.kernels import CHUNK, check_threads, digests, store
from refgpt.numbers.cached import kv_bytes
from refgpt.numbers.dtypes import COMPUTES, KV_DTYPES, Compute, KVDtype
from refgpt.numbers.mapped import check_unchanged, files_of
from refgpt.numbers.packing import pack_params
from refgpt.numbers.panels import BLOCK_BYTES, PACKED_DTYPES, Panels
from refgpt.numbers.tree import ParamTree
from refgpt.runtime.adopting import repacked, rounds_rows, unrounded
from refgpt.runtime.batch import Batch
from refgpt.runtime.buffers import Buffers
from refgpt.runtime.cache import KVCache
from refgpt.runtime.engine import check_no_adapters
from refgpt.runtime.families import FAMILIES
from refgpt.runtime.identity import identity_of
from refgpt.runtime.session import RuntimeSession
from refgpt.runtime.states import hidden_states
from refgpt.spec.config import AnyConfig
from refgpt.spec.ids import check_ids, check_prefix
from refgpt.spec.taps import Tap, no_tap

if TYPE_CHECKING:
    from refgpt.runtime.gradients import StepMemory
    from refgpt.spec.gradients import LeafGradients, Text

#: GPT-J's number of positions: its tables take a megabyte, and are made at once.
FEW_POSITIONS = 2048


class Runtime:
    """A model in C kernels: the engine to run (see ``refgpt.runtime.engine.Engine``).

    Parameters
    ----------
    params : Params
        The weights, which are packed; the tree is not kept.
    config : Config
    dtype : "f32", "f16", "bf16", "q8", "q4", "q3" or None
        The dtype of matrices in memory; None keeps the stored one.
    threads : int, optional
        The default is one for each core. The bits of the result do not depend on it.
    kv_dtype : "f32", "f16", "q8" or None
        The dtype of keys and values; None is "f16" with weights of 8, 4 or 3 bits, and "f32" with others.
    progress, copy, n_beside
        See ``pack_params``.
    compute : "f32" or "bf16"
        "bf16": linear layers round their rows to bfloat16, and float32 matrices; so does the backward pass.
    """

    sum_chunk: int | None = CHUNK

    def __init__(
        self,
        params: ParamTree,
        config: AnyConfig,
        *,
        dtype: str | None = None,
        threads: int | None = None,
        kv_dtype: KVDtype | None = None,
        progress: Progress | None = None,
        copy: bool = False,
        n_beside: int = 0,
        compute: Compute = "f32",
    ) -> None:
        one_of("dtype", dtype, PACKED_DTYPES, GenerationError)
        one_of("compute", compute, COMPUTES, GenerationError)
        one_of("kv_dtype", kv_dtype, (None, *KV_DTYPES), GenerationError)
        self.config = config
        self.threads = check_threads(threads)
        self.compute: Compute = compute
        store_rows = partial(store, threads=self.threads)
        self.params = pack_params(params, dtype, store_rows, progress, n_beside, copy, compute)
        self._exact = unrounded(params, self.params) if compute == "bf16" and dtype != "bf16" else {}
        self._files = files_of(leaf for _, leaf in self.params.items())
        quantised = getattr(self.params.w_head, "kind", "") in BLOCK_BYTES
        self.kv_dtype: KVDtype = kv_dtype or ("f16" if quantised else "f32")
        self.family = FAMILIES[config.model_type]
        self._n_tabled, self._tables = 0, None
        self.adopted = self._owned = False
        self.adapters: Mapping[str, Runtime] = {}
        self._identity: dict[str, Any] | None = None

    def adopt(self, params: ParamTree) -> None:
        """See ``Engine.adopt``. Each call packs the weights again, into the memory of the last call's."""
        check_no_adapters(self)
        before = self.params
        self.params = repacked(params, before, self._owned, partial(store, threads=self.threads), self.compute)
        self._exact = unrounded(params, self.params, before, self._exact)
        self._files = files_of(leaf for _, leaf in self.params.items())
        self.adopted = self._owned = True

    def share(self) -> Runtime:
        """See ``Engine.share``."""
        self._owned = False
        other = copy(self)
        if self.adopted:  # training goes on in these arrays
            other._exact = {name: np.array(leaf) for name, leaf in self._exact.items()}
        return other

    def loss_backward(
        self,
        ids: np.ndarray,
        labels: np.ndarray,
        trace: Mapping[str, np.ndarray],
        n_targets: int,
        leaves: LeafGradients,
        tap: Tap = no_tap,
        prefix_len: int = 0,
    ) -> float:
        """See ``Engine.loss_backward``; no bit depends on the number of threads or the instruction set."""
        from refgpt.runtime.gradients import loss_backward

        return loss_backward(self, ids, labels, trace, n_targets, leaves, tap, prefix_len)

    def texts_backward(
        self,
        texts: Sequence[Text],
        n_targets: int,
        leaves: LeafGradients,
        recompute: bool = False,
        apart: bool = False,
        memory: StepMemory | None = None,
    ) -> list[float]:
        """See ``Engine.texts_backward``; no bit depends on the number of threads or the instruction set."""
        from refgpt.runtime.gradients import texts_backward

        self.check_files()
        return texts_backward(self, texts, n_targets, leaves, recompute, apart, memory)

    def product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """See ``Engine.product``."""
        from refgpt.runtime.gradients import product

        return product(x, w, self.threads)

    def kept(self) -> ParamTree:
        """See ``Engine.kept``."""
        return self.params

    def masters(self) -> ParamTree:
        """See ``Engine.masters``."""
        check_unchanged(*self._exact.values())
        return self.params.map(lambda name, leaf: self._exact.get(name, leaf))

    def identity(self) -> dict[str, Any]:
        """See ``Engine.identity``."""
        if self._identity is None or self.adopted:  # weights may have been changed in place
            self.check_files()
            computed = "c bf16" if rounds_rows(self.params) else "c"
            self._identity = identity_of(computed, self.config, self.params, self.kv_dtype, self.digests)
        return self._identity

    def digests(self, words: np.ndarray) -> np.ndarray:
        """See ``refgpt.kernels.digests``."""
        return digests(words, threads=self.threads)

    def check_files(self) -> None:
        """Before every pass: raise a CheckpointError if a file of weights has been written to since it was opened."""
        for file in self._files:
            file.check_unchanged()

    @property
    def n_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self.params.nbytes

    @property
    def bytes_per_token(self) -> int:
        """See ``Engine.bytes_per_token``: all weights except the embeddings, of which a step reads one row."""
        return self.n_bytes - sum(leaf.nbytes for name, leaf in self.params.items() if name in self.params.looked_up)

    def cache_bytes(self, n_positions: int) -> int:
        """Bytes of the keys and values of this number of positions."""
        config = self.config
        return n_positions * kv_bytes(config.n_layer, config.n_head, config.d_head, self.kv_dtype)

    @property
    def kinds(self) -> str:
        """The dtypes of the blocks' matrices in memory: "q4", or several for a mixture."""
        return ", ".join(sorted({leaf.kind for _, leaf in self.params.items() if isinstance(leaf, Panels)}))

    def logits(self, ids: Sequence[int], prefix_len: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """See ``Engine.logits``; [t, v] float32."""
        tokens = check_ids(ids, self.config)
        self.check_files()
        n = len(tokens)
        prefix_len = check_prefix(prefix_len, n, self.config)
        positions = np.arange(n, dtype=np.int64)
        batch = Batch.of(tokens, np.zeros(n, np.int64), positions, prefix_len, self.config.window)
        cache = KVCache(self.config, 1, n, self.kv_dtype, block=n)
        buffers = Buffers.of(self.config, n, cache.padded_capacity, self.threads)
        logits = self.family.forward(self.params, self.config, batch, cache, self.tables(n), buffers, tap=tap)
        if tap is no_tap:  # who looks inside is shown the fault where it is
            cache.check_overflow(logits, batch.blocks, batch.offsets)
        return logits

    def states(self, texts: Sequence[Sequence[int]], prefix_lens: Sequence[int], name: str) -> list[np.ndarray]:
        """See ``Engine.states``; one pass for all texts."""
        return hidden_states(self, texts, prefix_lens, name)

    def tables(self, n_positions: int) -> Any:
        """The family's tables by position, for ``n_positions`` or more.

        They grow when more positions are needed, since a configuration may name far more positions than anybody uses,
        and no file's size confirms the number.
        """
        if self._n_tabled < n_positions:
            self._n_tabled = min(self.config.n_ctx, max(FEW_POSITIONS, 1 << (n_positions - 1).bit_length()))
            self._tables = self.family.tables(self.config, self._n_tabled)
        return self._tables

    def session(self, n_seqs: int, capacity: int) -> RuntimeSession:
        """See ``Engine.session``."""
        return RuntimeSession(self, n_seqs, capacity)
