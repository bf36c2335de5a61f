"""The loss of texts without a step: what a training is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from refgpt._common.float_state import default_float_state
from refgpt.spec.gradients import cross_entropy, no_targets, targets_of
from refgpt.training.examples import Example
from refgpt.training.parameters import TrainedModel

#: Rows of logits of which the loss is taken at a time.
ROWS = 64


@default_float_state()
def mean_loss(
    model: TrainedModel, examples: Iterable[Example], progress: Callable[[], object] | None = None
) -> tuple[float, int]:
    """The mean of the cross-entropy over all targets of some texts, in nats, and the number of targets.

    Raises
    ------
    GenerationError
        If they have no target.
    """
    total, n_targets = 0.0, 0
    for example in examples:
        rows, targets = targets_of(example.labels)
        logits = model.engine.logits(example.ids.tolist(), example.prefix_len)  # [t, v]
        for at in range(0, len(rows), ROWS):
            some = slice(at, at + ROWS)
            total += float(cross_entropy(logits[rows[some]].astype(np.float64), targets[some]).sum())
        n_targets += len(rows)
        if progress is not None:
            progress()
    if not n_targets:
        raise no_targets()
    return total / n_targets, n_targets
