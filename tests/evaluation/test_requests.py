"""Requests and answers against what lm-eval's Hugging Face backend made of the same texts, and GPT-J's own protocol."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import DataError, GenerationError
from refgpt.evaluation.answering import Scored, answers, prefixes_are_shared
from refgpt.evaluation.requests import GPT_J, LM_EVAL, Framing, Likelihoods, Text, encode_pair, encode_pairs, windows
from refgpt.generation import GenerationParams, score
from tests.helpers.evaluation_models import END, GOLDENS, MODELS, model_named

FOUND = json.loads(GOLDENS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=MODELS)
def named(request, tmp_path_factory):
    """A small model, and what lm-eval's Hugging Face backend found with its weights."""
    model = model_named(request.param, tmp_path_factory.mktemp("model"))
    return model, FOUND[request.param]


def test_likelihoods_are_those_of_the_hugging_face_backend(named):
    model, found = named
    pairs = [tuple(pair) for pair, _ in found["loglikelihood"]]
    requests = encode_pairs(pairs, LM_EVAL, model.config, model.tokenizer)
    got = [pair for answer in answers(model, requests) for pair in zip(answer.sums, answer.greedy, strict=True)]
    assert len(requests) < len(pairs) == len(got)  # some share a context
    for pair, (value, greedy), (_, want) in zip(pairs, got, found["loglikelihood"], strict=True):
        assert value == pytest.approx(want[0], abs=2e-3), pair
        assert greedy == want[1], pair
    assert {True, False} == {greedy for _, greedy in got}
    assert any(len(one.prompt) + len(one.continuations[0]) == model.config.n_ctx + 1 for one in requests) or (
        model.config.n_ctx > 300
    )


def test_long_texts_are_cut_into_the_windows_of_the_hugging_face_backend(named):
    model, found = named
    for text, want in found["rolling"]:
        requests = windows(model.tokenizer.encode(text), [END], model.config.n_ctx)
        assert sum(answer.sums[0] for answer in answers(model, requests)) == pytest.approx(want, abs=2e-3), text


def test_each_token_is_predicted_once_with_all_the_context_there_is():
    for n in (1, 4, 5, 7, 8, 9):
        ids = list(range(10, 10 + n))
        found, n_predicted = windows(ids, [0], 4), 0
        for one in found:
            (predicted,) = one.continuations
            assert predicted == ids[n_predicted : n_predicted + 4] and len(one.prompt) + len(predicted) <= 5
            if n_predicted:  # a full context, of the tokens right before
                assert one.prompt == ids[n_predicted + len(predicted) - 5 : n_predicted]
            n_predicted += len(predicted)
        assert n_predicted == n and found[0].prompt == [0]
    assert windows([], [0], 4) == []


def test_answers_do_not_depend_on_what_else_is_asked(named):
    """Nor on their order, on what is shared, and on whether texts are written between: the same bits."""
    model, found = named
    pairs = [tuple(pair) for pair, _ in found["loglikelihood"]]
    requests = encode_pairs(pairs, LM_EVAL, model.config, model.tokenizer)
    alone = [score(model, one.prompt, one.continuations, True) for one in requests]
    text = Text([5, 6, 7], GenerationParams(max_new_tokens=6, seed=3, ignore_eos=True))
    mixed = [text, *requests[::-1], text, *requests]
    got = list(answers(model, mixed))
    assert got[0] == got[1 + len(requests)] == model.generate([5, 6, 7], text.params)
    for found_answers, want in ((got[1 : 1 + len(requests)][::-1], alone), (got[2 + len(requests) :], alone)):
        for answer, known in zip(found_answers, want, strict=True):
            assert isinstance(answer, Scored)
            for one, greedy, (values, was_greedy) in zip(answer.logprobs, answer.greedy, known, strict=True):
                assert (one == values).all() and greedy == was_greedy


def test_what_prompts_share_is_computed_once(tmp_path):
    model = model_named("three layers", tmp_path)
    examples = list(range(1, 200))
    requests = [Likelihoods([*examples, i], [[3, 4], [5]]) for i in range(1, 9)]
    n_rows = []
    session = model.engine.session

    def counting(*arguments):
        made = session(*arguments)
        step = made.step
        made.step = lambda parts, n: n_rows.append(sum(len(ids) for _, ids, _ in parts)) or step(parts, n)
        return made

    object.__setattr__(model.engine, "session", counting)
    got = list(answers(model, requests))
    assert prefixes_are_shared([one.prompt for one in requests])
    assert 200 <= sum(n_rows) < 200 + 8 * 16  # not 8 * 200; of 200 tokens 192 are whole blocks
    alone = score(refgpt.load(tmp_path), requests[7].prompt, requests[7].continuations)
    assert all((a == b).all() for a, b in zip(got[7].logprobs, alone, strict=True))
    assert not prefixes_are_shared([[1, 2, 3], [4, 5, 6]]) and not prefixes_are_shared([])


