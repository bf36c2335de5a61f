"""Ways of decoding: filters, several continuations and beams, held to what transformers writes with the same model."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refgpt
from refgpt._common.errors import GenerationError
from refgpt.generation.loop import generate
from refgpt.generation.params import GenerationParams
from refgpt.generation.room import BLOCK, position_bytes
from refgpt.generation.sampling import Sampler, SamplingParams, log_softmax
from refgpt.generation.scheduler import Scheduler
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from tests import goldens
from tests.helpers.decoding import CONFIG, FILTERS, PARAMS

CASES = json.loads((goldens.HERE / "decoding.json").read_text(encoding="utf-8"))
KEPT = np.load(goldens.HERE / "filters.npz")
ENGINES = {
    "runtime": Runtime(PARAMS, CONFIG, threads=1),
    "q8": Runtime(PARAMS, CONFIG, threads=1, kv_dtype="q8"),
    "spec": SpecEngine(PARAMS, CONFIG),
}
PROMPT = [5, 6, 7, 8]


def model_of(engine="runtime", mask="causal"):
    return SimpleNamespace(engine=ENGINES[engine], tokenizer=None, mask=mask)


def write(prompt=PROMPT, engine="runtime", mask="causal", **params):
    return generate(model_of(engine, mask), [prompt], GenerationParams(**params))[0]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_texts_and_scores_are_transformers(case):
    case = CASES[case]
    engine = "spec" if len(case["prompt"]) == 1 else "runtime"
    got = write(case["prompt"], engine, temperature=0, **case["params"])
    got = got if isinstance(got, list) else [got]
    assert [one.ids for one in got] == case["texts"]
    if case["scores"] is not None:
        assert [one.score for one in got] == pytest.approx(case["scores"], rel=2e-5, abs=2e-5)


@pytest.mark.parametrize("case", range(len(FILTERS)))
def test_filters_keep_what_transformers_keeps(case):
    ids, weights = Sampler(SamplingParams(**FILTERS[case])).candidates(KEPT["logits"][case])
    want = np.exp(log_softmax(KEPT["want"][case]))
    assert ids.tolist() == np.flatnonzero(want).tolist()
    np.testing.assert_allclose(weights / weights.sum(), want[ids], rtol=1e-12)


def test_the_goldens_have_texts_that_end_early_and_late():
    lengths = {len(text) for case in CASES for text in case["texts"]}
    assert lengths >= {1, 2, 3, 14} and len(FILTERS) == len(KEPT["logits"])
    beams = [case for case in CASES if case["scores"]]
    assert any(len({*map(len, case["texts"])}) > 2 for case in beams)


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize("num_beams, early_stopping", [(2, True), (5, False), (4, "never")])
def test_beams_cost_no_bit_whatever_they_run_in(mask, num_beams, early_stopping):
    """With the cache forked, from the spec's whole forward passes, alone and among others."""
    asked = {"num_beams": num_beams, "early_stopping": early_stopping, "num_return_sequences": 2}
    asked |= {"max_new_tokens": 20, "eos_token_id": [3, 9, 20]}
    forked, whole = (write(engine=engine, mask=mask, **asked) for engine in ("runtime", "spec"))
    assert [one.ids for one in forked] == [one.ids for one in whole]
    model = model_of("runtime", mask)
    scheduler = Scheduler(model, 12)
    others = [scheduler.add([i] * 30, seed=i, max_new_tokens=9) for i in range(1, 4)]
    mine = scheduler.add(PROMPT, **asked)
    events = []
    while scheduler.busy:
        events += scheduler.step()
    for index, one in enumerate(forked):
        own = [event for event in events if (event.seq, event.index) == (mine, index)]
        assert [event.choice.id for event in own] == one.ids and own[-1].score == one.score
    assert {event.seq for event in events} == {*others, mine}


@pytest.mark.parametrize("engine", ["runtime", "q8"])
def test_a_beams_score_is_its_likelihood(engine):
    asked = {"max_new_tokens": 8, "length_penalty": 0.5, "ignore_eos": True}
    best, second = write(engine=engine, num_beams=4, num_return_sequences=2, **asked)
    assert best.score > second.score and best.finish_reason == "length"
    rows = ENGINES[engine].logits([*PROMPT, *best.ids])
    logprobs = log_softmax(rows[3:-1])[np.arange(8), best.ids]
    assert best.score == pytest.approx(logprobs.sum() / 8**0.5, rel=1e-12)


