"""Sampling: the filters against transformers', the draw against its distribution, every parameter's limits."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from refgpt._common.errors import GenerationError
from refgpt.generation.filters import typical_key
from refgpt.generation.processing import exp
from refgpt.generation.sampling import Sampler, SamplingParams, _drawn, log_softmax
from tests import goldens

GOLDENS = np.load(goldens.HERE / "sampling.npz")
ROW = np.array([0.5, 3.0, -1.0, 3.0, 2.0], np.float32)


def probabilities(params: SamplingParams, logits: np.ndarray, prompt=(), n_ids=None) -> np.ndarray:
    """What the next draw's distribution is, as a row over all ids."""
    ids, weights = Sampler(params, prompt, n_ids).candidates(logits)
    row = np.zeros(len(logits))
    row[ids] = weights / weights.sum()
    return row


@pytest.mark.parametrize("case", range(len(GOLDENS["cases"])))
def test_filters_match_transformers(case):
    temperature, top_k, top_p, repetition_penalty = GOLDENS["cases"][case]
    params = SamplingParams(float(temperature), int(top_k), float(top_p), float(repetition_penalty))
    got = probabilities(params, GOLDENS["logits"][case], GOLDENS["seen"][case].tolist())
    want = np.exp(log_softmax(GOLDENS["want"][case]))
    assert ((got > 0) == (want > 0)).all()
    np.testing.assert_allclose(got, want, rtol=1e-13)


def test_greedy_takes_the_lowest_of_equals():
    assert Sampler(SamplingParams(temperature=0)).choose(ROW).id == 1


def test_top_k_keeps_ties_and_top_p_drops_the_higher_id():
    assert np.flatnonzero(probabilities(SamplingParams(top_k=1), ROW)).tolist() == [1, 3]
    assert np.flatnonzero(probabilities(SamplingParams(top_k=100), ROW)).tolist() == [0, 1, 2, 3, 4]
    assert np.flatnonzero(probabilities(SamplingParams(top_p=0.1), ROW)).tolist() == [1]
    for least in (1e-300, 0.1):
        assert np.flatnonzero(probabilities(SamplingParams(top_p=least), np.zeros(7))).tolist() == [0]
    assert np.flatnonzero(probabilities(SamplingParams(top_p=0.5), np.zeros(7))).tolist() == [0, 1, 2, 3]


def test_repetition_penalty_sees_the_prompt_and_the_new_tokens():
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0), prompt=[1])
    assert [sampler.choose(ROW).id for _ in range(4)] == [3, 4, 1, 1]  # 3 -> 1.5 each, 2 -> 1.0


def test_presence_and_frequency_penalties_count_new_tokens_only():
    presence = Sampler(SamplingParams(temperature=0, presence_penalty=2.0), prompt=[1, 1, 1])
    assert [presence.choose(ROW).id for _ in range(5)] == [1, 3, 4, 1, 1]
    frequency = Sampler(SamplingParams(temperature=0, frequency_penalty=0.75), prompt=[1, 1, 1])
    assert [frequency.choose(ROW).id for _ in range(6)] == [1, 3, 1, 3, 4, 1]


def test_draws_follow_the_distribution():
    sampler = Sampler(SamplingParams(temperature=0.9, seed=3))
    want = probabilities(SamplingParams(temperature=0.9), ROW)
    n = 20_000
    counts = np.bincount([sampler.choose(ROW).id for _ in range(n)], minlength=len(ROW))
    assert (np.abs(counts - n * want) <= 5 * np.sqrt(n * want * (1 - want))).all()


@pytest.mark.parametrize("bits, chosen", [(0, 1), (2**64 - 1, 3)])
def test_the_ends_of_the_random_numbers(bits, chosen):
    sampler = Sampler(SamplingParams())
    sampler._draws = iter([partial(_drawn, random=bits)])
    assert sampler.choose(np.array([-3e38, 0, 1, 0, -3e38], np.float32)).id == chosen


def test_a_seed_fixes_the_draws_and_none_does_not():
    def draws(seed):
        sampler = Sampler(SamplingParams(seed=seed))
        return [sampler.choose(np.zeros(1000, np.float32)).id for _ in range(12)]

    # Written down once: a change here changes the text that everybody's seeds give.
    assert draws(7) == draws(7) == [625, 897, 775, 225, 300, 873, 5, 821, 797, 467, 303, 278]
    assert draws(8) != draws(7)
    assert draws(None) != draws(None)


def test_ids_without_a_token_are_never_drawn():
    logits = np.array([0, 0, 0, 50, 60], np.float32)
    for temperature in (0, 1):
        sampler = Sampler(
            SamplingParams(temperature=temperature, seed=0, logprobs=5), prompt=[4], exists=np.ones(3, bool)
        )
        choices = [sampler.choose(logits) for _ in range(50)]
        assert {c.id for c in choices} <= {0, 1, 2}
        assert choices[0].top_logprobs.keys() == {0, 1, 2}
        assert choices[0].logprob == pytest.approx(-60 - math.log1p(math.exp(-10)))


def test_logprobs_are_the_models_own():
    params = SamplingParams(temperature=0.1, top_k=2, repetition_penalty=2, presence_penalty=1, seed=0, logprobs=3)
    choice = Sampler(params, prompt=[0, 1]).choose(ROW)
    want = ROW.astype(float) - math.log(sum(math.exp(x) for x in ROW.astype(float)))
    assert choice.logprob == pytest.approx(want[choice.id], rel=1e-14)
    assert list(choice.top_logprobs) == [1, 3, 4]
    assert list(choice.top_logprobs.values()) == pytest.approx(want[[1, 3, 4]], rel=1e-14)


