"""The loss of batches and its gradients: means over all targets, however these are divided into batches."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from refgpt._common.arguments import instance_of
from refgpt._common.errors import RefgptError
from refgpt._common.float_state import default_float_state
from refgpt.runtime import SpecEngine
from refgpt.runtime.engine import Engine
from refgpt.runtime.gradients import StepMemory
from refgpt.spec import tap_names
from refgpt.spec.gradients import Gradient, LeafGradients, no_targets
from refgpt.tracing.memory import check_fits, dtype_of, trace_bytes
from refgpt.training.batch import Batch
from refgpt.training.dropout import Dropout
from refgpt.training.parameters import Parameters, TrainedModel, check_model


@default_float_state()
def gradients(model: Any, batch: Batch, recompute: bool = False) -> tuple[float, dict[str, np.ndarray]]:
    """The loss of a batch, and its gradient with respect to everything that can be trained.

    The model's engine runs the forward and the backward pass. With C kernels, gradients are bitwise independent of the
    number of threads and of the instruction set.

    Parameters
    ----------
    model : Model
        A model of ``refgpt.load``, with either backend. Quantised weights count as the numbers that they decode to.
    batch : Batch
    recompute : bool
        Keep only the residual stream between blocks from the forward pass, and compute each block again in the
        backward pass: less memory, more time, the same bits. The NumPy backend keeps everything.

    Returns
    -------
    loss : float
        The mean of the cross-entropy over all targets of the batch, in nats.
    gradients : dict of str to ndarray
        By the names of the weights in Hugging Face's files; the gradient of a tied head is part of the embeddings'.
        For a model with an adapter, by PEFT's names of its matrices. In float32, or in the NumPy backend's dtype.

    Raises
    ------
    RefgptError
        Before anything is computed, if the model's family has no gradients, the batch has no target, or an id or label
        does not exist.
    """
    instance_of("batch", batch, Batch, RefgptError)
    trained = check_model(model)
    parameters = Parameters(trained)
    loss, found = summed_gradients(trained, parameters, [batch], None, recompute)
    return loss, parameters.as_in_files(found)


def summed_gradients(
    model: TrainedModel,
    parameters: Parameters,
    batches: Iterable[Batch],
    dropout: Dropout | None = None,
    recompute: bool = False,
    memory: StepMemory | None = None,
) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of all texts of some batches together.

    Texts are added in their order, so the sums have the same bits however the texts are divided into batches. With
    ``dropout``, adapters leave out some inputs of each text. Gradients of an earlier step with the same ``memory`` are
    overwritten.
    """
    engine, memory = model.engine, memory or StepMemory()
    texts = [text for batch in batches for text in batch.texts(engine.config)]
    n_targets = sum(text.n_targets for text in texts)
    if not n_targets:
        raise no_targets()
    check_activations_fit(engine, max(len(text.ids) for text in texts), recompute)
    sums: dict[str, np.ndarray] = {}

    def take(leaf: str, gradient: Gradient) -> None:
        shares = parameters.split(leaf, gradient) if dropout is None else dropout.split(leaf, gradient)
        for name, part in shares:
            if not isinstance(part, np.ndarray):
                if name not in sums:
                    sums[name] = memory.zeros(name, part.shape)
                part.add_to(sums[name])
            elif name in sums:
                sums[name] += part
            else:
                sums[name] = part if part.flags.owndata else part.copy()

    leaves = LeafGradients(parameters.wanted, take)
    if dropout is None:
        some = [text for text in texts if text.n_targets]
        losses = engine.texts_backward(some, n_targets, leaves, recompute, parameters.tied, memory)
    else:
        losses = []
        with dropout:
            for i, text in enumerate(texts):
                if text.n_targets:
                    dropout.draw(i)
                    losses += engine.texts_backward([text], n_targets, leaves, recompute, memory=memory)
    loss = 0.0
    for part in losses:
        loss += part
    return loss, {name: sums[name] for name in parameters.names()}


def check_activations_fit(engine: Engine, n: int, recompute: bool) -> None:
    """Refuse, before anything is computed, a text of ``n`` tokens whose activations do not fit in memory."""
    kept = trace_bytes(engine.config, n, tap_names(engine.config), None, dtype_of(engine).itemsize)
    if not isinstance(engine, SpecEngine):  # the NumPy backend keeps everything
        kept = {name: n_bytes for name, n_bytes in kept.items() if name.rpartition(".")[2] not in ("pattern", "logits")}
        if recompute:
            kept = {name: n_bytes for name, n_bytes in kept.items() if name.startswith("blocks.0.") or "resid" in name}
    check_fits(
        sum(kept.values()) + 4 * max(kept.values()),
        f"{len(kept)} activations of {n} tokens",
        "learn from shorter texts" if recompute else "learn from shorter texts, or pass recompute=True",
        "text",
    )


#: How many squares are there at a time: few enough for a cache.
MOST_SQUARES = 1 << 15


def sum_of_squares(x: np.ndarray) -> float:
    """The sum of all squares in float64, as NumPy takes it, in halves of halves, but without an array of them all."""
    if x.size <= MOST_SQUARES or not x.flags.c_contiguous:
        return float(np.square(x, dtype=np.float64).sum())
    flat, half = x.reshape(-1), x.size // 2 // 8 * 8
    return sum_of_squares(flat[:half]) + sum_of_squares(flat[half:])


def clip_gradients(found: dict[str, np.ndarray], most: float | None) -> float:
    """Shorten gradients in place, so that all of them as one vector have at most a given length.

    Returns the length that they had.

    Raises
    ------
    RefgptError
        If that length is infinite or NaN.
    """
    squares = [sum_of_squares(gradient) for gradient in found.values()]
    norm = math.sqrt(sum(squares))
    if not math.isfinite(norm):
        wrong = next((name for name, square in zip(found, squares, strict=True) if not math.isfinite(square)), None)
        raise no_step("gradient", norm, wrong)
    if most is not None and norm > most:
        for gradient in found.values():
            gradient *= most / (norm + 1e-6)
    return norm


def no_step(what: str, got: float, where: str | None = None) -> RefgptError:
    """The error about a loss or a gradient that is infinite or NaN."""
    return RefgptError(
        f"the {what} is not a number, so there is no step to make",
        where=where,
        got=got,
        fix="look for NaN or huge numbers in the weights, or take a smaller learning rate from an earlier state",
    )
