"""Draft models: a text is the same whatever drafts it, and a good draft takes fewer passes."""

from __future__ import annotations

import logging
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import GenerationError
from refgpt.generation import drafting, loop
from refgpt.generation.draft_pace import DraftPace
from refgpt.generation.drafting import check_draft
from refgpt.generation.params import GenerationParams
from refgpt.generation.prefix_cache import PrefixCache
from refgpt.generation.room import position_bytes
from refgpt.generation.scheduler import Scheduler
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec import family_of
from tests.helpers.families import VARIANTS
from tests.helpers.small_tokenizers import Letters
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=0, bos_id=1, n_ctx=64)
SETTINGS = [
    {"temperature": 0},
    {"temperature": 0.3, "seed": 1, "logprobs": 2},
    {"temperature": 1, "seed": 2, "top_p": 0.8, "min_p": 0.01, "typical_p": 0.9},
    {"temperature": 0, "repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
    {"temperature": 1, "seed": 3, "frequency_penalty": 0.5, "suppress_tokens": [7], "bad_words_ids": [[8, 9]]},
    {"temperature": 1, "seed": 4, "top_k": 9, "eta_cutoff": 0.01, "epsilon_cutoff": 0.01, "forced_eos_token_id": 3},
]
PROMPTS = [[5, 6, 7, 8, 5, 6, 7, 8, 5, 6], [9], list(range(2, 30)), [3, 4] * 10]


def generate(model, prompts, params, draft=None):
    return loop.generate(model, prompts, params, draft=draft)


def noisy(params, config, scale):
    """The same weights and some noise."""
    rng = np.random.RandomState(1)
    leaves = {
        name: (leaf + scale * leaf.std() * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
        for name, leaf in params.items()
    }
    return family_of(config).Params.from_leaves(leaves, config.n_layer)


PARAMS = random_params(CONFIG, 5, "f16")


@cache
def model_of(kind, mask="causal", tokenizer=None):
    """The model, or another that drafts for it."""
    if kind == "spec":
        engine = SpecEngine(PARAMS, CONFIG)
    elif kind == "the same":
        engine = Runtime(PARAMS, CONFIG, threads=2)
    elif kind == "noise":
        engine = Runtime(noisy(PARAMS, CONFIG, 0.7), CONFIG, threads=1)
    elif kind == "another family":
        config = VARIANTS["gpt_neo"]
        engine = Runtime(random_params(config, 6), config, dtype="q4", threads=1)
    else:
        shapes = {"a short context": {"n_ctx": 12}, "a long context": {"n_ctx": 200}, "fifty ids": {"n_vocab": 50}}
        config = tiny_config(**shapes[kind])
        engine = Runtime(random_params(config, 5, "f16"), config, threads=1)
    return SimpleNamespace(engine=engine, tokenizer=tokenizer, mask=mask)


DRAFTS = ["the same", "noise", "another family", "a short context", "spec"]


@pytest.fixture
def eager(monkeypatch):
    """Drafts of five tokens before every pass, whatever they cost and however they fare."""
    monkeypatch.setattr(DraftPace, "length", lambda self, room, n_texts=1: min(5, room))


def watch(model, passes=None):
    """A model like this one, and a list of what its passes are given, or the list to add them to."""
    engine, passes = model.engine, [] if passes is None else passes

    class Watched:
        def __getattr__(self, name):
            return getattr(engine, name)

        def session(self, n_seqs, capacity):
            session = engine.session(n_seqs, capacity)
            step = session.step

            def watched(parts, n_rows=None):
                passes.append([(slot, list(ids)) for slot, ids, _ in parts])
                return step(parts, n_rows)

            session.step = watched
            return session

    return SimpleNamespace(engine=Watched(), tokenizer=model.tokenizer, mask=model.mask), passes


@pytest.mark.parametrize(
    "kind, mask", [*((kind, "causal") for kind in DRAFTS), ("noise", "prefix"), ("a short context", "prefix")]
)
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_text_is_the_same_whatever_drafts_it(eager, kind, mask, settings):
    model, draft = model_of("the same", mask), model_of(kind, mask)
    for prompt, n_new, speculate in zip(PROMPTS, (40, 60, 60, 2), (0, 7, 0, 7), strict=True):
        params = GenerationParams(max_new_tokens=n_new, **settings)
        drafted = GenerationParams(max_new_tokens=n_new, speculate=speculate, **settings)
        assert generate(model, [prompt], drafted, draft) == generate(model, [prompt], params)


@pytest.mark.parametrize("kind", DRAFTS)
@pytest.mark.parametrize("paced", [True, False])
def test_several_texts_at_once_are_drafted_and_the_same(monkeypatch, kind, paced):
    if not paced:
        monkeypatch.setattr(DraftPace, "length", lambda self, room, n_texts=1: min(5, room))
    model, draft = model_of("the same"), model_of(kind)
    for changes in ({}, {"num_return_sequences": 3}):
        params = GenerationParams(max_new_tokens=30, temperature=1, seed=6, **changes)
        assert generate(model, PROMPTS, params, draft) == generate(model, PROMPTS, params)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("mask", ["causal", "prefix"])
def test_the_model_itself_drafts_what_it_will_draw(eager, settings, mask):
    """Rounding aside, which the same kernels do in the same way: penalties, filters and random numbers too."""
    scheduler = Scheduler(model_of("the same", mask), draft=model_of("the same", mask))
    for prompt in PROMPTS:
        scheduler.add(prompt, max_new_tokens=24, ignore_eos=True, **settings)
    while scheduler.busy:
        scheduler.step()
    assert scheduler.n_drafted > 60
    assert scheduler.n_accepted == scheduler.n_drafted


def test_a_slot_of_the_draft_model_passes_from_prompt_to_prompt(eager):
    """A prompt that sees itself must not be taken for the beginning of a longer one."""
    scheduler = Scheduler(model_of("the same", "prefix"), 1, draft=model_of("the same", "prefix"))
    for n, first in ((4, 2), (4, 30), (12, 2), (8, 2), (20, 2), (20, 2)):
        scheduler.add([2, 3, *range(first, first + n - 2)], temperature=0, max_new_tokens=12, ignore_eos=True)
    while scheduler.busy:
        scheduler.step()
    assert scheduler.n_accepted == scheduler.n_drafted > 40


def test_a_good_draft_takes_fewer_passes(eager):
    model, passes = watch(model_of("the same"))
    params = GenerationParams(max_new_tokens=40, temperature=1, seed=1, ignore_eos=True)
    generate(model, [[9, 3]], params, model_of("the same"))
    assert len(passes) == 1 + -(-39 // 6)


def greedy(engine, ids, n):
    """What an engine writes after some ids, computed from scratch for each token."""
    text = list(ids)
    for _ in range(n):
        text.append(int(engine.logits(text)[-1].argmax()))
    return text[len(ids) :]


@pytest.mark.parametrize("kind", ["noise", "another family"])
def test_after_a_rejection_the_draft_model_goes_on_from_the_text(eager, kind):
    """Were its cache wrong, texts would stay the same, and only the drafts worse."""
    model, draft = model_of("the same"), model_of(kind)
    watched, passes = watch(model)
    prompt = PROMPTS[0]
    params = GenerationParams(max_new_tokens=40, temperature=0, ignore_eos=True)
    text = [*prompt, *generate(watched, [prompt], params, draft)[0].ids]
    n, rejected = len(prompt), 0
    for ((_, (last, *drafted)),) in passes[1:]:
        n += 1
        assert text[n - 1] == last
        assert drafted == greedy(draft.engine, text[:n], len(drafted))
        n_accepted = next((i for i, token in enumerate(drafted) if text[n + i : n + i + 1] != [token]), len(drafted))
        rejected += n_accepted < len(drafted)
        n += n_accepted
    assert n == len(text) - 1
    assert rejected > 3


def test_beyond_its_context_the_draft_model_reads_the_latter_part(eager):
    draft, seen = watch(model_of("a short context"))
    model, passes = watch(model_of("the same"))
    params = GenerationParams(max_new_tokens=50, temperature=0, ignore_eos=True)
    (text,) = generate(model, [[9, 3, 4]], params, draft)
    text = [9, 3, 4, *text.ids]
    n = 3
    for ((_, (last, *drafted)),) in passes[1:]:
        n += 1
        assert text[n - 1] == last
        assert len(drafted) == min(5, len(text) - n - 1)
        # It begins anew with half its context, 6 tokens, and goes on to its end.
        starts = range(max(0, n + len(drafted) - 1 - 12), max(1, n - 5))
        assert any(drafted == greedy(draft.engine, text[start:n], len(drafted)) for start in starts)
        n += next((i for i, token in enumerate(drafted) if text[n + i : n + i + 1] != [token]), len(drafted))
    assert max(len(ids) for parts in seen for _, ids in parts) <= 7  # half its context and a token, not all of it


def test_what_is_found_earlier_in_the_text_goes_first(eager):
    model = model_of("the same")
    draft, seen = watch(model_of("another family"))
    params = GenerationParams(max_new_tokens=30, temperature=0, ignore_eos=True, speculate=7)
    generate(model, [[3, 4] * 8], params, draft)
    n_both = len(seen)
    seen.clear()
    generate(model, [[3, 4] * 8], GenerationParams(max_new_tokens=30, temperature=0, ignore_eos=True), draft)
    assert n_both < len(seen) / 2


def test_texts_that_share_a_prompt_share_it_in_the_draft_model(eager):
    draft, seen = watch(model_of("noise"))
    params = GenerationParams(max_new_tokens=4, num_return_sequences=4, seed=1, ignore_eos=True)
    generate(model_of("the same"), [list(range(1, 49))], params, draft)
    assert sum(len(ids) for parts in seen for _, ids in parts) < 48 + 4 * 16


def test_a_prompt_that_came_before_is_found_again(eager):
    model = model_of("a long context")
    draft, seen = watch(model)
    counts, texts = [], []
    scheduler = Scheduler(model, 1, prefix_cache=PrefixCache(1 << 20), draft=draft)
    prompt, other = np.random.RandomState(0).randint(1, 61, (2, 100)).tolist()
    for ids in (prompt, other, prompt):
        seen.clear()
        scheduler.add(ids, max_new_tokens=4, temperature=0, ignore_eos=True)
        texts.append([event.choice.id for _ in range(99) if scheduler.busy for event in scheduler.step()])
        counts.append(sum(len(ids) for parts in seen for _, ids in parts))
    assert texts[0] == texts[2]
    assert counts[0] == counts[1] > 100
    assert counts[2] == counts[0] - 96  # three whole blocks


def test_a_long_prompt_is_read_in_pieces_while_others_are_written(eager, monkeypatch):
    monkeypatch.setattr(drafting, "ROWS_BESIDE", 16)
    model = model_of("a long context")
    draft, seen = watch(model)
    scheduler = Scheduler(watch(model, seen)[0], 2, draft=draft)
    talking = scheduler.add([3, 4, 5], temperature=0, max_new_tokens=190, ignore_eos=True)
    other = scheduler.add(list(range(1, 61)) * 2, temperature=0, max_new_tokens=30, ignore_eos=True)
    texts = {talking: [], other: []}
    most = 0
    while scheduler.busy:
        seen.clear()
        for event in scheduler.step():
            texts[event.seq].append(event.choice.id)
        most = max(most, sum(len(ids) for parts in seen for _, ids in parts))
    assert 120 <= most <= 140  # the first pass, in which nobody waits
    for request, ids in ((talking, [3, 4, 5]), (other, list(range(1, 61)) * 2)):
        alone = generate(
            model, [ids], GenerationParams(temperature=0, max_new_tokens=len(texts[request]), ignore_eos=True)
        )
        assert texts[request] == alone[0].ids
    assert scheduler.n_drafted == scheduler.n_accepted > 50


def test_the_callers_functions_hear_of_drawn_tokens_only(eager):
    def run(draft):
        calls = []

        def processor(ids, scores):
            calls.append(list(ids))
            return scores - len(calls) * (np.arange(len(scores)) == 7)

        params = GenerationParams(
            max_new_tokens=20,
            temperature=1,
            seed=1,
            ignore_eos=True,
            logits_processor=processor,
            stopping_criteria=lambda ids, row: bool(calls.append(ids)),
        )
        return generate(model_of("the same"), [[9]], params, draft), calls

    assert run(None) == run(model_of("the same")) == run(model_of("noise"))


def test_stop_strings_end_a_drafted_text_where_they_would(eager):
    model = model_of("the same", tokenizer=Letters(61))
    whole = generate(model, [[9, 3]], GenerationParams(max_new_tokens=40, temperature=1, seed=1, ignore_eos=True))[0]
    for start in range(0, 38, 5):
        stop = whole.text[start : start + 2]
        params = GenerationParams(max_new_tokens=40, temperature=1, seed=1, ignore_eos=True, stop=stop)
        want = generate(model, [[9, 3]], params)
        assert generate(model, [[9, 3]], params, model) == want
        assert "".join(loop.stream_text(model, [9, 3], params, draft=model)) == want[0].text


def test_a_draft_model_that_cannot_go_on_is_left_behind(eager, caplog):
    broken = {name: np.full_like(leaf, np.nan) if name == "ln_f_b" else leaf for name, leaf in PARAMS.items()}
    name = next(name for name in broken if name.endswith("ln_w"))
    broken[name] = np.full_like(broken[name], np.nan)
    engine = SpecEngine(family_of(CONFIG).Params.from_leaves(broken, CONFIG.n_layer), CONFIG)
    draft = SimpleNamespace(engine=engine, tokenizer=None, mask="causal")
    params = GenerationParams(max_new_tokens=20, temperature=1, seed=1, ignore_eos=True)
    with caplog.at_level(logging.WARNING, "refgpt"):
        drafted = generate(model_of("the same"), PROMPTS, params, draft)
    assert drafted == generate(model_of("the same"), PROMPTS, params)
    assert len(caplog.messages) == 1
    assert "the draft model cannot go on" in caplog.text


def test_a_text_with_ids_that_the_draft_model_lacks_is_not_drafted(eager):
    model = model_of("the same", tokenizer=Letters(61))
    draft = model_of("fifty ids", tokenizer=Letters(50))
    scheduler = Scheduler(model, draft=draft)
    for prompt, drafted in (([9, 55], False), ([9, 3], True)):
        scheduler.add(prompt, temperature=0, max_new_tokens=9, ignore_eos=True)
        while scheduler.busy:
            scheduler.step()
        assert bool(scheduler.n_drafted) is drafted
    for prompt in ([9, 55], [9, 3]):
        params = GenerationParams(max_new_tokens=40, temperature=1, seed=1, ignore_eos=True)
        assert generate(model, [prompt], params, draft) == generate(model, [prompt], params)


def test_ids_that_only_the_draft_model_has_are_not_drafted(eager):
    """A tokenizer may have tokens for which the head has no row."""
    letters = Letters(61)
    model, draft = model_of("fifty ids", tokenizer=letters), model_of("the same", tokenizer=letters)
    params = GenerationParams(max_new_tokens=60, temperature=1.5, seed=1, ignore_eos=True)
    assert generate(model, [[9, 3]], params, draft) == generate(model, [[9, 3]], params)


def test_memory_that_short_texts_left_behind_is_given_back_by_both_models(eager):
    model, draft = model_of("the same"), model_of("noise")
    scheduler = Scheduler(model, 4, 4 * 64 * position_bytes(model.engine, draft.engine), draft=draft)
    sessions = scheduler._session, scheduler._drafter._session
    for asked in ([{"max_new_tokens": 40}] * 4, [{"max_new_tokens": 62, "num_beams": 3}]):
        for one in asked:
            scheduler.add([3, 4], temperature=0, ignore_eos=True, **one)
        used = []
        while scheduler.busy:
            scheduler.step()
            used.append([session.cache.n_blocks_used for session in sessions])
        assert np.max(used) <= 4 and used[-1] == [0, 0]
    assert used[0][0] == 1


@pytest.mark.parametrize(
    "draft, changes, said",
    [
        ("gpt2", {}, "draft: cannot be used; got 'gpt2'; wanted a model"),
        (model_of("noise"), {"num_beams": 2}, "draft: cannot be combined with beam search"),
        (model_of("fifty ids"), {}, "draft: .* got 50 ids"),
    ],
)
def test_what_cannot_draft_is_refused(draft, changes, said):
    with pytest.raises(GenerationError, match=said):
        check_draft(model_of("the same"), draft, GenerationParams(**changes))


def test_beams_beside_drafted_texts_are_what_they_would_be(eager):
    model = model_of("the same")
    scheduler = Scheduler(model, draft=model_of("noise"))
    settings = {"max_new_tokens": 12, "num_beams": 3}
    beams = scheduler.add([9, 3], **settings)
    scheduler.add([9, 4], max_new_tokens=30, seed=1)
    events = [event for _ in range(99) if scheduler.busy for event in scheduler.step()]
    (want,) = generate(model, [[9, 3]], GenerationParams(**settings))
    assert [event.choice.id for event in events if event.seq == beams] == want.ids
    assert scheduler.n_drafted


def test_generate_and_stream_of_a_model_take_a_draft_model(eager, monkeypatch):
    model = refgpt.load()
    drafted = []
    learn = DraftPace.learn
    monkeypatch.setattr(DraftPace, "learn", lambda self, *given: drafted.append(given) or learn(self, *given))
    settings = {"max_new_tokens": 12, "seed": 1, "temperature": 0.7, "top_p": 0.9}
    want = model.generate("Once upon a time", **settings)
    assert model.generate("Once upon a time", draft=model, **settings) == want
    assert "".join(model.stream("Once upon a time", draft=model, **settings)) == want.text
    assert drafted == [(5, 5), (4, 4)] * 2
    for call in (model.generate, model.stream):
        with pytest.raises(GenerationError, match=r"^draft: cannot be used"):
            call("Once", draft="gpt2")
    with pytest.raises(GenerationError, match=r"^draft: cannot be combined with beam search"):
        model.generate("Once", draft=model, num_beams=2)


def test_a_constrained_text_is_drafted_with_tokens_that_may_follow(eager):
    pytest.importorskip("llguidance")
    model = refgpt.load()
    settings = {"constraint": refgpt.regex(r"[a-z]{3}(, [a-z]{3}){4,9}\\."), "max_new_tokens": 60, "seed": 1}
    want = model.generate("Three letters each: ", **settings)
    assert model.generate("Three letters each: ", draft=model, **settings) == want
    scheduler = refgpt.Scheduler(model, draft=model)
    scheduler.add("Three letters each: ", **settings)
    while scheduler.busy:
        scheduler.step()
    assert scheduler.n_drafted - 5 <= scheduler.n_accepted > 10


def test_requests_may_come_and_go_while_others_are_drafted(eager):
    """Slots pass from text to text, and texts of different contexts share the draft model's session."""
    model, draft, rng = model_of("the same"), model_of("a short context"), np.random.RandomState(0)
    scheduler = Scheduler(model, 3, draft=draft)
    asked, texts = {}, {}
    for _ in range(400):
        if len(asked) < 25 and rng.rand() < 0.4:
            prompt = rng.randint(1, 61, rng.randint(1, 40)).tolist()
            params = GenerationParams(
                max_new_tokens=int(rng.randint(1, 30)), seed=len(asked), speculate=int(rng.randint(0, 2)) * 5
            )
            number = scheduler.add(prompt, params)
            asked[number], texts[number] = (prompt, params), []
        if asked and rng.rand() < 0.02:
            scheduler.cancel(int(rng.choice(list(asked))))
        for event in scheduler.step():
            texts[event.seq].append(event)
    assert not scheduler.busy
    for number, (prompt, params) in asked.items():
        want = generate(model, [prompt], params)[0].ids
        got = [event.choice.id for event in texts[number]]
        ended = bool(texts[number]) and texts[number][-1].finish_reason is not None
        assert got == (want if ended else want[: len(got)])
    assert scheduler.n_drafted
