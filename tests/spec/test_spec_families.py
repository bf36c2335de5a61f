"""Each variant of each family against PyTorch's, and what the families have in common."""

from __future__ import annotations

import numpy as np
import pytest

from refgpt._common.errors import ConfigError, GenerationError
from refgpt.spec import FAMILIES, Recorder, forward, gpt2, gpt_neo, gpt_neox, leaf_shapes, tap_names, tap_shapes
from refgpt.spec.families import taps_of
from tests.goldens import load_family
from tests.helpers.families import COMMON, LAYERS, VARIANTS
from tests.helpers.tiny import random_params

IDS = [5, 60, 0, 17, 17, 3, 42, 8]
KIN = [variant for variant in VARIANTS if VARIANTS[variant].model_type != "gptj"]
each_variant = pytest.mark.parametrize("variant", VARIANTS)


def test_every_family_has_a_variant():
    assert {config.model_type for config in VARIANTS.values()} == set(FAMILIES)


@pytest.mark.parametrize("variant", KIN)
def test_float64_is_pytorch_in_float64(variant):
    golden, config = load_family(variant), VARIANTS[variant]
    recorder = Recorder()
    logits = forward(random_params(config, golden.seed), config, golden.ids, tap=recorder)
    stream = [taps_of(config).stream(i) for i in range(config.n_layer)]
    hidden = np.stack([recorder.trace[name] for name in (*stream, "ln_final")])
    patterns = np.stack([recorder.trace[f"blocks.{i}.pattern"] for i in range(config.n_layer)])
    # Some hundred float64 roundings, on numbers whose size is a few units; "gelu_fast" has a constant of ten digits.
    for ours, theirs in ((logits, golden.logits), (hidden, golden.hidden), (patterns, golden.patterns)):
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max() < 1e-11


@each_variant
def test_leaves_and_taps_are_as_they_are_said_to_be(variant):
    config = VARIANTS[variant]
    params, recorder = random_params(config, 1), Recorder()
    assert {name: leaf.shape for name, leaf in params.items()} == leaf_shapes(config)
    assert list(leaf_shapes(config)) == [name for name, _ in params.items()]
    assert params.size == config.n_params
    forward(params, config, IDS, tap=recorder)
    assert list(recorder.trace) == tap_names(config)
    assert {name: value.shape for name, value in recorder.trace.items()} == tap_shapes(config, len(IDS))


@each_variant
def test_what_every_tap_returns_is_used_from_there_on(variant):
    config = VARIANTS[variant]
    params = random_params(config, 3)
    plain = forward(params, config, IDS)[-1]
    for name in tap_names(config):

        def nudge(fired, value, name=name):
            if fired != name:
                return value
            value = value.copy()
            row = value[:, -1] if fired.endswith("pattern") else value[-1]  # of the last position
            row += 0.1 * np.arange(1, row.shape[-1] + 1)
            return value

        assert not np.array_equal(forward(params, config, IDS, tap=nudge)[-1], plain), name


@each_variant
def test_an_activation_is_made_of_those_before_it_alone(variant):
    config = VARIANTS[variant]
    params, recorder = random_params(config, 3), Recorder()
    logits = forward(params, config, IDS, tap=recorder)
    forced = forward(params, config, IDS, tap=lambda name, value: recorder.trace[name].copy())
    assert np.array_equal(logits, forced)


@each_variant
def test_later_tokens_leave_earlier_rows_alone(variant):
    config = VARIANTS[variant]
    params, other = random_params(config, 3), [*IDS[:-1], 33]
    before, after = forward(params, config, IDS), forward(params, config, other)
    assert np.array_equal(before[:-1], after[:-1])
    assert not np.array_equal(before[-1], after[-1])


def test_a_local_block_sees_no_farther_than_its_window():
    config = gpt_neo.Config(**COMMON | {"n_layer": 1}, attention_layers=("local",), window_size=3)
    params = random_params(config, 3)
    before, after = (forward(params, config, [first, *IDS[1:]]) for first in (5, 33))
    moved = (before != after).any(axis=1)
    assert moved.tolist() == [True] * 3 + [False] * 5


def test_a_prefix_goes_with_global_layers_only():
    local, glob = (gpt_neo.Config(**COMMON, attention_layers=layers) for layers in (LAYERS, ("global",) * 2))
    with pytest.raises(GenerationError, match="prefix_len: a prefix mask does not go with local attention"):
        forward(random_params(local, 3), local, IDS, prefix_len=3)
    params = random_params(glob, 3)
    assert not np.array_equal(forward(params, glob, IDS, 3)[:3], forward(params, glob, IDS)[:3])


def test_scores_are_divided_by_the_layer_where_the_configuration_says_so():
    plain, scaled = (gpt2.Config(**COMMON, scale_attn_by_inverse_layer_idx=on) for on in (False, True))
    assert [gpt2.score_divisor(plain, i) for i in range(2)] == [8**0.5, 8**0.5]
    assert [gpt2.score_divisor(scaled, i) for i in range(2)] == [8**0.5, 2 * 8**0.5]


def test_parameters_are_as_many_as_the_published_models_have():
    assert gpt2.Config().n_params == 124_439_808
    assert gpt_neo.Config().n_params == 125_198_592
    assert gpt_neox.Config().n_params == 20_554_567_680


@pytest.mark.parametrize(
    ("family", "field", "value"),
    [
        (gpt2, "activation", "relu"),
        (gpt2, "scale_attn_weights", 1),
        (gpt2, "scale_attn_by_inverse_layer_idx", None),
        (gpt_neo, "attention_layers", ("global",)),
        (gpt_neo, "attention_layers", ("global", "sparse")),
        (gpt_neo, "attention_layers", None),
        (gpt_neo, "window_size", 0),
        (gpt_neo, "window_size", 1 << 31),
        (gpt_neox, "d_rotary", 3),
        (gpt_neox, "d_rotary", 10),
        (gpt_neox, "rotary_base", float("nan")),
        (gpt_neox, "rotary_base", 0.5),
        (gpt_neox, "use_parallel_residual", "yes"),
        (gpt_neox, "attention_bias", 0),
        (gpt_neox, "activation", None),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_by_its_field(family, field, value):
    more = {gpt2: {}, gpt_neo: {"attention_layers": LAYERS}, gpt_neox: {"d_rotary": 4}}[family]
    with pytest.raises(ConfigError, match=field):
        family.Config(**COMMON | more | {field: value})
