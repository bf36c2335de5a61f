"""What holds for the whole forward pass: dtypes, taps, who sees whom, and what it refuses."""

import numpy as np
import pytest

from refgpt._common.errors import GenerationError, RefgptError
from refgpt.numbers.leaves import widen
from refgpt.spec import Recorder, forward, no_tap, prefixed, tap_names
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config()
PARAMS = random_params(CONFIG, seed=3)
IDS = [5, 60, 0, 17, 17, 3, 42, 8]


def trace(ids=IDS, prefix_len=0, **options):
    recorder = Recorder()
    forward(PARAMS, CONFIG, ids, prefix_len, tap=recorder, **options)
    return recorder.trace


def test_taps_fire_by_name_in_order_with_their_shapes():
    fired = trace()
    assert list(fired) == tap_names(CONFIG)
    assert len(fired) == 3 + 13 * CONFIG.n_layer
    t, h, d = len(IDS), CONFIG.n_head, CONFIG.d_head
    for i in range(CONFIG.n_layer):
        for name in ("q", "k", "v", "q_rot", "k_rot", "z"):
            assert fired[f"blocks.{i}.{name}"].shape == (t, h, d)
        for name in ("ln", "attn_out", "mlp_out", "resid_post"):
            assert fired[f"blocks.{i}.{name}"].shape == (t, CONFIG.d_model)
        for name in ("mlp_pre", "mlp_post"):
            assert fired[f"blocks.{i}.{name}"].shape == (t, CONFIG.d_ff)
        assert fired[f"blocks.{i}.pattern"].shape == (h, t, t)
    assert fired["embed"].shape == fired["ln_final"].shape == (t, CONFIG.d_model)
    assert fired["logits"].shape == (t, CONFIG.n_vocab)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.longdouble])
def test_everything_is_computed_in_the_dtype_asked_for(dtype):
    narrow, exact = trace(dtype=dtype), trace(dtype=np.longdouble)
    for name, value in narrow.items():
        assert value.dtype == dtype, name
        # Some hundred roundings lie between the embedding and the logits of this model.
        assert np.abs(value - exact[name]).max() <= 50 * np.finfo(dtype).eps * np.abs(exact[name]).max(), name


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_stored_weights_are_used_as_stored(dtype):
    stored = random_params(CONFIG, seed=3, dtype=dtype)
    wide = stored.map(lambda _, leaf: widen(leaf, np.float64))
    assert np.array_equal(forward(stored, CONFIG, IDS), forward(wide, CONFIG, IDS))
    assert not np.array_equal(forward(stored, CONFIG, IDS), forward(PARAMS, CONFIG, IDS))


@pytest.mark.parametrize("name", tap_names(CONFIG))
def test_what_a_tap_returns_is_used_from_there_on(name):
    def nudge(fired, value):
        if fired != name:
            return value
        value = value.copy()
        value[..., -1, 0] *= 1.5  # [t, c], [t, h, d] or [h, t, s]: always something the last logits depend on
        return value

    nudged = forward(PARAMS, CONFIG, IDS, tap=nudge)
    assert not np.array_equal(nudged[-1], forward(PARAMS, CONFIG, IDS)[-1])


def test_forcing_every_tap_to_its_own_value_changes_nothing():
    plain = trace()
    assert np.array_equal(forward(PARAMS, CONFIG, IDS, tap=lambda name, value: plain[name].copy()), plain["logits"])


def test_a_forced_value_is_turned_into_the_dtype_of_the_run():
    narrow = trace(dtype=np.float32)
    seen = {}

    def force(name, value):
        seen[name] = value.dtype
        return narrow[name]

    assert forward(PARAMS, CONFIG, IDS, tap=force).dtype == np.float64
    assert set(seen.values()) == {np.dtype(np.float64)}


