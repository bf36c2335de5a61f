"""Gradients in the specification: against central differences, against PyTorch's autograd, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refgpt._common.errors import GenerationError, RefgptError
from refgpt.spec import Recorder, forward, gelu, gradients, layer_norm, linear, rotate_pairs, softmax, tap_names
from refgpt.spec.gradients import cross_entropy, targets_of
from tests.goldens import GRADIENTS
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config()
PARAMS = random_params(CONFIG, seed=3).kept_as("f64")
STREAM = np.random.RandomState(0)
IDS = STREAM.randint(0, CONFIG.n_vocab, 9)
LABELS = np.where(np.arange(9) % 4 == 3, -100, IDS)
#: The error of five points at a distance of 1e-3 is some 1e-12 for functions as tame as these.
CLOSE = 1e-9


def slope(f, h=1e-3):
    """The derivative of a function at 0, by central differences of the fourth order."""
    return (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h)


def direction(shape):
    d = STREAM.standard_normal(shape)
    return d / np.sqrt((d * d).sum())


def loss_of(params, prefix_len=0, tap=lambda name, value: value):
    logits = forward(params, CONFIG, IDS, prefix_len, tap=tap)
    rows, targets = targets_of(LABELS)
    return cross_entropy(logits[rows], targets).mean()


@pytest.mark.parametrize("prefix_len", [0, 4, 9])
def test_every_leaf_is_within_central_differences(prefix_len):
    loss, found = gradients.gradients(PARAMS, CONFIG, IDS, LABELS, prefix_len)
    assert abs(loss - loss_of(PARAMS, prefix_len)) <= 1e-14 * loss
    assert list(found) == [name for name, _ in PARAMS.items()]
    for changed, leaf in PARAMS.items():
        d = direction(leaf.shape)

        def moved(step, changed=changed, d=d):
            params = PARAMS.map(lambda name, x: x + step * d if name == changed else x)
            return loss_of(params, prefix_len)

        assert abs((found[changed] * d).sum() - slope(moved)) <= CLOSE, changed


@pytest.mark.parametrize("prefix_len", [0, 4])
def test_every_activation_is_within_central_differences(prefix_len):
    recorder = Recorder()
    gradients.gradients(PARAMS, CONFIG, IDS, LABELS, prefix_len, tap=recorder)
    assert sorted(recorder.trace) == sorted(tap_names(CONFIG))
    for changed, gradient in recorder.trace.items():
        d = direction(gradient.shape)

        def moved(step, changed=changed, d=d):
            return loss_of(PARAMS, prefix_len, lambda name, value: value + step * d if name == changed else value)

        assert abs((gradient * d).sum() - slope(moved)) <= CLOSE, changed


X, DY = STREAM.standard_normal((5, 3, 8)), STREAM.standard_normal((5, 3, 8))
W, B = STREAM.standard_normal(8), STREAM.standard_normal(8)
MATRIX = STREAM.standard_normal((6, 8))
TARGETS = STREAM.randint(0, 8, 5)
OPS = {
    "gelu": (X, gelu, lambda dy: gradients.gelu_backward(dy, X)),
    "softmax": (X, softmax, lambda dy: gradients.softmax_backward(dy, softmax(X))),
    "rotate_pairs": (
        X,
        lambda x: rotate_pairs(x, np.arange(5), 6),
        lambda dy: gradients.rotate_pairs_backward(dy, np.arange(5), 6),
    ),
    "linear": (X[:, 0], lambda x: linear(x, MATRIX), lambda dy: gradients.linear_backward(dy, MATRIX)),
    "linear's matrix": (
        MATRIX,
        lambda w: linear(X[:, 0], w),
        lambda dy: gradients.linear_weight_backward(dy, X[:, 0]),
    ),
    "linear's bias": (W[:6], lambda b: linear(X[:, 0], MATRIX, b), gradients.bias_backward),
    "layer_norm": (
        X[:, 0],
        lambda x: layer_norm(x, W, B, 1e-2),
        lambda dy: gradients.layer_norm_backward(dy, X[:, 0], W, 1e-2)[0],
    ),
    "layer_norm's scale": (
        W,
        lambda w: layer_norm(X[:, 0], w, B, 1e-2),
        lambda dy: gradients.layer_norm_backward(dy, X[:, 0], W, 1e-2)[1],
    ),
    "layer_norm's shift": (
        B,
        lambda b: layer_norm(X[:, 0], W, b, 1e-2),
        lambda dy: gradients.layer_norm_backward(dy, X[:, 0], W, 1e-2)[2],
    ),
    "embedding": (
        MATRIX,
        lambda table: table[[2, 0, 2, 5, 2]],
        lambda dy: gradients.embedding_backward(dy, np.array([2, 0, 2, 5, 2]), 6),
    ),
    "cross_entropy": (
        X[:, 0],
        lambda logits: cross_entropy(logits, TARGETS),
        lambda dy: gradients.cross_entropy_backward(dy, X[:, 0], TARGETS),
    ),
}


@pytest.mark.parametrize("op", OPS)
def test_each_operation_is_within_central_differences(op):
    x, f, backward = OPS[op]
    dy, d = direction(f(x).shape), direction(x.shape)
    dx = backward(dy)
    assert dx.shape == x.shape
    assert abs((dx * d).sum() - slope(lambda step: (f(x + step * d) * dy).sum())) <= CLOSE


def golden_of(path):
    """What is in a file of recorded gradients: arrays, and how they were made."""
    with np.load(path) as file:
        held = dict(file)
    return held, json.loads(str(held["about"]))


def check_golden(held, config, params, prefix_len, floor):
    """Compare loss and gradients with recorded ones. ``floor``: size of the terms of sums that may be as small as 0."""
    recorder = Recorder()
    loss, found = gradients.gradients(params, config, held["ids"], held["labels"], prefix_len, tap=recorder)
    assert abs(loss - held["loss"]) <= 1e-13 * loss
    for kind, arrays in (("leaf", found), ("tap", recorder.trace)):
        assert {f"{kind} {name}" for name in arrays} == {name for name in held if name.startswith(f"{kind} ")}
        for name, array in arrays.items():
            want = held[f"{kind} {name}"]
            assert (np.abs(array - want) <= 1e-13 * max(np.abs(want).max(), floor)).all(), name


@pytest.mark.parametrize("path", sorted(GRADIENTS.glob("*.npz")), ids=lambda path: path.stem)
def test_everything_is_what_autograd_computes(path):
    """Both compute in float64: what they differ by is rounding, some hundred times 1e-16 of the largest number."""
    held, about = golden_of(path)
    config = tiny_config(**about["config"])
    check_golden(held, config, random_params(config, about["seed"], about["dtype"]), about["prefix_len"], 1e-3)


def test_parts_of_a_batch_add_up_to_the_mean_over_all_targets():
    """Not to the mean of the means: one text has three targets here, the other one."""
    texts = [([5, 9, 2, 7], [-100, 9, 2, 7]), ([4, 4, 8], [-100, -100, 8])]
    parts = [gradients.gradients(PARAMS, CONFIG, ids, labels, n_targets=4) for ids, labels in texts]
    alone = [gradients.gradients(PARAMS, CONFIG, ids, labels) for ids, labels in texts]
    for name, _ in PARAMS.items():
        want = (3 * alone[0][1][name] + alone[1][1][name]) / 4
        assert np.abs(parts[0][1][name] + parts[1][1][name] - want).max() <= 1e-14 * np.abs(want).max()
    assert abs(parts[0][0] + parts[1][0] - (3 * alone[0][0] + alone[1][0]) / 4) <= 1e-14


def test_a_narrow_precision_is_used_throughout():
    recorder = Recorder()
    _, found = gradients.gradients(PARAMS, CONFIG, IDS, LABELS, dtype=np.float32, tap=recorder)
    assert {array.dtype for array in [*found.values(), *recorder.trace.values()]} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("labels", "fault"),
    [
        (LABELS[:-1], "one for each id"),
        ([*LABELS[:-1], 61], r"labels\[8\].*got 61; wanted 0 to 60, or -100"),
        ([*LABELS[:-1], -1], r"labels\[8\].*got -1"),
        ([3] + [-100] * 8, "no target"),
        ([1.5] * 9, "whole numbers"),
    ],
)
def test_labels_that_cannot_be_used_are_named(labels, fault):
    with pytest.raises(GenerationError, match=fault):
        gradients.gradients(PARAMS, CONFIG, IDS, labels)


def test_a_family_without_gradients_is_refused_by_name(monkeypatch):
    monkeypatch.delitem(gradients.FAMILIES, "gptj")
    with pytest.raises(RefgptError, match=r"no gradients.*got gptj"):
        gradients.gradients(PARAMS, CONFIG, IDS, LABELS)
