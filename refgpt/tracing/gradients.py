"""Gradients of activations: by how much a loss changes with each number that a model computes on its way to it.

Forward and backward pass are the engine's own; what they compute is specified in ``refgpt.spec.gradients``. A gradient
times its activation is how far, to first order, the loss would rise if the activation were larger by all of itself:
attribution by gradient (Simonyan et al. 2013, https://arxiv.org/abs/1312.6034).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refgpt._common.float_state import default_float_state
from refgpt.spec import tap_names
from refgpt.spec.gradients import LeafGradients, check_labels, gradients_of, no_targets, targets_of
from refgpt.tracing.memory import check_fits, dtype_of, trace_bytes
from refgpt.tracing.places import Indices, Names, find_indices, find_names, rows_of
from refgpt.tracing.recording import record
from refgpt.tracing.subjects import Subject, Text, engine_of, ids_of


@default_float_state()
def record_gradients(
    model: Subject,
    ids: Text,
    prefix_len: int = 0,
    names: Names | None = None,
    positions: Indices = None,
    labels: Sequence[int] | np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """The gradient of a loss by each activation of a forward pass.

    The loss is the mean over all targets of ``-log p(target)``, in nats.

    Parameters
    ----------
    model, ids, prefix_len, names, positions
        See ``record``. All activations are computed and kept meanwhile, whatever is asked for.
    labels : sequence of int [t], optional
        The token wanted at each position of the text, not shifted: position ``t`` is predicted by row ``t - 1`` of the
        logits. -100 is no target. By default the text itself. To ask about one prediction, end the text with the token
        that is asked about and make it the only target.

    Returns
    -------
    dict of str to ndarray
        In the order of the forward pass, with the axes and dtype of the activations.

    Raises
    ------
    RefgptError
        If the model's family has no gradients, an argument cannot be used, or there is not enough memory: before
        anything is computed.
    """
    engine, tokens = engine_of(model), ids_of(model, ids, prefix_len)
    config, known = engine.config, tap_names(engine.config)
    gradients_of(config)
    wanted, rows = find_names(names, known), find_indices(positions, len(tokens), "positions")
    labels = tokens if labels is None else check_labels(labels, len(tokens), config)
    n_targets = len(targets_of(labels)[0])
    if not n_targets:
        raise no_targets()
    itemsize = dtype_of(engine).itemsize
    kept = trace_bytes(config, len(tokens), wanted, None if rows is None else len(rows), itemsize)
    values = trace_bytes(config, len(tokens), known, None, itemsize)
    check_fits(
        sum(values.values()) + sum(kept.values()) + 4 * max(values.values()),
        f"{len(values)} activations of {len(tokens)} tokens, and {len(kept)} gradients",
        "give a shorter text: the backward pass reads every activation",
    )
    found: dict[str, np.ndarray] = {}

    def keep(name: str, gradient: np.ndarray) -> np.ndarray:
        if name in wanted:
            found[name] = rows_of(name, gradient, rows)
        return gradient

    trace = record(engine, tokens, prefix_len)
    none_of_them = LeafGradients((), lambda name, gradient: None)
    engine.loss_backward(tokens, labels, trace, n_targets, none_of_them, keep, prefix_len)
    return {name: found[name] for name in wanted}
