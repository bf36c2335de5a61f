"""Guessed tokens: what is guessed, and that a text is the same whether or not its tokens were guessed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from refgpt._common.errors import GenerationError
from refgpt.generation.loop import generate
from refgpt.generation.params import MOST_DRAFTED, GenerationParams
from refgpt.generation.prompt_lookup import PromptLookup
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from tests.helpers.runtime_models import LONG
from tests.helpers.tiny import random_params, tiny_config


def test_what_followed_the_last_tokens_before_is_the_guess():
    lookup = PromptLookup([1, 2, 3, 4, 5, 9, 1, 2], most=3)
    assert lookup.draft(10) == [3, 4, 5]
    assert lookup.draft(2) == [3, 4]
    assert lookup.draft(0) == []
    lookup.push(8)
    assert lookup.draft(10) == []  # 2, 8 is new


def test_a_longer_match_and_then_the_latest_is_preferred():
    assert PromptLookup([7, 1, 2, 5, 8, 1, 2, 6, 7, 1, 2], most=1).draft(1) == [5]
    assert PromptLookup([7, 1, 2, 5, 8, 1, 2, 6, 9, 1, 2], most=1).draft(1) == [6]


def test_a_guess_may_copy_itself():
    assert PromptLookup([4, 4, 4], most=7).draft(7) == [4] * 7
    assert PromptLookup([1, 2, 1, 2], most=5).draft(5) == [1, 2, 1, 2, 1]


def test_guesses_grow_and_shrink_with_their_success():
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 8] * 4, most=8)
    lookup.learn(8, 1)
    assert len(lookup.draft(99)) == 2
    lookup.learn(2, 2)
    assert len(lookup.draft(99)) == 4
    lookup.learn(4, 4)
    assert len(lookup.draft(99)) == 8


def test_where_guesses_fail_they_become_rare():
    lookup = PromptLookup([1, 2] * 8, most=8)
    drafted = 0
    for _ in range(400):
        if draft := lookup.draft(99):
            drafted += len(draft)
            lookup.learn(len(draft), 0)
    assert drafted < 30
    while not lookup.draft(99):
        pass
    lookup.learn(1, 1)
    assert lookup.draft(99)  # one success, and they are tried again


class Counting:
    """An engine that counts the passes of its sessions."""

    def __init__(self, engine):
        self.engine, self.begun, self.passes, self.extended = engine, False, 0, 0

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def session(self, n_seqs, capacity):
        inner, outer = self.engine.session(n_seqs, capacity), self

        class Session:
            truncate, release = inner.truncate, inner.release

            def step(self, parts, n_rows):
                if outer.begun:
                    outer.passes, outer.extended = outer.passes + 1, outer.extended + (n_rows != [1])
                outer.begun = True
                return inner.step(parts, n_rows)

        return Session()


# Greedy, this model soon repeats itself: a text that copies.
CONFIG = tiny_config(eos_id=0, bos_id=1, n_ctx=64)
ENGINES = {
    "runtime": Runtime(random_params(CONFIG, 5, "f16"), CONFIG, threads=2),
    "q8": Runtime(random_params(CONFIG, 5, "f16"), CONFIG, threads=2, kv_dtype="q8"),
    "spec": SpecEngine(random_params(CONFIG, 5, "f16"), CONFIG),
}


SETTINGS = [
    {"temperature": 0},
    {"temperature": 0.3, "seed": 1},
    {"temperature": 1, "seed": 2},
    {"temperature": 0, "logprobs": 3, "repetition_penalty": 1.1},
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_text_is_the_same_whatever_was_guessed(engine, mask, settings):
    prompts = [[5, 6, 7, 8, 5, 6, 7, 8, 5, 6], [9], list(range(2, 30)), [3, 4] * 10]
    for prompt in prompts:
        for n_new in (1, 2, 20, 60):
            plain, guessed = (
                generate(
                    SimpleNamespace(engine=ENGINES[engine], tokenizer=None, mask=mask),
                    [prompt],
                    GenerationParams(max_new_tokens=n_new, speculate=n, **settings),
                )
                for n in (0, 7)
            )
            assert guessed == plain


def test_a_text_that_copies_takes_fewer_passes():
    results = []
    for speculate in (0, 7):
        engine = Counting(ENGINES["runtime"])
        params = GenerationParams(max_new_tokens=40, temperature=0, ignore_eos=True, speculate=speculate)
        results.append(generate(SimpleNamespace(engine=engine, tokenizer=None, mask="causal"), [[3, 4] * 8], params))
        passes = engine.passes
    assert results[0] == results[1]
    assert engine.extended
    assert passes < 20


def test_several_texts_at_once_are_not_guessed_until_one_is_left():
    engine = Runtime(random_params(LONG, 11), LONG, threads=2)
    prompts = [np.arange(20).tolist() * 2, [7, 8] * 9]
    plain, guessed = (
        generate(
            SimpleNamespace(engine=engine, tokenizer=None, mask="causal"),
            prompts,
            GenerationParams(max_new_tokens=30, temperature=0, speculate=n),
        )
        for n in (0, 5)
    )
    assert guessed == plain


@pytest.mark.parametrize("n", [-1, MOST_DRAFTED + 1, 1.5])
def test_a_number_that_makes_no_sense_is_refused(n):
    with pytest.raises(GenerationError, match="speculate"):
        GenerationParams(speculate=n)
