"""The names that programs rely on, called as they are documented."""

from __future__ import annotations

import numpy as np
import pytest

import refgpt


@pytest.fixture(scope="module")
def model():
    return refgpt.load()


def test_generate_takes_every_name_at_once(model):
    got = model.generate(
        "Once upon a time",
        num_beams=4,
        early_stopping=True,
        length_penalty=1.0,
        min_new_tokens=0,
        num_return_sequences=2,
        no_repeat_ngram_size=3,
        bad_words_ids=[[5, 6]],
        sequence_bias={(7,): -2.0},
        eos_token_id=[1, 2],
        min_p=0.05,
        typical_p=0.9,
        epsilon_cutoff=0.001,
        eta_cutoff=0.001,
        suppress_tokens=[9],
        begin_suppress_tokens=[11],
        forced_eos_token_id=1,
        exponential_decay_length_penalty=(3, 1.1),
        renormalize_logits=False,
        max_new_tokens=6,
    )
    assert [type(one) for one in got] == [refgpt.Generation] * 2
    assert got[0].score >= got[1].score
    several = model.generate(["Once upon a time", "The toad"], n=2, seed=1, max_new_tokens=3)
    assert [[type(one) for one in own] for own in several] == [[refgpt.Generation] * 2] * 2


def test_the_scheduler(model):
    scheduler = refgpt.Scheduler(model, max_slots=16, max_cache_bytes=1 << 28)
    params = refgpt.GenerationParams(seed=1, max_new_tokens=4, ignore_eos=True)
    request, other = scheduler.add("Once upon a time", params), scheduler.add("The toad", params)
    events = list(scheduler.step())
    assert scheduler.cancel(other) is True
    while scheduler.busy:
        events += scheduler.step()
    assert [event.choice.id for event in events if event.seq == request] == model.generate(
        "Once upon a time", params
    ).ids
    assert scheduler.cancel(request) is False


def test_score(model):
    logprobs = model.score("The sky is", [" blue", " green"])
    assert [type(one) for one in logprobs] == [np.ndarray] * 2 and (logprobs[0] < 0).all()
    greedy = model.generate("The sky is", temperature=0, max_new_tokens=3, ignore_eos=True).ids
    pairs = model.score("The sky is", [greedy, " blue"], return_greedy=True)
    assert [greedy for _, greedy in pairs] == [True, False] and len(pairs[0][0]) == 3
    n_ctx = model.config.n_ctx
    assert len(model.score([5] * n_ctx, [[6]])[0]) == 1
    with pytest.raises(refgpt.GenerationError):
        model.score([5] * n_ctx, [[6, 7]])


def test_embed(model):
    vectors = model.embed(["Once upon a time", "The toad"], layer=-1, pooling="mean")
    assert vectors.shape == (2, model.config.d_model) and vectors.dtype == np.float32
    assert model.embed(["The toad"]).tobytes() == vectors[1:].tobytes()
