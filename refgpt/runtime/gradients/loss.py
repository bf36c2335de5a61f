"""The loss of texts and its gradients, in kernels: see ``refgpt/spec/gradients/loss.py``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from refgpt import kernels
from refgpt.kernels import LinearInput
from refgpt.numbers.dtypes import Compute
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.panels import aligned_zeros
from refgpt.runtime.gradients.activations import Activations, Kernels, Passes
from refgpt.runtime.gradients.families import FAMILIES
from refgpt.runtime.gradients.ops import Ops, linear_backward
from refgpt.runtime.gradients.room import StepMemory
from refgpt.runtime.gradients.texts import Texts
from refgpt.runtime.gradients.weights import BiasGradient, MatrixGradient
from refgpt.spec.families import taps_of
from refgpt.spec.gradients import LeafGradients, Text, gradients_of, targets_of
from refgpt.spec.taps import Tap, no_tap

#: The gradients of the head's weights are sums over this number of rows of a text, which are then added.
HEAD_ROWS = 128
#: The most logits of rows that go through the head together, unless ``HEAD_ROWS`` rows have more.
MOST_LOGITS = 1 << 20


def texts_backward(
    engine: Kernels,
    texts: Sequence[Text],
    n_targets: int,
    leaves: LeafGradients,
    recompute: bool = False,
    apart: bool = False,
    memory: StepMemory | None = None,
) -> list[float]:
    """See ``refgpt.runtime.engine.Engine.texts_backward``."""
    gradients_of(engine.config)
    family = FAMILIES[engine.config.model_type]
    memory = StepMemory() if memory is None else memory
    passes = Passes(engine, family.READS, leaves, recompute, memory)
    groups = passes.groups(texts, apart)
    head = Head(engine, family.HEAD, leaves, n_targets, max(len(some.slots) for some in groups), memory)
    losses: list[float] = []
    for some in groups:
        last, activations = passes.run(some)
        found, dlast = head.backward(some, last)
        ops = Ops(some, engine.threads, engine.kv_dtype, engine.compute, engine.config.window, passes.room)
        ops.next_block()
        family.backward(engine.params, engine.config, some.ids, activations, dlast, leaves, ops)
        losses += found
    return losses


class Head:
    """From the last LayerNorm's rows to the loss and back. The head sees the rows that have a target, some at a time,
    so that the logits of a text never exist as a whole.

    Parameters
    ----------
    engine : Kernels
    name : str
        The leaf that gives the logits.
    leaves : LeafGradients
    n_targets : int
        Of the whole step.
    n_rows : int
        At most, of a pass.
    memory : StepMemory
    """

    def __init__(
        self, engine: Kernels, name: str, leaves: LeafGradients, n_targets: int, n_rows: int, memory: StepMemory
    ) -> None:
        self._head, self._bias = getattr(engine.params, name), getattr(engine.params, "b_head", None)
        self._name, self._leaves, self._n_targets = name, leaves, n_targets
        self._threads, self._compute = engine.threads, engine.compute
        n_vocab, widest = engine.config.n_vocab, max(engine.config.n_vocab, engine.config.d_model)
        self._most = min(n_rows, max(1, MOST_LOGITS // (HEAD_ROWS * n_vocab)) * HEAD_ROWS)  # rows at a time
        n_bytes = kernels.scratch_bytes(self._most, widest)
        self._logits = memory.get("logits", n_vocab, self._most, lambda: np.empty((self._most, n_vocab), np.float32))
        self._scratch = memory.get("head", None, n_bytes, lambda: aligned_zeros((n_bytes,), np.dtype(np.uint8)))

    def backward(self, texts: Texts, last: np.ndarray) -> tuple[list[float], np.ndarray]:
        """The loss of each text, and the gradient of its last rows. last [t, c] -> [t, c]"""
        share = np.float32(1) / np.float32(self._n_targets)
        losses, dlast = [0.0] * len(texts.texts), np.zeros_like(last)  # [t, c]
        for pieces in _head_pieces(texts, self._most):
            some = np.concatenate([piece.rows for piece in pieces])
            targets = np.concatenate([piece.targets for piece in pieces])
            starts = np.array([0, *accumulate(len(piece.rows) for piece in pieces)], np.int64)
            x, out = last[some], self._logits[: len(some)]  # [n, c], [n, v]
            rows = LinearInput(x, self._scratch, threads=self._threads)
            logits = kernels.linear(rows, self._head, self._bias, out, threads=self._threads)  # [n, v]
            dlosses = np.full(len(some), share, np.float32)  # [n]
            dlogits, parts = kernels.cross_entropy_backward(dlosses, logits, targets, logits, threads=self._threads)
            total, above = parts.astype(np.float64).T
            for piece, start, stop in zip(pieces, starts[:-1], starts[1:], strict=True):
                losses[piece.text] += float((np.log(total[start:stop]) - above[start:stop]).sum())
            how = self._name, self._leaves, starts, self._threads, self._compute, self._scratch
            dlast[some] = head_backward(dlogits, x, self._head, *how)
        return [loss / self._n_targets for loss in losses], dlast


@dataclass(frozen=True, eq=False)
class _Piece:
    """Rows of one text that have a target, and their targets."""

    text: int
    rows: np.ndarray
    targets: np.ndarray


def _head_pieces(texts: Texts, most: int) -> Iterator[list[_Piece]]:
    """The pieces that go through the head together: at most this number of rows."""
    pieces: list[_Piece] = []
    n_rows = 0
    for i, text in enumerate(texts.texts):
        rows, targets = targets_of(text.labels)
        for start in range(0, len(rows), HEAD_ROWS):
            piece = _Piece(i, texts.starts[i] + rows[start : start + HEAD_ROWS], targets[start : start + HEAD_ROWS])
            if n_rows + len(piece.rows) > most:
                yield pieces
                pieces, n_rows = [], 0
            pieces.append(piece)
            n_rows += len(piece.rows)
    if pieces:
        yield pieces


def loss_backward(
    engine: Kernels,
    ids: np.ndarray,
    labels: np.ndarray,
    trace: Mapping[str, np.ndarray],
    n_targets: int,
    leaves: LeafGradients,
    tap: Tap = no_tap,
    prefix_len: int = 0,
) -> float:
    """See ``refgpt.spec.gradients.loss_backward``. The loss itself is taken in float64: no gradient depends on it."""
    config, params, family = engine.config, engine.params, FAMILIES[engine.config.model_type]
    texts = Texts.of([Text(ids, labels, prefix_len)])
    ops = Ops(texts, engine.threads, engine.kv_dtype, engine.compute, config.window)
    logits = trace["logits"]
    rows, targets = targets_of(labels)
    dlosses = np.full(len(rows), np.float32(1) / np.float32(n_targets), np.float32)  # [n]
    dlogits = np.zeros_like(logits)  # [t, v]
    dlogits[rows], parts = kernels.cross_entropy_backward(dlosses, logits[rows], targets, threads=ops.threads)
    dlogits = tap("logits", dlogits)
    head, of = getattr(params, family.HEAD), (family.HEAD, leaves, ops.texts.starts, ops.threads, ops.compute)
    dlast = head_backward(dlogits, trace["ln_final"], head, *of)  # [t, c]
    activations = Activations.of_trace(trace, config.n_layer, taps_of(config).stream)
    family.backward(params, config, ids, activations, tap("ln_final", dlast), leaves, ops, tap)
    total, above = parts.astype(np.float64).T
    return float((np.log(total) - above).sum() / n_targets)


def head_backward(
    dlogits: np.ndarray,
    x: np.ndarray,
    head: Leaf,
    name: str,
    leaves: LeafGradients,
    starts: np.ndarray,
    threads: int,
    compute: Compute = "f32",
    scratch: np.ndarray | None = None,
) -> np.ndarray:
    """From the gradient of some rows of logits to that of the rows x that they come from. dlogits [n, v] -> [n, c].

    ``starts`` are those of what is summed by itself for the gradients of weights.
    """
    leaves.add("b_head", lambda: BiasGradient(dlogits, starts, threads))
    leaves.add(name, lambda: MatrixGradient(dlogits, x, starts, threads, compute))
    return linear_backward(dlogits, head, threads, scratch)
