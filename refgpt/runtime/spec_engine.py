"""The specification as an engine. It needs no compiled kernels; the other engine is tested against it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import GenerationError
from refgpt._common.float_state import default_float_state
from refgpt.numbers.casting import kept_leaf, other_dtype
from refgpt.numbers.checksums import digests
from refgpt.numbers.dtypes import Compute, DTypeLike, KVDtype
from refgpt.numbers.finite import check_finite
from refgpt.numbers.leaves import Leaf, row_slices
from refgpt.numbers.mapped import check_unchanged, files_of, in_memory, place_of, release
from refgpt.numbers.packing import Kept, check_room, copied_bytes, kept_kind, pack_leaf
from refgpt.numbers.panels import BLOCK_BYTES, Panels
from refgpt.numbers.quantisation import store
from refgpt.numbers.tree import ParamTree, Tree
from refgpt.runtime.engine import Part, adapter_named, check_no_adapters, check_slots, no_empty_slot, not_empty
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import forward
from refgpt.spec.ids import check_cut, check_ids, check_prefix
from refgpt.spec.taps import Recorder, Tap, no_tap

if TYPE_CHECKING:
    from refgpt.spec.gradients import LeafGradients, Text


@default_float_state()
def kept_params(params: Tree, dtype: str | None, copy: bool = False) -> Tree:
    """The weights for the spec: checked, and cast or quantised, leaf by leaf.

    Parameters
    ----------
    params : Params
        As stored.
    dtype : "f32", "f16", "bf16", "f64", "q8", "q4", "q3" or None
        See ``refgpt.numbers.casting.kept_leaf`` and ``refgpt.numbers.packing.kept_kind``.
    copy : bool
        Whether to copy leaves into memory that could be used directly from a mapped file.

    Raises
    ------
    CheckpointError
        Before any leaf is read, if all of them take more memory than this process can have; or naming the first leaf
        that holds NaN, infinity or what ``dtype`` cannot.
    """

    check_room(_kept_bytes(name, leaf, dtype, copy) for name, leaf in params.items())

    def kept(name: str, leaf: Leaf) -> Leaf:
        check_unchanged(leaf)
        where, kind = place_of(leaf, name), kept_kind(name, dtype)
        if isinstance(leaf, Panels) and kind in (None, leaf.kind):
            return in_memory(leaf) if copy else leaf
        if leaf.ndim == 2 and kind in BLOCK_BYTES:
            return pack_leaf(name, leaf, Kept(kind, "panels"), store)
        for rows in row_slices(leaf):
            check_finite(where, rows)
        found = kept_leaf(where, leaf, dtype)
        found = in_memory(found) if copy else found
        release(leaf)
        return found

    return params.map(kept)


def _kept_bytes(name: str, leaf: Leaf, dtype: str | None, copy: bool) -> int:
    """What ``kept_params`` allocates for a leaf: nothing for what stays in its file."""
    kind = kept_kind(name, dtype)
    stays = isinstance(leaf, Panels) and kind in (None, leaf.kind)
    if not stays and leaf.ndim == 2 and kind in BLOCK_BYTES:
        return Kept(kind, "panels").n_bytes(leaf.shape)
    other = None if stays else other_dtype(leaf, dtype)
    if other is not None:
        return Kept(other, "rows").n_bytes(leaf.shape)
    return copied_bytes(leaf) if copy else 0


class SpecEngine:
    """The spec as an engine: no cache, so each new token costs a whole forward pass.

    Parameters
    ----------
    params : Params
        Stored parameters, or the result of ``kept_params``.
    config : Config
    dtype : floating dtype
        The dtype of all computations.
    """

    kv_dtype: KVDtype = "f32"  # there is no cache to round to
    compute: Compute = "f32"  # or float64: nothing is rounded below
    sum_chunk: int | None = None  # NumPy's order is not fixed

    def __init__(self, params: ParamTree, config: AnyConfig, dtype: DTypeLike = np.float32) -> None:
        self.params = params
        self._files = files_of(leaf for _, leaf in params.items())
        self.config = config
        self.dtype = np.dtype(dtype)
        self.adopted = False
        self.adapters: Mapping[str, SpecEngine] = {}

    @default_float_state()
    def logits(self, ids: Sequence[int], prefix_len: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """See ``Engine.logits``; [t, v] in the engine's dtype."""
        for file in self._files:
            file.check_unchanged()
        return forward(self.params, self.config, ids, prefix_len, self.dtype, tap)

    @property
    def bytes_per_token(self) -> int:
        """See ``Engine.bytes_per_token``."""
        return self.params.nbytes - sum(
            leaf.nbytes for name, leaf in self.params.items() if name in self.params.looked_up
        )

    def states(self, texts: Sequence[Sequence[int]], prefix_lens: Sequence[int], name: str) -> list[np.ndarray]:
        """See ``Engine.states``; a pass for each."""
        from refgpt.runtime.taps import OneActivation

        looks = [OneActivation(name) for _ in texts]
        for look, ids, prefix_len in zip(looks, texts, prefix_lens, strict=True):
            with look.until_seen():
                self.logits(ids, prefix_len, look)
        return [look.value for look in looks]

    def kept(self) -> ParamTree:
        """See ``Engine.kept``."""
        return self.params

    def masters(self) -> ParamTree:
        """See ``Engine.masters``."""
        return self.params

    def identity(self) -> dict[str, Any]:
        """See ``Engine.identity``."""
        from refgpt.runtime.identity import identity_of

        return identity_of(f"numpy {self.dtype}", self.config, self.params, self.kv_dtype, digests)

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
        """See ``Engine.loss_backward``. The mask is in the trace."""
        from refgpt.spec.gradients import loss_backward  # only training needs it

        return loss_backward(self.params, self.config, ids, labels, trace, n_targets, leaves, tap)

    def texts_backward(
        self,
        texts: Sequence[Text],
        n_targets: int,
        leaves: LeafGradients,
        recompute: bool = False,
        apart: bool = False,
        memory: Any = None,
    ) -> list[float]:
        """See ``Engine.texts_backward``. It keeps every activation of a text in any case."""
        losses = []
        for text in texts:
            recorder = Recorder()
            self.logits(text.ids.tolist(), text.prefix_len, recorder)
            losses.append(self.loss_backward(text.ids, text.labels, recorder.trace, n_targets, leaves))
        return losses

    def product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """See ``Engine.product``."""
        found: np.ndarray = x @ w.T
        return found

    def share(self) -> SpecEngine:
        """See ``Engine.share``. Weights that may be changed in place are copied."""
        other = copy(self)
        if self.adopted:
            other.params = self.params.map(lambda _, leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf)
        return other

    def adopt(self, params: ParamTree) -> None:
        """See ``Engine.adopt``."""
        check_no_adapters(self)
        self.params, self.adopted = params, True
        self._files = files_of(leaf for _, leaf in params.items())

    def session(self, n_seqs: int, capacity: int) -> SpecSession:
        """See ``Engine.session``. A slot holds nothing but its ids, so any capacity will do."""
        return SpecSession(self, n_seqs)