@pytest.mark.parametrize("wanted, reported", [(None, False), (False, False), (True, True), (0, True)])
def test_logprobs_can_be_off_or_of_the_chosen_token_alone(wanted, reported):
    choice = Sampler(SamplingParams(logprobs=wanted)).choose(ROW)
    assert choice.top_logprobs is None
    assert (choice.logprob is not None) == reported


@pytest.mark.parametrize("temperature", [1e-300, 1e-9, 1e6])
def test_extreme_temperatures(temperature):
    row = np.array([-3e38, 0, 3e38], np.float32)
    assert Sampler(SamplingParams(temperature=temperature, top_p=0.5)).choose(row).id == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad):
    with pytest.raises(GenerationError, match="not finite"):
        Sampler(SamplingParams(temperature=0)).choose(np.array([0, bad], np.float32))


@pytest.mark.parametrize(
    "name, values",
    {
        "temperature": [-0.1, math.nan, math.inf, "1", None, True],
        "top_k": [-1, 1.5, "3", True],
        "top_p": [0, -1, 1.01, math.nan, None],
        "repetition_penalty": [0, -1, math.nan, math.inf],
        "presence_penalty": [math.nan, -math.inf, "0"],
        "frequency_penalty": [math.nan, math.inf],
        "seed": [-1, 0.5, "x", True],
        "logprobs": [-1, 2.0, "all"],
    }.items(),
)
def test_parameters_that_make_no_sense_are_named(name, values):
    for value in values:
        with pytest.raises(GenerationError, match=f"^{name}: cannot be used; got {value!r}; wanted "):
            SamplingParams(**{name: value})


@given(st.lists(st.floats(-800, 0), min_size=1))
def test_exp_is_within_two_units_in_the_last_place(values):
    x = np.array(values)
    want = np.where(x < -700, 0, np.exp(x))
    assert (np.abs(exp(x) - want) <= 2 * np.spacing(want)).all()
    assert exp(np.array([-np.inf, 0.0])).tolist() == [0, 1]


@given(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40), st.floats(0.01, 1), st.integers(0, 45))
@example([-1e-35, 0.0], 0.5, 0)
def test_the_nucleus_is_large_enough_and_no_larger(values, top_p, top_k):
    logits = np.array(values, np.float32)
    ids, weights = Sampler(SamplingParams(top_k=top_k, top_p=top_p)).candidates(logits)
    among, mass = Sampler(SamplingParams(top_k=top_k)).candidates(logits)
    kept = weights.sum() / mass.sum()
    assert set(ids) <= set(among) and weights.max() == mass.max()  # logits that differ may weigh the same
    assert kept >= top_p - 1e-12
    assert len(ids) == 1 or kept - weights.min() / mass.sum() < top_p + 1e-12


@given(
    seed=st.integers(0, 2**32),
    n=st.sampled_from([1, 9, 513, 3000]),
    width=st.sampled_from([1e-4, 0.3, 3]),
    digits=st.sampled_from([1, 3, 17]),
    tie=st.booleans(),
)
@settings(deadline=None)
def test_the_typical_tokens_are_those_that_a_sort_of_all_tokens_finds(seed, n, width, digits, tie):
    """Some keys are equal, or all are in one bin; some masses are exactly, or almost, the sum of some shares."""
    rng = np.random.default_rng(seed)
    keys, shares = np.round(rng.exponential(width, n), digits), rng.random(n) ** 4
    shares /= np.cumsum(shares)[-1]
    order = np.argsort(keys, kind="stable")
    sums = np.cumsum(shares[order])
    mass = float(sums[rng.integers(n)]) * rng.choice([1 - 2.0**-52, 1, 1 + 2.0**-52]) if tie else float(rng.random())
    want = keys[order[min(int((sums < mass).sum()), n - 1)]]
    assert typical_key(keys, shares, mass) == want


@pytest.mark.parametrize("params", [{"temperature": 0}, {"top_k": 2}, {"top_p": 0.5}, {"repetition_penalty": 2.0}, {}])
def test_a_vocabulary_larger_than_the_head_with_gaps_on_both_sides(params):
    """As a mask that is longer than the logits, all of whose further ids are gaps but one."""
    exists = np.array([True, False, True, False, True, False, False, True])
    sampler = Sampler(SamplingParams(seed=1, logprobs=8, presence_penalty=0.5, **params), [4, 7], exists)
    for _ in range(20):
        choice = sampler.choose(ROW)
        assert choice.id in (0, 2, 4) and set(choice.top_logprobs) == {0, 2, 4}
    same = Sampler(SamplingParams(seed=1, **params), [4], exists[:5])
    assert all(
        map(
            np.array_equal,
            Sampler(SamplingParams(seed=1, **params), [4, 7], exists).candidates(ROW),
            same.candidates(ROW),
        )
    )


@pytest.mark.parametrize("exists", [np.zeros(0, bool), np.zeros(5, bool), np.arange(9) > 6, np.zeros(3, bool)])
def test_nothing_can_be_drawn_where_no_row_has_a_token(exists):
    with pytest.raises(GenerationError, match="no row of the model's head has a token"):
        Sampler(SamplingParams(), exists=exists).choose(ROW)
