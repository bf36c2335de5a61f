"""The loss of a text and its gradients, in kernels: see ``refgpt/spec/gradients/loss.py``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refgpt.numbers.tree import ParamTree
from refgpt.runtime.gradients.families import FAMILIES
from refgpt.runtime.gradients.ops import Ops
from refgpt.spec.config import AnyConfig
from refgpt.spec.gradients import LeafGradients, cross_entropy, gradients_of, targets_of
from refgpt.spec.taps import Tap, no_tap


def loss_backward(
    params: ParamTree,
    config: AnyConfig,
    ids: np.ndarray,
    labels: np.ndarray,
    trace: Mapping[str, np.ndarray],
    n_targets: int,
    leaves: LeafGradients,
    threads: int,
    tap: Tap = no_tap,
) -> float:
    """See ``refgpt.spec.gradients.loss_backward``. The loss itself is taken in float64: no gradient depends on it."""
    gradients_of(config)
    ops, logits, (rows, targets) = Ops(threads), trace["logits"], targets_of(labels)
    losses = cross_entropy(logits[rows].astype(np.float64), targets)  # [n]
    dlosses = np.full(len(rows), np.float32(1) / np.float32(n_targets), np.float32)  # [n]
    dlogits = np.zeros_like(logits)  # [t, v]
    dlogits[rows] = ops.cross_entropy_backward(dlosses, logits[rows], targets)
    FAMILIES[config.model_type].backward(params, config, ids, trace, dlogits, leaves, ops, tap)
    return float(losses.sum() / n_targets)
