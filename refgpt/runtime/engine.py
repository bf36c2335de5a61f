"""The protocols of engines, which run a model, and of their sessions.

``refgpt.runtime.Runtime`` is the engine in C kernels, ``refgpt.runtime.SpecEngine`` the specification as an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from refgpt.numbers.dtypes import KVDtype
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig
from refgpt.spec.taps import Tap, no_tap


class Session(Protocol):
    """Several sequences in progress; each occupies a numbered slot."""

    def prefill(self, seq: int, ids: Sequence[int], prefix_len: int = 0) -> np.ndarray:
        """Start slot ``seq`` anew with a prompt, ``prefix_len`` of it seen by all of it. -> [v], its last row"""
        ...

    def decode(self, seqs: Sequence[int], ids: Sequence[int]) -> np.ndarray:
        """Append one token to each named sequence. -> [len(seqs), v]"""
        ...

    def extend(self, seq: int, ids: Sequence[int]) -> np.ndarray:
        """Append tokens to one sequence, causally. Gives the same bits as ``decode``. -> [len(ids), v]"""
        ...

    def truncate(self, seq: int, n: int) -> None:
        """Forget all but the first ``n`` tokens of a sequence; an error if that would cut its prefix."""
        ...


class Engine(Protocol):
    """A model that can be run."""

    @property
    def config(self) -> AnyConfig:
        """The model's shape."""
        ...

    @property
    def kv_dtype(self) -> KVDtype:
        """Dtype to which keys and values are rounded in the cache."""
        ...

    @property
    def sum_chunk(self) -> int | None:
        """The order of every sum of products: number of terms per partial sum. None if no order is promised."""
        ...

    def logits(self, ids: Sequence[int], prefix_len: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """Scores for the next token at every position of a text. ``tap`` is called with every activation. -> [t, v]"""
        ...

    def kept(self) -> ParamTree:
        """The weights that it computes with, rounded or quantised to their dtype in memory."""
        ...

    def session(self, n_seqs: int, capacity: int) -> Session:
        """A session with ``n_seqs`` slots for sequences of at most ``capacity`` tokens each."""
        ...