def test_a_beam_search_over_everything_finds_the_likeliest_text():
    model, n = model_of(), 2
    got = write(num_beams=61, max_new_tokens=n, ignore_eos=True)
    first = log_softmax(model.engine.logits(PROMPT)[-1])
    best = max(
        ((first[i] + log_softmax(model.engine.logits([*PROMPT, i])[-1]).max(), i) for i in range(61)),
    )
    assert got.ids[0] == best[1] and got.score == pytest.approx(best[0] / n)


@pytest.mark.parametrize("n", [2, 5, 30])
@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_several_continuations_have_a_stream_each(n, mask):
    asked = {"seed": 5, "max_new_tokens": 6, "temperature": 1.2, "eos_token_id": 3}
    several = write(mask=mask, n=n, **asked)
    assert [one.ids for one in several] == [one.ids for one in write(mask=mask, num_return_sequences=n, **asked)]
    assert several[0] == write(mask=mask, **asked)  # the first is what it is alone
    assert several[:2] == write(mask=mask, n=2, **asked)  # and none depends on how many there are
    assert len({tuple(one.ids) for one in several}) > 1
    assert [one.ids for one in several] != [one.ids for one in write(mask=mask, n=n, **(asked | {"seed": 6}))]


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@given(seed=st.integers(0, 1000), n_slots=st.integers(1, 6), n=st.integers(2, 9))
@settings(max_examples=15, deadline=None)
def test_several_continuations_in_few_slots(mask, seed, n_slots, n):
    """The prompt is read once, however few of them fit beside each other, and other requests come in between."""
    model = model_of("runtime", mask)
    params = GenerationParams(seed=seed, n=n, max_new_tokens=7, eos_token_id=[3, 9, 20], temperature=1.3)
    want = generate(model, [PROMPT * 4], params)[0]
    scheduler = Scheduler(model, n_slots, 3 * BLOCK * position_bytes(model.engine))
    before = scheduler.add([1, 2], seed=1, max_new_tokens=5)
    mine, after = scheduler.add_ids(PROMPT * 4, params), scheduler.add([9], seed=2, max_new_tokens=5)
    events, read, step = [], [], scheduler._session.step
    scheduler._session.step = lambda parts, n_rows: (read.extend(parts), step(parts, n_rows))[1]
    while scheduler.busy:
        events += scheduler.step()
    assert sum(len(ids) for _, ids, _ in read if len(ids) > 2) == 16
    for index, one in enumerate(want):
        assert [e.choice.id for e in events if (e.seq, e.index) == (mine, index)] == one.ids
    assert {event.seq for event in events} == {before, mine, after}


def test_a_list_of_prompts_gives_a_list_of_lists():
    model = refgpt.load()
    got = model.generate(["Once", "The"], n=3, seed=1, max_new_tokens=4)
    assert [[type(one) for one in own] for own in got] == [[refgpt.Generation] * 3] * 2
    assert [one.text for one in got[0]] == [one.text for one in model.generate("Once", n=3, seed=1, max_new_tokens=4)]
    beams = model.generate("Once", num_beams=3, num_return_sequences=2, max_new_tokens=4)
    assert beams[0].score >= beams[1].score and beams[0].text
    assert isinstance(model.generate("Once", num_beams=3, max_new_tokens=4), refgpt.Generation)


def test_functions_of_ones_own_change_scores_and_end_texts():
    seen = []

    def only_even(ids, scores):
        seen.append((ids, len(scores)))
        scores[1::2] = -np.inf
        return scores

    got = write(logits_processor=only_even, temperature=0, max_new_tokens=5, ignore_eos=True)
    assert all(token % 2 == 0 for token in got.ids)
    assert [ids for ids, _ in seen] == [[*PROMPT, *got.ids[:n]] for n in range(5)]
    ended = write(stopping_criteria=[lambda ids, row: len(ids) == 7 and len(row) == 61], seed=1, ignore_eos=True)
    assert (len(ended.ids), ended.finish_reason) == (3, "stop")
    beams = write(num_beams=3, logits_processor=[only_even], max_new_tokens=5, ignore_eos=True)
    assert all(token % 2 == 0 for token in beams.ids)
    assert len(write(num_beams=3, stopping_criteria=lambda ids, row: len(ids) >= 6, ignore_eos=True).ids) == 2


@pytest.mark.parametrize("bad", [lambda ids, s: s[:5], lambda ids, s: s * np.nan, lambda ids, s: s + np.inf])
def test_scores_that_cannot_be_used_are_named(bad):
    with pytest.raises(GenerationError, match=r"^logits_processor: gave scores that cannot be used"):
        write(logits_processor=bad)


