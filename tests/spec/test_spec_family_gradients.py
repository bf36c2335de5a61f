"""Gradients of GPT-J's kin in the specification: against central differences, and against PyTorch's autograd."""

from __future__ import annotations

import json

import numpy as np
import pytest

from refgpt.spec import Recorder, forward, gradients, tap_names
from refgpt.spec.gradients import cross_entropy, targets_of
from tests.goldens import FAMILY_GRADIENTS
from tests.helpers.families import VARIANTS
from tests.helpers.tiny import random_params
from tests.spec.test_spec_gradients import CLOSE, check_golden, direction, golden_of, slope

KIN = {name: config for name, config in VARIANTS.items() if config.model_type != "gptj"}
STREAM = np.random.RandomState(4)
IDS = STREAM.randint(0, 61, 9)
LABELS = np.where(np.arange(9) % 4 == 3, -100, IDS)


def loss_of(params, config, tap=lambda name, value: value):
    logits = forward(params, config, IDS, prefix_of(config), tap=tap)
    rows, targets = targets_of(LABELS)
    return cross_entropy(logits[rows], targets).mean()


def prefix_of(config):
    """A prefix, where the family knows one: local attention does not."""
    return 0 if "local" in getattr(config, "attention_layers", ()) else 4


@pytest.mark.parametrize("name", KIN)
def test_every_leaf_is_within_central_differences(name):
    config = KIN[name]
    params = random_params(config, seed=3).kept_as("f64")
    loss, found = gradients.gradients(params, config, IDS, LABELS, prefix_of(config))
    assert abs(loss - loss_of(params, config)) <= 1e-14 * loss
    assert list(found) == [name for name, _ in params.items()]
    for changed, leaf in params.items():
        d = direction(leaf.shape)

        def moved(step, changed=changed, d=d):
            return loss_of(params.map(lambda name, x: x + step * d if name == changed else x), config)

        assert abs((found[changed] * d).sum() - slope(moved)) <= CLOSE, changed


@pytest.mark.parametrize("name", KIN)
def test_every_activation_is_within_central_differences(name):
    config = KIN[name]
    params, recorder = random_params(config, seed=3).kept_as("f64"), Recorder()
    gradients.gradients(params, config, IDS, LABELS, prefix_of(config), tap=recorder)
    assert sorted(recorder.trace) == sorted(tap_names(config))
    for changed, gradient in recorder.trace.items():
        d = direction(gradient.shape)

        def moved(step, changed=changed, d=d):
            tap = lambda name, value: value + step * d if name == changed else value  # noqa: E731
            return loss_of(params, config, tap)

        assert abs((gradient * d).sum() - slope(moved)) <= CLOSE, changed


@pytest.mark.parametrize("name", KIN)
def test_what_a_tap_changes_is_used_from_there_on(name):
    """Each gradient doubled in one place doubles what comes from it alone: the embeddings' where all is doubled."""
    config = KIN[name]
    params = random_params(config, seed=3).kept_as("f64")
    first = "embed" if config.model_type == "gpt_neox" else "resid_pre"
    plain, changed = Recorder(), {}

    def doubled(name, value):
        changed[name] = 2 * value if name in ("logits", "blocks.0.resid_mid") else value
        return changed[name]

    gradients.gradients(params, config, IDS, LABELS, tap=plain)
    gradients.gradients(params, config, IDS, LABELS, tap=doubled)
    factor = 4 if "blocks.0.resid_mid" in changed else 2
    assert np.allclose(changed[first], factor * plain.trace[first], rtol=1e-12)


@pytest.mark.parametrize("path", sorted(FAMILY_GRADIENTS.glob("*.npz")), ids=lambda path: path.stem)
def test_everything_is_what_autograd_computes(path):
    """Both compute in float64: what they differ by is rounding, some hundred times 1e-16 of the largest number.

    The gradients of GPT-2's key biases are 0, sums of terms of about 0.1: they shift all scores of a query alike.
    """
    held, about = golden_of(path)
    config = VARIANTS[about["variant"]]
    check_golden(held, config, random_params(config, about["seed"]), about["prefix_len"], 0.1)


def test_every_family_has_a_golden():
    abouts = [json.loads(str(np.load(path)["about"])) for path in FAMILY_GRADIENTS.glob("*.npz")]
    assert {VARIANTS[about["variant"]].model_type for about in abouts} == {"gpt2", "gpt_neo", "gpt_neox"}
