"""The spec against PyTorch's GPT-J, on weights made anew from a seed."""

import numpy as np
import pytest

from refgpt.spec import Recorder, forward
from refgpt.spec.bounds.ops import U
from tests import goldens

SMALL = [name for name in goldens.NAMES if goldens.load(name).hidden is not None]

# A float32 run of these sizes, its float32 rotary table included, strays by some 30 roundings of the largest value;
# the faults that this guards against (a mask, a layer, a pair of dimensions) show in the second digit.
FLOAT32 = 100 * U


def spec_run(golden, **options):
    recorder = Recorder()
    logits = forward(golden.params(), golden.config, golden.ids, golden.prefix_len, tap=recorder, **options)
    return logits, recorder.trace


@pytest.mark.parametrize("name", goldens.NAMES)
def test_logits_are_pytorchs_where_both_compute_in_float64(name):
    golden = goldens.load(name)
    logits, _ = spec_run(golden)
    # Two float64 runs differ by a few hundred roundings of 2^-53 (1e-14 measured); the limit is a hundred times that.
    assert np.abs(logits[golden.rows] - golden.logits_float64).max() <= 1e-12 * logits.std()


@pytest.mark.parametrize("name", goldens.NAMES)
def test_pytorchs_float32_logits_are_as_near_as_recorded(name):
    golden = goldens.load(name)
    logits, _ = spec_run(golden)
    # The recorded error is of float32 arithmetic alone; the float32 rotary table may add as much again.
    error = np.abs(logits[golden.rows] - golden.logits).max() / logits.std()
    assert error <= 2 * golden.torch_float32_error
    assert golden.torch_float32_error < 2e-5


@pytest.mark.parametrize("name", goldens.NAMES)
def test_the_spec_in_float32_is_about_as_near_as_pytorch(name):
    golden = goldens.load(name)
    exact, _ = spec_run(golden)
    narrow, _ = spec_run(golden, dtype=np.float32)
    assert narrow.dtype == np.float32
    assert np.abs(narrow - exact).max() <= 2 * golden.torch_float32_error * exact.std()


@pytest.mark.parametrize("name", SMALL)
def test_every_hidden_state_is_pytorchs(name):
    golden = goldens.load(name)
    _, trace = spec_run(golden)
    names = ["embed", *(f"blocks.{i}.resid_post" for i in range(golden.config.n_layer)), "ln_final"]
    assert len(golden.hidden) == len(names)
    for tap, hidden in zip(names, golden.hidden, strict=True):
        assert hidden.shape == trace[tap].shape, tap
        assert np.abs(hidden - trace[tap]).max() <= FLOAT32 * np.abs(hidden).max(), tap


@pytest.mark.parametrize("name", SMALL)
def test_every_attention_pattern_is_pytorchs(name):
    golden = goldens.load(name)
    _, trace = spec_run(golden)
    assert len(golden.patterns) == golden.config.n_layer
    for i, pattern in enumerate(golden.patterns):
        ours = trace[f"blocks.{i}.pattern"]
        assert pattern.shape == ours.shape
        assert np.abs(pattern - ours).max() <= FLOAT32, i
        assert np.array_equal(pattern == 0, ours == 0), i  # masked places, exactly


def test_goldens_cover_the_shapes_that_differ():
    configs = [goldens.load(name).config for name in goldens.NAMES]
    assert any(c.d_rotary == c.d_head for c in configs)
    assert any(c.d_rotary == 64 < c.d_head for c in configs)  # recorded with rotary_dim absent
    assert any(c.d_ff != 4 * c.d_model for c in configs)
    assert any(c.d_ff == 4 * c.d_model for c in configs)  # recorded with n_inner absent
    assert any(c.n_vocab % 2 for c in configs)
    assert any(c.n_head == 1 for c in configs)
    assert any(c.n_layer >= 6 for c in configs)
    assert {goldens.load(name).dtype for name in goldens.NAMES} == {"f32", "f16", "bf16"}
    assert {goldens.load(name).prefix_len for name in goldens.NAMES} >= {0, 7, 12}
    assert sum(path.stat().st_size for path in goldens.ACTIVATIONS.glob("*.npz")) < 1_500_000
