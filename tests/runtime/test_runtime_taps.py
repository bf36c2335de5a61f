"""Taps of the runtime: the spec's names in the spec's order, copies of one's own, and patches that are used."""

import numpy as np
import pytest

from refgpt._common.errors import RefgptError
from refgpt.runtime import Runtime
from refgpt.spec import Recorder, forward, tap_names
from tests.helpers.buffers import assert_same_bits
from tests.helpers.runtime_models import SHAPES
from tests.helpers.tiny import random_params

CONFIG = SHAPES["three heads of twelve"]
PARAMS = random_params(CONFIG, 3)
IDS = np.arange(15) * 5
ENGINE = Runtime(PARAMS, CONFIG, threads=2)


def traces(prefix_len=0, tap=None):
    """What both engines show after ``tap`` had its say: the runtime, then the spec in float64."""
    recorders = [Recorder(), Recorder()]
    shown = [
        recorder if tap is None else (lambda name, value, r=recorder: r(name, tap(name, value)))
        for recorder in recorders
    ]
    ENGINE.logits(IDS, prefix_len, shown[0])
    forward(PARAMS, CONFIG, IDS, prefix_len, tap=shown[1])
    return recorders[0].trace, recorders[1].trace


def assert_near(ours, spec):
    # A float32 run of this size, cut short at any point, strays by some 30 roundings of the largest value (2e-6). This
    # guards against a patch that is lost, late or half used, which shows in the first digits, and not against rounding.
    for name, want in spec.items():
        assert np.abs(ours[name] - want).max() <= 1e-5 * max(1, np.abs(want).max()), name


@pytest.mark.parametrize("prefix_len", [0, 6])
def test_names_order_shapes_and_dtype(prefix_len):
    ours, spec = traces(prefix_len)
    assert list(ours) == list(spec) == tap_names(CONFIG)
    assert {name: x.shape for name, x in ours.items()} == {name: x.shape for name, x in spec.items()}
    assert {x.dtype for x in ours.values()} == {np.dtype(np.float32)}
    assert_near(ours, spec)


@pytest.mark.parametrize("name", tap_names(CONFIG))
@pytest.mark.parametrize("prefix_len", [0, 6])
def test_a_patch_has_the_effect_it_has_in_the_spec(name, prefix_len):
    rng = np.random.default_rng(5)

    def patch(shown, value):
        if shown != name:
            return value
        if name.endswith("pattern"):
            return np.roll(value, 1, axis=-1)
        return np.roll(value, 1, axis=0) * 0.5 + rng.permutation(value.shape[-1]) * 0.01

    clean, _ = traces(prefix_len)
    rng = np.random.default_rng(5)
    ours, _ = traces(prefix_len, patch)
    rng = np.random.default_rng(5)
    _, spec = traces(prefix_len, lambda shown, value: patch(shown, value) if value.dtype == np.float64 else value)
    assert_near(ours, spec)
    changed = [shown for shown in clean if not np.array_equal(clean[shown], ours[shown])]
    assert changed[0] == name
    assert changed[-1] == "logits"


def test_patching_in_place_counts_as_patching():
    def zero(name, value):
        if name == "blocks.0.mlp_out":
            value[:] = 0
        return value

    ours, spec = traces(tap=zero)
    assert_near(ours, spec)
    assert (ours["blocks.0.mlp_out"] == 0).all()


def test_a_tap_that_only_looks_changes_no_bit_and_keeps_what_it_saw():
    kept = {}

    def keep(name, value):
        kept[name] = value  # not a copy: the runtime may not write here again
        return value

    logits = ENGINE.logits(IDS, tap=keep)
    recorder = Recorder()
    assert_same_bits(ENGINE.logits(IDS, tap=recorder), ENGINE.logits(IDS))
    assert_same_bits(logits, ENGINE.logits(IDS))
    for name, value in recorder.trace.items():
        assert_same_bits(kept[name], value)


@pytest.mark.parametrize("answer", [None, np.zeros(3)])
def test_a_tap_that_returns_something_else_is_named(answer):
    with pytest.raises(RefgptError, match=r"blocks\.1\.z"):
        ENGINE.logits(IDS, tap=lambda name, value: answer if name == "blocks.1.z" else value)
