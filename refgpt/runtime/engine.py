"""The protocols of engines, which run a model, and of their sessions.

``refgpt.runtime.Runtime`` is the engine in C kernels, ``refgpt.runtime.SpecEngine`` the specification as an engine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from refgpt._common.errors import GenerationError
from refgpt._common.wording import listed, shown
from refgpt.numbers.dtypes import Compute, KVDtype
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig
from refgpt.spec.taps import Tap, no_tap

if TYPE_CHECKING:
    from refgpt.spec.gradients import LeafGradients, Text

T = TypeVar("T")
E = TypeVar("E", bound="Engine")

#: What one pass adds to one sequence: its slot, the new tokens, and how many leading positions of the sequence see one
#: another. A prefix begins an empty sequence and is given in one piece; of a sequence in progress the number is 0.
Part = tuple[int, Sequence[int] | np.ndarray, int]


class Session(Protocol):
    """Several sequences in progress; each occupies a numbered slot."""

    def step(self, parts: Sequence[Part], n_rows: Sequence[int] | None = None) -> np.ndarray:
        """Append tokens to some sequences in one pass: pieces of prompts, single tokens, in any mixture.

        A sequence's rows are the same in every bit whatever else is in the pass, and into whatever pieces it is cut.

        Parameters
        ----------
        parts : sequence of (slot, ids, prefix_len)
            Each slot once.
        n_rows : sequence of int, optional
            The logits of how many of its last new tokens each part is asked for; by default one each.

        Returns
        -------
        ndarray [sum of n_rows, v]

        Raises
        ------
        GenerationError
            If anything of it cannot be done; the session is then as it was.
        """
        ...

    def use_adapter(self, seq: int, adapter: str | None) -> None:
        """From now on, compute an empty slot's sequences with one of the engine's ``adapters``, or without for None.

        Texts with different adapters go through the model together; each gets the bits that it has with that adapter
        alone. A slot that ``fork`` fills gets the adapter of its source.

        Raises
        ------
        GenerationError
            If the engine has no adapter of this name, or the slot is not empty.
        """
        ...

    def adapter_of(self, seq: int) -> str | None:
        """The name of a slot's adapter, or None."""
        ...

    def fork(self, seq: int, slots: Sequence[int] | None = None) -> int:
        """Begin another sequence that has what slot ``seq`` has, in an empty one of ``slots``. -> that slot

        The two then continue independently. Nothing is computed again, and what both have is stored once for as long as
        either has it. By default any empty slot is taken.
        """
        ...

    def export(self, seq: int, start: int, stop: int) -> tuple[Any, int]:
        """What ``adopt`` needs of some positions of a sequence, and how many bytes it takes.

        ``start`` is a multiple of 16, and ``stop`` too. There must be no prefix in the sequence.
        """
        ...

    def adopt(self, seq: int, ids: Sequence[int], contents: Sequence[Any]) -> None:
        """Begin a sequence in an empty slot with what was exported of others that began with these tokens, in order."""
        ...

    def save(self, path: str | os.PathLike[str], seq: int = 0) -> None:
        """Write a sequence to a file: its ids, with their keys and values.

        A file there is replaced when the new one is whole. It takes about the memory of the sequence.

        Raises
        ------
        GenerationError
            If the slot is empty, or the file cannot be written.
        """
        ...

    def load(self, path: str | os.PathLike[str], seq: int = 0, ids: Sequence[int] | None = None) -> list[int]:
        """Begin a sequence in an empty slot with what ``save`` wrote. -> its ids

        It goes on with the same bits as if its tokens had been computed here. The logits are not kept: for those of the
        last token, truncate it, and append it again.

        Parameters
        ----------
        path : path
        seq : int
            The slot.
        ids : sequence of int, optional
            Load only as much as begins with these tokens, which may be nothing. A prefix cannot be cut.

        Raises
        ------
        GenerationError
            If the file is none of these, is damaged, or was saved with another configuration, other weights or another
            dtype of the cache; before anything large is allocated. The slot is empty then.
        """
        ...

    def release(self, seq: int) -> None:
        """Forget a sequence: its slot is empty."""
        ...

    def prefill(self, seq: int, ids: Sequence[int], prefix_len: int = 0) -> np.ndarray:
        """Start slot ``seq`` again with a prompt; its first ``prefix_len`` see one another. -> [v], its last row"""
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
    """A model that can be run.

    Attributes
    ----------
    adapters : mapping of str to Engine
        Engines of the same kind and base with one adapter each, by name. Sessions may use any of them for any sequence.
    """

    adapters: Mapping[str, Any]

    @property
    def config(self) -> AnyConfig:
        """The model's shape."""
        ...

    @property
    def kv_dtype(self) -> KVDtype:
        """Dtype to which keys and values are rounded in the cache."""
        ...

    @property
    def compute(self) -> Compute:
        """Dtype to which linear layers round their rows before they multiply them with float weights."""
        ...

    @property
    def sum_chunk(self) -> int | None:
        """The order of every sum of products: number of terms per partial sum. None if no order is promised."""
        ...

    def identity(self) -> dict[str, Any]:
        """What its results depend on, as JSON: the configuration, dtypes, and a fingerprint of the weights.

        The first call takes the time of reading all weights once.
        """
        ...

    @property
    def bytes_per_token(self) -> int:
        """Bytes of weights read per decode step."""
        ...

    def logits(self, ids: Sequence[int], prefix_len: int = 0, tap: Tap = no_tap) -> np.ndarray:
        """Scores for the next token at every position of a text. ``tap`` is called with every activation. -> [t, v]"""
        ...

    def states(self, texts: Sequence[Sequence[int]], prefix_lens: Sequence[int], name: str) -> list[np.ndarray]:
        """One activation [t, c] of each of several texts. Its bits do not depend on the other texts.

        ``name`` is a tap's: "embed", "blocks.0.resid_post", "ln_final" and others of one row a position.
        """
        ...

    def kept(self) -> ParamTree:
        """The weights that it computes with, rounded or quantised to their dtype in memory."""
        ...

    def masters(self) -> ParamTree:
        """The weights that training starts from: ``kept``, but those that are rounded only for products, exactly."""
        ...

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
        """One text's share of a loss, and its gradients, from a trace: ``refgpt.spec.gradients.loss_backward``."""
        ...

    def texts_backward(
        self,
        texts: Sequence[Text],
        n_targets: int,
        leaves: LeafGradients,
        recompute: bool = False,
        apart: bool = False,
        memory: Any = None,
    ) -> list[float]:
        """Each text's share of a loss, and the gradients of leaves, from forward passes of its own.

        Texts may share passes, but the gradient of each leaf is the sum of those of the texts, in their order: the same
        bits as text by text.

        Parameters
        ----------
        texts : sequence of Text
            Each with a target.
        n_targets, leaves
            Those of ``refgpt.spec.gradients.loss_backward``.
        recompute : bool
            Keep only the residual stream between blocks of a forward pass, and compute each block again when it is
            needed.
        apart : bool
            Complete all gradients of a text before those of the next begin. A tied head needs this, since its gradients
            and the embeddings' have one sum.
        memory : StepMemory, optional
            That of the steps before, for an engine with kernels.
        """
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

        Matrices are kept as the floats that are given, whatever the former ones were kept in. Earlier sessions must
        not be used any more.
        """
        ...

    def share(self: E) -> E:
        """A second engine with the same weights in memory: what one adopts later does not change the other."""
        ...

    def session(self, n_seqs: int, capacity: int) -> Session:
        """A session with ``n_seqs`` slots for sequences of at most ``capacity`` tokens each."""
        ...


def adapter_named(adapters: Mapping[str, T], name: str) -> T:
    """The engine or model with an adapter.

    Raises
    ------
    GenerationError
        If there is none of this name.
    """
    if isinstance(name, str) and name in adapters:
        return adapters[name]
    raise GenerationError(
        "there is no adapter of this name",
        where="adapter",
        got=shown(name),
        wanted=f"one of {listed(adapters)}, or None for the base" if adapters else None,
        fix="" if adapters else "load the model with adapters={'NAME': 'DIRECTORY'} (--adapter NAME=DIRECTORY)",
    )


def check_slots(seqs: Sequence[int] | np.ndarray, n_slots: int) -> np.ndarray:
    """Slots of a session that has ``n_slots``, each at most once.

    Raises
    ------
    GenerationError
    """
    slots = np.array(seqs, np.int64)
    listed = slots.tolist()
    if not listed or min(listed) < 0 or max(listed) >= n_slots or len(set(listed)) < len(listed):
        raise GenerationError(
            "not slots of this session", where="seq", got=listed, wanted=f"0 to {n_slots - 1}, each once"
        )
    return slots


def not_empty(seq: int) -> GenerationError:
    """The error for a slot that should be empty and holds a sequence."""
    return GenerationError("the slot is not empty", where="seq", got=seq)


def check_no_adapters(engine: Engine) -> None:
    """Refuse to change the weights of an engine if engines with adapters share them.

    Raises
    ------
    GenerationError
    """
    if engine.adapters:
        raise GenerationError(
            "the model has adapters that are chosen by name, and its weights cannot be changed",
            where="adapters",
            got=listed(engine.adapters),
            fix="load it without them",
        )


def no_empty_slot(slots: list[int]) -> GenerationError:
    """The error of a fork where each of these slots has a sequence."""
    return GenerationError(
        "no slot is empty", where="fork", got=slots, wanted="an empty slot", fix="release one, or ask for more of them"
    )
