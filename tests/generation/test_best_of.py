"""The likeliest of several continuations."""

from __future__ import annotations

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import GenerationError


@pytest.fixture(scope="module")
def model():
    return refgpt.load()


@pytest.fixture(scope="module")
def asked(model):
    """Settings with which some texts end before others: at a token that one of them would have in its middle."""
    settings = {"seed": 3, "max_new_tokens": 7, "temperature": 1.2}
    drawn = model.generate("Once upon a", n=6, ignore_eos=True, **settings)
    return settings | {"eos_token_id": [drawn[0].ids[3], drawn[1].ids[5]]}


def test_the_likeliest_per_token_come_first(model, asked):
    drawn = model.generate("Once upon a", n=6, logprobs=2, **asked)
    ranked = sorted(drawn, key=lambda one: -np.mean(one.logprobs))
    best = model.generate("Once upon a", best_of=6, n=3, logprobs=2, **asked)
    assert [one.ids for one in best] == [one.ids for one in ranked[:3]] != [one.ids for one in drawn[:3]]
    assert [one.score for one in best] == pytest.approx([np.mean(one.logprobs) for one in ranked[:3]])
    assert [(one.text, one.logprobs, one.top_logprobs) for one in best] == [
        (one.text, one.logprobs, one.top_logprobs) for one in ranked[:3]
    ]
    only = model.generate("Once upon a", best_of=6, **asked)
    assert (only.ids, only.logprobs, only.score) == (ranked[0].ids, None, best[0].score)
    assert len({len(one.ids) for one in drawn}) > 1


def test_a_list_of_prompts_and_few_slots(model, asked):
    prompts = ["Once upon a", "The toad"]
    want = [model.generate(prompt, best_of=5, n=2, **asked) for prompt in prompts]
    assert model.generate(prompts, best_of=5, n=2, **asked) == want
    scheduler = refgpt.Scheduler(model, 2)
    requests = [scheduler.add(prompt, best_of=5, n=2, **asked) for prompt in prompts]
    events = []
    while scheduler.busy:
        events += scheduler.step()
    for request, own in zip(requests, want, strict=True):
        for index, one in enumerate(own):
            got = [event for event in events if (event.seq, event.index) == (request, index)]
            assert [event.choice.id for event in got] == one.ids and got[-1].score == one.score
            assert "".join(event.text for event in got) == one.text
            assert [event.finish_reason is None for event in got] == [True] * (len(got) - 1) + [False]
    assert {event.index for event in events} == {0, 1}


def test_as_many_as_are_returned_are_ranked_too(model, asked):
    scores = [one.score for one in model.generate("Once", best_of=4, n=4, **asked)]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) > 1
    assert model.generate("Once", best_of=1, **asked) == model.generate("Once", **asked)


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"best_of": 0}, r"^best_of: cannot be used; got 0"),
        ({"best_of": 2, "n": 3}, r"^best_of: is less than is to be returned; got 2; wanted at least .*3"),
        ({"best_of": 3, "num_beams": 3}, r"^best_of: cannot be combined with beam search"),
    ],
)
def test_what_makes_no_sense_is_refused(asked, said):
    with pytest.raises(GenerationError, match=said):
        refgpt.GenerationParams(**asked)


def test_a_stream_has_one_text_that_is_certain(model):
    with pytest.raises(GenerationError, match=r"^stream: gives one text"):
        model.stream("Once", best_of=2)


def test_the_command_line(run, model):
    asked = {"max_new_tokens": 6, "seed": 2, "temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
    options = [part for name, value in asked.items() for part in (f"--{name.replace('_', '-')}", value)]
    best = model.generate("Once", best_of=4, **asked)
    assert run("generate", "Once", "--best-of", 4, *options).out == best.text + "\n"
