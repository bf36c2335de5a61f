"""The loss of a text and its gradients: one forward pass, whose trace the backward pass reads.

What a step of training minimises is the mean of the cross-entropy over **all targets of the whole step**. Means of
parts do not add up to it where the parts have different numbers of targets. So each text is given the number of targets
of the whole step, and the losses and gradients of the texts are plain sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from refgpt._common.arguments import one_of, whole_number
from refgpt._common.errors import GenerationError
from refgpt.numbers.dtypes import COMPUTES, Compute, DTypeLike
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import forward
from refgpt.spec.gradients.families import gradients_of
from refgpt.spec.gradients.ops import cross_entropy, cross_entropy_backward
from refgpt.spec.gradients.wanted import Gradient, LeafGradients
from refgpt.spec.ids import check_flat, check_ids
from refgpt.spec.ops import products_in
from refgpt.spec.taps import Recorder, Tap, no_tap

#: The label of a position that is no target.
NO_TARGET = -100


def check_labels(labels: Sequence[int] | np.ndarray, n: int, config: AnyConfig) -> np.ndarray:
    """Labels of a text of ``n`` tokens as an array, once it is known that they can be targets. -> int64 [t]

    Parameters
    ----------
    labels : sequence of int [t]
        The token wanted at each position of the text, not shifted: usually the text's own ids. -100 is no target, and
        the first never is one: nothing stands before it from which it could be predicted.

    Raises
    ------
    GenerationError
        Naming the first that is neither -100 nor an id.
    """
    array = check_flat(labels)
    if len(array) != n:
        raise GenerationError("there must be one for each id", where="labels", got=f"{len(array)} labels", wanted=n)
    outside = (array != NO_TARGET) & ((array < 0) | (array >= config.n_vocab))
    if outside.any():
        t = int(outside.argmax())
        raise GenerationError(
            "is no id of this vocabulary",
            where=f"labels[{t}]",
            got=array[t],
            wanted=f"0 to {config.n_vocab - 1}, or {NO_TARGET} for no target",
        )
    return array.astype(np.int64)


def targets_of(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the logits that have a target, and these: row ``t`` predicts label ``t + 1``. -> int [n], int [n]"""
    rows = np.flatnonzero(labels[1:] != NO_TARGET)
    return rows, labels[rows + 1]


@dataclass(frozen=True, eq=False)
class Text:
    """One text to learn from.

    Attributes
    ----------
    ids, labels : ndarray of int64 [t]
        As ``check_ids`` and ``check_labels`` return them.
    prefix_len : int
        Number of leading positions that see one another.
    """

    ids: np.ndarray
    labels: np.ndarray
    prefix_len: int = 0

    @property
    def n_targets(self) -> int:
        """How many of its tokens are to be predicted."""
        return len(targets_of(self.labels)[0])


def loss_backward(
    params: ParamTree,
    config: AnyConfig,
    ids: np.ndarray,
    labels: np.ndarray,
    trace: Mapping[str, np.ndarray],
    n_targets: int,
    leaves: LeafGradients,
    tap: Tap = no_tap,
) -> float:
    """One text's share of the loss, and the gradients of that share.

    Parameters
    ----------
    ids, labels : ndarray of int [t]
        As ``check_ids`` and ``check_labels`` return them.
    trace : mapping of str to ndarray
        Every activation of the text's forward pass.
    n_targets : int
        Of the whole step: what the sum over this text's targets is divided by.
    leaves, tap
        Take the gradients of leaves and activations: see ``refgpt.spec.gradients.gptj.backward``.

    Returns
    -------
    float
    """
    logits, (rows, targets) = trace["logits"], targets_of(labels)
    losses = cross_entropy(logits[rows], targets)  # [n]
    dlosses = np.full(len(rows), 1 / n_targets, logits.dtype)  # [n]
    dlogits = np.zeros_like(logits)  # [t, v]
    dlogits[rows] = cross_entropy_backward(dlosses, logits[rows], targets)
    gradients_of(config).backward(params, config, ids, trace, dlogits, leaves, tap)
    return float(losses.sum(dtype=np.float64) / n_targets)


def gradients(
    params: ParamTree,
    config: AnyConfig,
    ids: Sequence[int] | np.ndarray,
    labels: Sequence[int] | np.ndarray,
    prefix_len: int = 0,
    n_targets: int | None = None,
    dtype: DTypeLike = np.float64,
    tap: Tap = no_tap,
    compute: Compute = "f32",
) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of one text, and its gradient by every leaf.

    Parameters
    ----------
    params, config
        See ``refgpt.spec.forward``.
    ids : sequence of int [t]
    labels : sequence of int [t]
        The token wanted at each position, not shifted; -100 is no target. The first is never one.
    prefix_len : int
        Number of leading positions that see one another.
    n_targets : int, optional
        What the sum over the targets is divided by; by default their number. Where a text is part of a larger batch,
        the number of targets of all of it.
    dtype : floating dtype
        What to compute in; float64 makes this the oracle.
    tap : callable
        ``tap(name, gradient) -> gradient``, called for the gradient of every activation, from "logits" to "embed"; what
        it returns is used from there on.
    compute : "f32" or "bf16"
        What linear layers round the factors of their products to: see ``refgpt.spec.products_in``.

    Returns
    -------
    loss : float
        The mean of the cross-entropy over the targets, in nats.
    gradients : dict of str to ndarray
        By leaf, as ``params.items`` names them.

    Raises
    ------
    RefgptError
        If the family has no gradients, there is no target, or an argument cannot be used.
    """
    gradients_of(config)
    one_of("compute", compute, COMPUTES, GenerationError)
    ids = check_ids(ids, config, prefix_len)
    labels = check_labels(labels, len(ids), config)
    n_here = len(targets_of(labels)[0])
    n_targets = n_here if n_targets is None else whole_number("n_targets", n_targets, 1, None, GenerationError)
    if not n_targets:
        raise no_targets()
    recorder = Recorder()
    found: dict[str, np.ndarray] = {}
    names = [name for name, _ in params.items()]

    def take(leaf: str, gradient: Gradient) -> None:
        assert isinstance(gradient, np.ndarray)
        found[leaf] = gradient

    leaves = LeafGradients(names, take)
    with products_in(compute):
        forward(params, config, ids, prefix_len, dtype, recorder)
        loss = loss_backward(params, config, ids, labels, recorder.trace, n_targets, leaves, tap)
    return loss, {name: found[name] for name in names}


def no_targets() -> GenerationError:
    """What is wrong where nothing is to be predicted."""
    return GenerationError(
        "there is no target, so there is no loss",
        where="labels",
        wanted=f"an id at some position after the first; {NO_TARGET} is no target",
    )