def test_attention_and_mlp_do_not_see_each_other_and_both_reach_the_stream():
    plain = trace()
    recorder = Recorder()

    def silence_attention(name, value):
        return recorder(name, np.zeros_like(value) if name == "blocks.0.attn_out" else value)

    forward(PARAMS, CONFIG, IDS, tap=silence_attention)
    assert np.array_equal(recorder.trace["blocks.0.mlp_out"], plain["blocks.0.mlp_out"])
    wanted = plain["embed"] + plain["blocks.0.mlp_out"]
    assert np.allclose(recorder.trace["blocks.0.resid_post"], wanted, atol=1e-14)


def test_recorder_keeps_copies_of_the_chosen_names():
    recorder = Recorder(names=["blocks.1.z", "logits"])
    logits = forward(PARAMS, CONFIG, IDS, tap=recorder)
    assert list(recorder.trace) == ["blocks.1.z", "logits"]
    logits[:] = 0
    assert recorder.trace["logits"].any()


def test_prefixed_puts_the_name_together_and_passes_the_answer_on():
    asked = []
    tap = prefixed(lambda name, value: asked.append(name) or value + 1, "blocks.3.")
    assert tap("q", np.zeros(1)).tolist() == [1]
    assert asked == ["blocks.3.q"]
    assert no_tap("q", asked) is asked


@pytest.mark.parametrize("answer", [None, np.zeros(3), 1.0])
def test_a_tap_that_returns_something_else_is_named(answer):
    with pytest.raises(RefgptError, match=r"blocks\.1\.v: a tap must return"):
        forward(PARAMS, CONFIG, IDS, tap=lambda name, value: answer if name == "blocks.1.v" else value)


@pytest.mark.parametrize("changed", range(1, len(IDS)))
def test_a_later_token_leaves_earlier_rows_alone_to_the_bit(changed):
    other = list(IDS)
    other[changed] = 33
    before, after = trace(), trace(other)
    for name in before:
        if not name.endswith("pattern"):
            assert np.array_equal(before[name][:changed], after[name][:changed]), name
    assert not np.array_equal(before["logits"][changed], after["logits"][changed])


def test_prefix_rows_see_each_other_and_the_rest_stays_causal():
    prefix_len = 4
    plain = trace(prefix_len=prefix_len)

    def rows_moved_by_changing(t):
        other = list(IDS)
        other[t] = 33
        moved = trace(other, prefix_len)["logits"] != plain["logits"]
        return np.flatnonzero(moved.any(axis=1)).tolist()

    for t in range(prefix_len):
        assert rows_moved_by_changing(t) == list(range(len(IDS)))  # all rows, the first one too
    for t in range(prefix_len, len(IDS)):
        assert rows_moved_by_changing(t) == list(range(t, len(IDS)))  # a label never reaches back


def test_prefixes_of_no_or_one_token_are_causal():
    assert np.array_equal(trace(prefix_len=1)["logits"], trace()["logits"])
    assert not np.array_equal(trace(prefix_len=2)["logits"], trace()["logits"])


def test_pattern_rows_sum_to_one_and_masked_places_are_zero():
    for prefix_len in (0, 3):
        pattern = trace(prefix_len=prefix_len)["blocks.1.pattern"]
        assert np.allclose(pattern.sum(axis=-1), 1, atol=1e-14)
        t, s = np.indices(pattern.shape[1:])
        visible = (s <= t) | (s < prefix_len)
        assert (pattern[:, ~visible] == 0).all()
        assert (pattern[:, visible] > 0).all()


@pytest.mark.parametrize("ids", [[], [61], [1, -1], [[1, 2]], [1.0], ["a"], [[1], [2, 3]]])
def test_unusable_ids_are_refused(ids):
    with pytest.raises(GenerationError):
        forward(PARAMS, CONFIG, ids)


def test_unusable_prefix_and_dtype_are_refused():
    with pytest.raises(GenerationError, match="prefix_len"):
        forward(PARAMS, CONFIG, IDS, prefix_len=len(IDS) + 1)
    with pytest.raises(RefgptError, match="floating"):
        forward(PARAMS, CONFIG, IDS, dtype=np.int64)
