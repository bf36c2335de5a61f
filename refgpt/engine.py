"""What runs a model: the protocol of an engine, and the engine that is the spec itself.

The other engine, in C kernels and with a cache, is ``refgpt.runtime.Runtime``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from refgpt.checkpoints import check_finite, place_of, release
from refgpt.config import ModelConfig
from refgpt.panels import BLOCK_BYTES, Panels
from refgpt.params import KVDtype, Leaf, Params, kept_leaf, row_slices
from refgpt.prompts import check_cut, check_ids
from refgpt.quantisation import kept_kind, quantise
from refgpt.spec import Tap, forward, no_tap


class Session(Protocol):
    """Some sequences in progress, each in a numbered slot and at a position of its own."""

    def prefill(self, seq: int, ids: Sequence[int], prefix_len: int = 0) -> np.ndarray:
        """Start slot ``seq`` anew with a prompt, ``prefix_len`` of it seen by all of it. -> [v], its last row"""
        ...

    def decode(self, seqs: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        """Append one token to each named sequence. -> [len(seqs), v]"""
        ...

    def extend(self, seq: int, ids: Sequence[int]) -> np.ndarray:
        """Append tokens to one sequence, as causal as by ``decode``, and equal to it in every bit. -> [len(ids), v]"""
        ...

    def truncate(self, seq: int, n: int) -> None:
        """Forget all but the first ``n`` tokens of a sequence; an error if that would cut its prefix."""
        ...


class Engine(Protocol):
    """A model that can be run."""

    @property
    def config(self) -> ModelConfig:
        """The model's shape."""
        ...

    @property
    def kv_dtype(self) -> KVDtype:
        """What keys and values are rounded to on their way into the cache."""
        ...

    @property
    def sum_chunk(self) -> int | None:
        """The order of every sum of products: partial sums of so many terms, added up. None promises no order."""
        ...

    def logits(self, ids: Sequence[int], prefix_len: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """Scores for the next token at every position of a text, with every activation shown to ``tap``. -> [t, v]"""
        ...

    def kept(self) -> Params:
        """The weights as it computes with them: rounded or quantised to what they are kept in."""
        ...

    def session(self, n_seqs: int, capacity: int) -> Session:
        """Room for ``n_seqs`` sequences of at most ``capacity`` tokens each."""
        ...


def kept_params(params: Params, dtype: str | None) -> Params:
    """Weights as the spec computes with them, checked leaf by leaf.

    Parameters
    ----------
    params : Params
        As stored.
    dtype : "f32", "f16", "f64", "q8", "q4" or None
        See ``refgpt.params.kept_leaf`` and ``refgpt.quantisation.kept_kind``.

    Raises
    ------
    CheckpointError
        Naming the first leaf that holds NaN, infinity or what ``dtype`` cannot.
    """

    def kept(name: str, leaf: Leaf) -> Leaf:
        where, kind, start = place_of(leaf, name), kept_kind(name, dtype), 0
        if isinstance(leaf, Panels) and kind in (None, leaf.kind):
            return leaf
        room = (
            Panels.zeros(kind, leaf.shape[0], leaf.shape[1], where) if leaf.ndim == 2 and kind in BLOCK_BYTES else None
        )
        for rows in row_slices(leaf):
            check_finite(where, rows)
            if room is not None:
                quantise(rows, room.kind, room.part(start, start + len(rows)))
            start += len(rows)
        found = kept_leaf(where, leaf, dtype) if room is None else room
        release(leaf)
        return found

    return params.map(kept)


class SpecEngine:
    """The spec as an engine: no cache, so each new token costs a whole forward pass.

    Parameters
    ----------
    params : Params
        As stored or as ``kept_params`` returned them.
    config : ModelConfig
    dtype : floating dtype
        What to compute in.
    """

    kv_dtype: KVDtype = "f32"  # there is no cache to round to
    sum_chunk: int | None = None  # NumPy's own business

    def __init__(self, params: Params, config: ModelConfig, dtype: DTypeLike = np.float32) -> None:
        self.params = params
        self.config = config
        self.dtype = np.dtype(dtype)

    def logits(self, ids: Sequence[int], prefix_len: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """See ``Engine.logits``; [t, v] in the engine's dtype."""
        return forward(self.params, self.config, ids, prefix_len, self.dtype, tap)

    def kept(self) -> Params:
        """See ``Engine.kept``."""
        return self.params

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
        self._texts[seq] = list(ids), prefix_len
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
