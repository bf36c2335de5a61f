"""What runs a model: the protocols of an engine and of its sessions.

``refgpt.runtime.Runtime`` is the engine in C kernels, ``refgpt.runtime.SpecEngine`` the specification as an engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from refgpt.numbers.dtypes import KVDtype
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig
from refgpt.spec.gradients import LeafGradients
from refgpt.spec.taps import Tap, no_tap


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
    def config(self) -> AnyConfig:
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

    def kept(self) -> ParamTree:
        """The weights as it computes with them: rounded or quantised to what they are kept in."""
        ...

    def loss_backward(
        self,
        ids: np.ndarray,
        labels: np.ndarray,
        trace: Mapping[str, np.ndarray],
        n_targets: int,
        leaves: LeafGradients,
        tap: Tap = no_tap,
    ) -> float:
        """One text's share of a loss, and its gradients: ``refgpt.spec.gradients.loss_backward``."""
        ...

    def product(self, x: np.ndarray, w: np.ndarray) -> np.ndarray:
        """``x w^T``, summed as the engine sums. x [t, n], w [m, n] -> [t, m]"""
        ...

    @property
    def adopted(self) -> bool:
        """Whether it goes on with other weights than those it was made of."""
        ...

    def adopt(self, params: ParamTree) -> None:
        """Compute with other weights from here on, which may be changed in place before this is called again.

        Matrices become floats as they are given, whatever the former ones were kept in. Sessions are to be begun anew.
        """
        ...

    def session(self, n_seqs: int, capacity: int) -> Session:
        """Room for ``n_seqs`` sequences of at most ``capacity`` tokens each."""
        ...