class SpecSession:
    """See ``Session``."""

    def __init__(self, engine: SpecEngine, n_seqs: int) -> None:
        self._engine, self._n_seqs = engine, n_seqs
        self._texts: dict[int, tuple[list[int], int]] = {}  # slot -> its ids so far and the length of its prefix
        self._adapters: dict[int, str] = {}  # slot -> the adapter that it has

    def step(self, parts: Sequence[Part], n_rows: Sequence[int] | None = None) -> np.ndarray:
        """See ``Session.step``. A row at a time: NumPy may round a row of a longer text differently."""
        config, texts, rows = self._engine.config, {}, []
        for slot, ids, prefix_len in parts:
            before, prefix_before = self._texts.get(slot, ([], 0))
            new = check_ids(ids, config).tolist()
            prefix_len = check_prefix(prefix_len, len(new), self._engine.config)
            if prefix_len and before:
                raise GenerationError("a prefix must begin its sequence", where="prefix_len", got=prefix_len)
            check_ids([*before, *new], config)
            texts[slot] = [*before, *new], prefix_len if not before else prefix_before
        if len(texts) < len(parts):
            raise GenerationError("a slot is given twice", where="parts", got=[slot for slot, _, _ in parts])
        for (slot, ids, _), n in zip(parts, [1] * len(parts) if n_rows is None else n_rows, strict=True):
            text, prefix_len = texts[slot]
            n = whole_number("n_rows", n, 0, len(ids), GenerationError)
            engine = self._engine_of(slot)
            rows += [engine.logits(text[:end], prefix_len)[-1] for end in range(len(text) - n + 1, len(text) + 1)]
        self._texts |= texts
        return np.array(rows, self._engine.dtype).reshape(len(rows), config.n_vocab)

    def use_adapter(self, seq: int, adapter: str | None) -> None:
        """See ``Session.use_adapter``."""
        check_slots([seq], self._n_seqs)
        if adapter != self.adapter_of(seq) and self._texts.get(seq, ([], 0))[0]:
            raise not_empty(seq)
        if adapter is None:
            self._adapters.pop(seq, None)
        else:
            adapter_named(self._engine.adapters, adapter)
            self._adapters[seq] = adapter

    def adapter_of(self, seq: int) -> str | None:
        """See ``Session.adapter_of``."""
        check_slots([seq], self._n_seqs)
        return self._adapters.get(seq)

    def _engine_of(self, seq: int) -> SpecEngine:
        return self._engine.adapters[self._adapters[seq]] if seq in self._adapters else self._engine

    def fork(self, seq: int, slots: Sequence[int] | None = None) -> int:
        """See ``Session.fork``."""
        asked = range(self._n_seqs) if slots is None else slots
        empty = [slot for slot in asked if slot != seq and not self._texts.get(slot, ([], 0))[0]]
        if not empty:
            raise no_empty_slot(list(asked))
        ids, prefix_len = self._texts[seq]
        target = empty[0]
        self._texts[target] = [*ids], prefix_len
        self._adapters.pop(target, None)
        if seq in self._adapters:
            self._adapters[target] = self._adapters[seq]
        return target

    def export(self, seq: int, start: int, stop: int) -> tuple[Any, int]:
        """See ``Session.export``. There is nothing to keep but the ids, which whoever adopts knows."""
        return None, 8 * (stop - start)

    def adopt(self, seq: int, ids: Sequence[int], contents: Sequence[Any]) -> None:
        """See ``Session.adopt``."""
        if self._texts.get(seq, ([], 0))[0]:
            raise not_empty(seq)
        self._texts[seq] = check_ids(ids, self._engine.config).tolist(), 0

    def save(self, path: str | os.PathLike[str], seq: int = 0) -> None:
        """See ``Session.save``. There is nothing to keep but the ids."""
        from refgpt.runtime import saved

        ids, prefix_len = self._texts.get(seq, ([], 0))
        saved.save(path, self._engine_of(seq).identity(), np.array(ids, np.int64), prefix_len, None, seq, digests)

    def load(self, path: str | os.PathLike[str], seq: int = 0, ids: Sequence[int] | None = None) -> list[int]:
        """See ``Session.load``."""
        from refgpt.runtime import saved

        config, wanted = self._engine.config, None if ids is None else np.array(ids, np.int64)
        header = saved.read_header(path, self._engine_of(seq).identity())
        if self._texts.get(seq, ([], 0))[0]:
            raise not_empty(seq)
        room = {"n_vocab": config.n_vocab, "capacity": config.n_ctx}
        found: list[int] = saved.load(header, None, seq, digests, **room, wanted=wanted).tolist()
        self._texts[seq] = found, header.prefix_len if found else 0
        return found

    def release(self, seq: int) -> None:
        """See ``Session.release``."""
        self._texts[seq] = [], 0

    def prefill(self, seq: int, ids: Sequence[int], prefix_len: int = 0) -> np.ndarray:
        """See ``Session.prefill``."""
        tokens = check_ids(ids, self._engine.config)
        check_prefix(prefix_len, len(tokens), self._engine.config)
        self.release(seq)
        row: np.ndarray = self.step([(seq, tokens, prefix_len)])[0]
        return row

    def decode(self, seqs: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        """See ``Session.decode``."""
        return self.step([(seq, [new], 0) for seq, new in zip(seqs, ids, strict=True)])

    def extend(self, seq: int, ids: Sequence[int]) -> np.ndarray:
        """See ``Session.extend``."""
        return self.step([(seq, ids, 0)], [len(ids)])

    def truncate(self, seq: int, n: int) -> None:
        """See ``Session.truncate``."""
        ids, prefix_len = self._texts[seq]
        n = check_cut(n, len(ids), prefix_len)
        self._texts[seq] = ids[:n], min(prefix_len, n)
