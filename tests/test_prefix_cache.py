"""Keys and values found again: fewer rows are computed, and no bit is another one."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refgpt
from refgpt._common.errors import GenerationError
from refgpt.evaluation import Classifier
from refgpt.generation.loop import generate
from refgpt.generation.params import GenerationParams
from refgpt.generation.prefix_cache import BLOCK, PrefixCache
from refgpt.generation.room import position_bytes
from refgpt.generation.scheduler import Scheduler
from refgpt.generation.scoring import score
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from tests.helpers.buffers import assert_same_bits
from tests.helpers.runtime_models import LONG, PROMPT
from tests.helpers.tiny import random_params

ENGINES = {
    "f32": Runtime(random_params(LONG, 11), LONG, threads=1),
    "f16": Runtime(random_params(LONG, 11), LONG, threads=1, kv_dtype="f16"),
    "q8": Runtime(random_params(LONG, 11), LONG, threads=1, kv_dtype="q8"),
    "spec": SpecEngine(random_params(LONG, 11), LONG),
}
TEXT = PROMPT.tolist()


class Counting:
    """A model whose rows are counted."""

    def __init__(self, engine, mask="causal"):
        self.engine, self.tokenizer, self.mask, self._engine = self, None, mask, ENGINES[engine]
        self.config, self.kv_dtype, self.n_rows = LONG, self._engine.kv_dtype, 0

    def session(self, n_seqs, capacity):
        session = self._engine.session(n_seqs, capacity)
        step = session.step

        def counted(parts, n_rows):
            self.n_rows += sum(len(ids) for _, ids, _ in parts)
            return step(parts, n_rows)

        session.step = counted
        return session


def run(model, prompts, cache, **params):
    scheduler = Scheduler(model, 3, prefix_cache=cache)
    requests = [scheduler.add_ids(prompt, GenerationParams(**params)) for prompt in prompts]
    ids = {request: [] for request in requests}
    while scheduler.busy:
        for event in scheduler.step():
            ids[event.seq].append(event.choice.id)
    return list(ids.values())


@pytest.mark.parametrize("engine", ["f32", "f16", "spec"])
def test_what_was_computed_before_is_not_computed_again(engine):
    cache, model = PrefixCache(1 << 30), Counting(engine)
    params = {"temperature": 0, "max_new_tokens": 3, "ignore_eos": True}
    for prompt, known in (
        (TEXT[:100], 0),
        (TEXT[:100], 96),
        ([*TEXT[:70], 1, 2], 64),
        (TEXT[:64], 32),
        ([5, *TEXT], 0),
    ):
        model.n_rows = 0
        (got,) = run(model, [prompt], cache, **params)
        assert model.n_rows == len(prompt) - known + 2
        assert (
            got
            == generate(
                SimpleNamespace(engine=ENGINES[engine], tokenizer=None, mask="causal"),
                [prompt],
                GenerationParams(**params),
            )[0].ids
        )


@pytest.mark.parametrize("engine", ["f32", "f16"])
def test_a_hit_gives_the_bits_of_a_miss(engine):
    cache, engine = PrefixCache(1 << 30), ENGINES[engine]
    session = engine.session(2, 200)
    session.step([(0, TEXT[:150], 0)])
    cache.keep(session, 0, TEXT[:150])
    session.prefill(1, TEXT[::-1][:90])  # what was there before
    session.release(1)
    assert cache.fill(session, 1, TEXT[:150]) == 128
    assert_same_bits(session.extend(1, TEXT[128:200]), engine.logits(TEXT)[128:])


@given(seed=st.integers(0, 2**32), n_blocks=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_any_prompts_through_a_cache_of_any_size(seed, n_blocks):
    rng, engine = np.random.default_rng(seed), ENGINES["f16"]
    cache = PrefixCache(n_blocks * BLOCK * position_bytes(engine))
    prompts = []
    for _ in range(8):
        base = prompts[rng.integers(0, len(prompts))] if prompts and rng.random() < 0.7 else TEXT
        cut = int(rng.integers(1, min(len(base), 140) + 1))
        prompts.append([*base[:cut], *rng.integers(0, 9, rng.integers(0, 40)).tolist()])
    model = SimpleNamespace(engine=engine, tokenizer=None, mask="causal")
    params = {"seed": 1, "max_new_tokens": 3, "num_return_sequences": 1}
    got = run(model, prompts[:5], cache, **params) + run(model, prompts[5:], cache, **params)
    assert got == [one.ids for one in generate(model, prompts, GenerationParams(**params))]
    kept = sum(node.n_bytes for node in nodes(cache._root))
    assert kept == cache.n_bytes <= n_blocks * BLOCK * position_bytes(engine)


def nodes(node):
    yield node
    for child in node.children.values():
        yield from nodes(child)


def test_what_was_used_longest_ago_goes_first_and_beginnings_last():
    session = ENGINES["spec"].session(1, 200)
    cache = PrefixCache(4 * 8 * BLOCK)
    texts = [[i] * (2 * BLOCK) for i in range(4)]

    def keep(text):
        session.prefill(0, text)
        cache.keep(session, 0, text)

    def known(text):
        return BLOCK * len(cache._path(text))

    keep(texts[0])
    keep(texts[1])
    assert known(texts[0]) == 2 * BLOCK  # used again: now the other is the oldest
    keep(texts[2])
    assert [known(text) for text in texts[:3]] == [2 * BLOCK, 0, 2 * BLOCK]
    keep([7] * (5 * BLOCK))  # longer than all there is: its beginning stays
    assert known([7] * (5 * BLOCK)) == 4 * BLOCK


def test_a_prefix_that_sees_itself_whole_is_never_shared():
    cache, model = PrefixCache(1 << 30), Counting("f32", "prefix")
    for _ in range(2):
        run(model, [TEXT[:100]], cache, max_new_tokens=1)
    assert model.n_rows == 200 and cache.n_bytes == 0


@pytest.mark.parametrize("engine", ["f16", "spec"])
def test_scoring_computes_what_prompts_share_once(engine):
    cache, model = PrefixCache(1 << 30), Counting(engine)
    plain = SimpleNamespace(engine=ENGINES[engine], tokenizer=None, mask="causal")
    for end in (1, 2):
        model.n_rows, prompt = 0, [*TEXT[:100], end]
        got = score(model, prompt, [[5, 6], [7]], prefix_cache=cache)
        assert model.n_rows == 102 - (96 if end == 2 else 0)
        want = score(plain, prompt, [[5, 6], [7]])
        assert all((a == b).all() for a, b in zip(got, want, strict=True))


def test_a_size_that_makes_no_sense_is_named():
    with pytest.raises(GenerationError, match=r"^max_bytes: cannot be used; got -1"):
        PrefixCache(-1)


def test_a_classifier_computes_its_examples_once():
    model = refgpt.load()
    classifier = Classifier(model, ["glad", "sad"], examples=[("What a day it was, and how they sang!", "glad")] * 4)
    first, again = classifier.classify("They wept."), classifier.classify("They wept.")
    assert first == again == Classifier(model, ["glad", "sad"], examples=classifier.examples).classify("They wept.")
    assert classifier._known.n_bytes > 0


REFUSED = {
    "half a panel": lambda s: s.export(0, 0, 20),
    "beyond the end": lambda s: s.export(0, 0, 64),
    "of a prefix": lambda s: s.export(1, 0, 16),
    "into a slot with a text": lambda s: s.adopt(0, TEXT[:16], [s.export(0, 0, 16)[0]]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_lent_is_refused(what):
    session = ENGINES["f32"].session(2, 64)
    session.prefill(0, TEXT[:40])
    session.prefill(1, TEXT[:40], 20)
    with pytest.raises(GenerationError):
        REFUSED[what](session)