def test_an_error_of_a_function_of_ones_own_comes_out_and_takes_nobody_along():
    def broken(ids, scores):
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        write(logits_processor=broken)
    scheduler = Scheduler(model_of(), 4)
    bad, good = scheduler.add(PROMPT, logits_processor=broken), scheduler.add(PROMPT, seed=1, max_new_tokens=3)
    events = []
    while scheduler.busy:
        events += scheduler.step()
    assert [type(event.error) for event in events if event.seq == bad] == [ZeroDivisionError]
    assert len([event for event in events if event.seq == good]) == 3


def test_repetition_is_looked_for_in_the_last_tokens_only():
    row = np.array([0.5, 3.0, -1.0, 2.9, 2.0], np.float32)
    near = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0, repeat_last_n=2), prompt=[3, 1, 1])
    assert [near.choose(row).id for _ in range(4)] == [3, 4, 1, 3]


def test_biases_of_single_tokens_add_up():
    row = np.zeros(5, np.float32)
    sampler = Sampler(
        SamplingParams(temperature=0, logit_bias={2: 1.0}, sequence_bias=[[[3], 0.6], [[7, 3], 0.6]]), [7]
    )
    assert sampler.choose(row).id == 3
    assert sampler.choose(row).id == 2


def test_a_word_longer_than_the_text_has_not_been_begun():
    row = np.array([1.0, 0, 0], np.float32)
    for params in ({"sequence_bias": {(2, 2, 1): 9.0}}, {"bad_words_ids": [[2, 2, 0]]}):
        assert Sampler(SamplingParams(temperature=0, **params), prompt=[2]).choose(row).id == 0


def test_where_nothing_may_be_drawn_it_is_said():
    with pytest.raises(GenerationError, match=r"no token is left that may be drawn.*suppress_tokens"):
        write(suppress_tokens=list(range(61)))
    with pytest.raises(GenerationError, match=r"no token is left"):
        write(suppress_tokens=list(range(61)), num_beams=2)


BAD = [
    ("min_p", 1.5),
    ("typical_p", 0),
    ("epsilon_cutoff", -1),
    ("eta_cutoff", "x"),
    ("no_repeat_ngram_size", -1),
    ("bad_words_ids", [[]]),
    ("bad_words_ids", [5]),
    ("bad_words_ids", "ab"),
    ("sequence_bias", {(): 1.0}),
    ("sequence_bias", {(1,): float("nan")}),
    ("sequence_bias", [[1, 2, 3]]),
    ("logit_bias", {-1: 2.0}),
    ("logit_bias", [1]),
    ("suppress_tokens", [1.5]),
    ("suppress_tokens", 5),
    ("begin_suppress_tokens", [-1]),
    ("eos_token_id", []),
    ("eos_token_id", "a"),
    ("forced_eos_token_id", [True]),
    ("min_new_tokens", -1),
    ("exponential_decay_length_penalty", (1,)),
    ("exponential_decay_length_penalty", (1, 0)),
    ("exponential_decay_length_penalty", (-1, 1.1)),
    ("renormalize_logits", 1),
    ("repeat_last_n", 0),
    ("logits_processor", [3]),
    ("stopping_criteria", "x"),
    ("n", 0),
    ("num_return_sequences", 0),
    ("num_beams", 0),
    ("early_stopping", "ever"),
    ("length_penalty", float("nan")),
]


@pytest.mark.parametrize("name, value", BAD)
def test_parameters_that_make_no_sense_are_named(name, value):
    with pytest.raises(GenerationError, match=f"^{name}: cannot be used"):
        GenerationParams(**{name: value})


@pytest.mark.parametrize(
    "asked, said",
    [
        (
            {"suppress_tokens": [61]},
            "^suppress_tokens: the id does not exist in this vocabulary; got 61; wanted 0 to 60",
        ),
        ({"bad_words_ids": [[1, 99]]}, "^bad_words_ids: the id does not exist"),
        ({"eos_token_id": 61}, "^eos_token_id: the id does not exist"),
        ({"num_beams": 2, "num_return_sequences": 3}, "^num_return_sequences: cannot be more than there are beams"),
        ({"num_beams": 2, "stop": "a"}, "^stop: cannot be combined with beam search"),
        ({"num_beams": 2, "logprobs": 1}, "^logprobs: cannot be combined with beam search"),
    ],
)
def test_what_the_model_or_beams_cannot_do_is_said(asked, said):
    with pytest.raises(GenerationError, match=said):
        write(**asked)


def test_more_beams_than_slots_are_refused_and_a_stream_has_one_text():
    with pytest.raises(GenerationError, match=r"needs more slots than there are; got 2; wanted 3"):
        Scheduler(model_of(), 2).add(PROMPT, num_beams=3)
    with pytest.raises(GenerationError, match=r"^stream: gives one text, token by token; got num_return_sequences 2"):
        refgpt.load().stream("a", n=2)