def test_gpt_js_protocol(tmp_path):
    """The end-of-text token first, texts cleaned and encoded apart, and no token beyond the context."""
    model = model_named("short context", tmp_path)
    config, tokenizer = model.config, model.tokenizer
    encode = tokenizer.encode
    bare = replace(GPT_J, ftfy=False)
    assert encode_pair("The mill ", "stood", bare, config, tokenizer) == ([END, *encode("The mill ")], encode("stood"))
    assert encode_pair("", " stood", bare, config, tokenizer) == ([END], encode(" stood"))
    assert encode_pair("<|endoftext|>The", " mill", bare, config, tokenizer)[0] == [END, *encode("The")]
    prompt, ids = encode_pair("x" * 200, " stood", bare, config, tokenizer)
    assert len(prompt) + len(ids) == config.n_ctx
    prompt, ids = encode_pair("x" * 200, " stood", LM_EVAL, config, tokenizer)
    assert len(prompt) + len(ids) == config.n_ctx + 1
    assert encode_pair("The mi", "ll", LM_EVAL, config, tokenizer) != encode_pair(
        "The mi", "ll", bare, config, tokenizer
    )


def test_texts_are_cleaned_with_ftfy(tmp_path):
    pytest.importorskip("ftfy", reason='needs the extra "eval"')
    clean = GPT_J.cleaner()
    assert clean("“I’ll wait” in the cafÃ© \ufb01ve") == '"I\'ll wait" in the café five'
    model = model_named("short context", tmp_path)
    (got,) = encode_pairs([("“Who”", " cafÃ©")], GPT_J, model.config, model.tokenizer, clean)
    assert got == Likelihoods([END, *model.tokenizer.encode('"Who"')], [model.tokenizer.encode(" café")])


def test_without_ftfy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ftfy", None)
    with pytest.raises(DataError, match=r'ftfy: .* not installed; pip install "refgpt\[eval\]"'):
        GPT_J.cleaner()
    assert LM_EVAL.cleaner()("“x”") == "“x”"


@pytest.mark.parametrize(
    "context, continuation, said",
    [
        ("The", "", "has no tokens of its own; got 0 tokens"),
        ("The", "x" * 41, "is too long; got 41 tokens; wanted 1 to 40"),
        ("", "", "has no tokens of its own"),
    ],
)
def test_what_cannot_be_asked_is_said(tmp_path, context, continuation, said):
    model = model_named("short context", tmp_path)
    with pytest.raises(GenerationError, match=said):
        encode_pair(context, continuation, LM_EVAL, model.config, model.tokenizer)


def test_a_framing_is_checked():
    with pytest.raises(DataError, match="seam: cannot be used"):
        Framing("between")
    with pytest.raises(DataError, match="ftfy: cannot be used; got 1; wanted True or False"):
        Framing(ftfy=1)
    model = SimpleNamespace(mask="causal", engine=SimpleNamespace(config=MODELS["short context"][0], kv_dtype="f32"))
    assert list(answers(model, [])) == []


def test_a_prompt_that_sees_itself_whole_ends_where_its_continuation_begins(tmp_path):
    """GPT-JT's mask: what stands in the continuation changes nothing before it."""
    model = model_named("three layers", tmp_path, mask="prefix")
    pairs = [("The cat sat by the mill", " and slept"), ("The cat sat by the mill", " and ran")]
    (request,) = encode_pairs(pairs, LM_EVAL, model.config, model.tokenizer)
    (got,) = answers(model, [request])
    whole = [*request.prompt, *request.continuations[0]]
    rows = model.logits(whole, len(request.prompt))[len(request.prompt) - 1 : -1].astype(np.float64)
    rows -= np.log(np.exp(rows - rows.max(1, keepdims=True)).sum(1, keepdims=True)) + rows.max(1, keepdims=True)
    assert got.sums[0] == pytest.approx(rows[np.arange(len(rows)), request.continuations[0]].sum(), abs=1e-9)
