"""The loss of a text and its gradients, in kernels: see ``refgpt/spec/gradients/loss.py``."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from refgpt import kernels
from refgpt.runtime.gradients.activations import Activations, Kernels, TextPass
from refgpt.runtime.gradients.families import FAMILIES
from refgpt.runtime.gradients.ops import Ops
from refgpt.spec.families import taps_of
from refgpt.spec.gradients import LeafGradients, gradients_of, targets_of
from refgpt.spec.taps import Tap, no_tap

#: Rows that meet the head together. The gradients of its weights are sums over so many rows, which are then added.
HEAD_ROWS = 128


def text_backward(
    engine: Kernels,
    ids: np.ndarray,
    labels: np.ndarray,
    prefix_len: int,
    n_targets: int,
    leaves: LeafGradients,
    recompute: bool = False,
) -> float:
    """See ``refgpt.runtime.engine.Engine.text_backward``.

    The head sees the rows that have a target, some at a time, so that the logits of a text never exist as a whole.
    """
    gradients_of(engine.config)
    params, family = engine.params, FAMILIES[engine.config.model_type]
    head, bias = getattr(params, family.HEAD), getattr(params, "b_head", None)
    ops = Ops(engine.threads, engine.kv_dtype, prefix_len, engine.config.window)
    last, activations = TextPass(engine, ids, prefix_len, family.READS, leaves).run(recompute)
    rows, targets = targets_of(labels)
    loss, dlast = 0.0, np.zeros_like(last)  # [t, c]
    share = np.float32(1) / np.float32(n_targets)
    for start in range(0, len(rows), HEAD_ROWS):
        some = rows[start : start + HEAD_ROWS]
        x = last[some]  # [n, c]
        logits = kernels.linear(x, head, bias, threads=ops.threads)  # [n, v]
        dlosses = np.full(len(some), share, np.float32)  # [n]
        which = np.ascontiguousarray(targets[start : start + HEAD_ROWS])
        dlogits, parts = kernels.cross_entropy_backward(dlosses, logits, which, logits, threads=ops.threads)
        total, above = parts.astype(np.float64).T
        loss += float((np.log(total) - above).sum())
        dlast[some] = head_backward(dlogits, x, head, family.HEAD, leaves, ops)
    family.backward(params, engine.config, ids, activations, dlast, leaves, ops)
    return loss / n_targets


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
    ops, logits = Ops(engine.threads, engine.kv_dtype, prefix_len, config.window), trace["logits"]
    rows, targets = targets_of(labels)
    dlosses = np.full(len(rows), np.float32(1) / np.float32(n_targets), np.float32)  # [n]
    dlogits = np.zeros_like(logits)  # [t, v]
    dlogits[rows], parts = kernels.cross_entropy_backward(dlosses, logits[rows], targets, threads=ops.threads)
    dlogits = tap("logits", dlogits)
    dlast = head_backward(dlogits, trace["ln_final"], getattr(params, family.HEAD), family.HEAD, leaves, ops)  # [t, c]
    activations = Activations.of_trace(trace, config.n_layer, taps_of(config).stream)
    family.backward(params, config, ids, activations, tap("ln_final", dlast), leaves, ops, tap)
    total, above = parts.astype(np.float64).T
    return float((np.log(total) - above).sum() / n_targets)


def head_backward(
    dlogits: np.ndarray, x: np.ndarray, head: object, name: str, leaves: LeafGradients, ops: Ops
) -> np.ndarray:
    """From the gradient of some rows of logits to that of the rows x that they come from. dlogits [n, v] -> [n, c]."""
    leaves.add("b_head", lambda: ops.bias_backward(dlogits))
    leaves.add(name, lambda: ops.linear_weight_backward(dlogits, x))
    return ops.linear_backward(dlogits, head)  # type: ignore[arg-type]
