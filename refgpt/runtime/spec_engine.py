"""The specification as an engine: it needs no compiled kernels, and is what the other engine is held to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import DTypeLike

from refgpt._common.float_state import default_float_state
from refgpt.numbers.casting import kept_leaf
from refgpt.numbers.dtypes import KVDtype
from refgpt.numbers.finite import check_finite
from refgpt.numbers.leaves import Leaf, row_slices
from refgpt.numbers.mapped import check_unchanged, files_of, in_memory, place_of, release
from refgpt.numbers.packing import Kept, kept_kind, pack_leaf
from refgpt.numbers.panels import BLOCK_BYTES, Panels
from refgpt.numbers.quantisation import store
from refgpt.numbers.tree import ParamTree, Tree
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import forward
from refgpt.spec.gradients import LeafGradients, loss_backward
from refgpt.spec.ids import check_cut, check_ids, check_prefix
from refgpt.spec.taps import Tap, no_tap


@default_float_state()
def kept_params(params: Tree, dtype: str | None, copy: bool = False) -> Tree:
    """Weights as the spec computes with them, checked leaf by leaf.

    Parameters
    ----------
    params : Params
        As stored.
    dtype : "f32", "f16", "f64", "q8", "q4" or None
        See ``refgpt.numbers.casting.kept_leaf`` and ``refgpt.numbers.packing.kept_kind``.
    copy : bool
        Whether also what could be read where it lies in a file is copied into memory.

    Raises
    ------
    CheckpointError
        Naming the first leaf that holds NaN, infinity or what ``dtype`` cannot.
    """

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


class SpecEngine:
    """The spec as an engine: no cache, so each new token costs a whole forward pass.

    Parameters
    ----------
    params : Params
        As stored or as ``kept_params`` returned them.
    config : Config
    dtype : floating dtype
        What to compute in.
    """

    kv_dtype: KVDtype = "f32"  # there is no cache to round to
    sum_chunk: int | None = None  # NumPy's own business

    def __init__(self, params: ParamTree, config: AnyConfig, dtype: DTypeLike = np.float32) -> None:
        self.params = params
        self._files = files_of(leaf for _, leaf in params.items())
        self.config = config
        self.dtype = np.dtype(dtype)
        self.adopted = False

    @default_float_state()
    def logits(self, ids: Sequence[int], prefix_len: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """See ``Engine.logits``; [t, v] in the engine's dtype."""
        for file in self._files:
            file.check_unchanged()
        return forward(self.params, self.config, ids, prefix_len, self.dtype, tap)

    def kept(self) -> ParamTree:
        """See ``Engine.kept``."""
        return self.params

    def loss_backward(
        self,
        ids: np.ndarray,
        labels: np.ndarray,
        trace: Mapping[str, np.ndarray],
        n_targets: int,
        leaves: LeafGradients,
        tap: Tap = no_tap,
    ) -> float:
        """See ``Engine.loss_backward``."""
        return loss_backward(self.params, self.config, ids, labels, trace, n_targets, leaves, tap)

    def product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """See ``Engine.product``."""
        found: np.ndarray = x @ w.T
        return found

    def adopt(self, params: ParamTree) -> None:
        """See ``Engine.adopt``."""
        self.params, self.adopted = params, True
        self._files = files_of(leaf for _, leaf in params.items())

    def session(self, n_seqs: int, capacity: int) -> SpecSession:
        """See ``Engine.session``. Neither number matters here: a slot holds nothing but its ids."""
        return SpecSession(self)


class SpecSession:
    """See ``Session``."""

    def __init__(self, engine: SpecEngine) -> None:
        self._engine = engine
        self._texts: dict[int, tuple[list[int], int]] = {}  # slot -> its ids so far and the length of its prefix

    def prefill(self, seq: int, ids: Sequence[int], prefix_len: int = 0) -> np.ndarray:
        """See ``Session.prefill``."""
        tokens = check_ids(ids, self._engine.config)
        self._texts[seq] = tokens.tolist(), check_prefix(prefix_len, len(tokens))
        return self._last_row(seq)

    def decode(self, seqs: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        """See ``Session.decode``."""
        for seq, new in zip(seqs, ids, strict=True):
            self._texts[seq][0].append(new)
        return np.stack([self._last_row(seq) for seq in seqs])

    def extend(self, seq: int, ids: Sequence[int]) -> np.ndarray:
        """See ``Session.extend``. Token by token: NumPy may round a row of a longer text differently."""
        check_ids(ids, self._engine.config)
        check_ids([*self._texts[seq][0], *ids], self._engine.config)  # all of it, before any of it is appended
        return np.concatenate([self.decode([seq], [new]) for new in ids])

    def truncate(self, seq: int, n: int) -> None:
        """See ``Session.truncate``."""
        ids, prefix_len = self._texts[seq]
        n = check_cut(n, len(ids), prefix_len)
        self._texts[seq] = ids[:n], min(prefix_len, n)

    def _last_row(self, seq: int) -> np.ndarray:
        row: np.ndarray = self._engine.logits(*self._texts[seq])[-1]
        return row
