"""Scoring continuations, through both engines: what the whole text's forward pass says, blind to what follows."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import GenerationError, TokenizerError
from refgpt.generation import reading, scoring
from refgpt.generation.sampling import log_softmax
from refgpt.generation.scoring import encode_continuations, score
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec import forward
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.small_tokenizers import spaced_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=0, bos_id=0)
PARAMS = random_params(CONFIG, seed=6, dtype="f16")
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
CONTINUATIONS = [[5, 3, 5, 8], [9], [], [5, 3, 7, 9, 3, 2, 3, 8, 4], [5, 3, 5, 8]]
ENGINES = {
    "c": Runtime(PARAMS, CONFIG, threads=2),
    "c, f16 cache": Runtime(PARAMS, CONFIG, threads=1, kv_dtype="f16"),
    "c, q8 cache": Runtime(PARAMS, CONFIG, threads=2, kv_dtype="q8"),
    "numpy": SpecEngine(PARAMS, CONFIG),
    "numpy, f64": SpecEngine(PARAMS, CONFIG, np.float64),
}
each_engine = pytest.mark.parametrize("engine", ENGINES)
each_mask = pytest.mark.parametrize("mask", ["causal", "prefix"])


def model_of(engine, mask="causal", tokenizer=None):
    return SimpleNamespace(engine=ENGINES[engine], mask=mask, tokenizer=tokenizer)


def scored_whole(model, prompt, ids, prefix_len):
    """Log-probabilities from one forward pass over prompt and continuation."""
    rows = model.engine.logits([*prompt, *ids], prefix_len)[len(prompt) - 1 : -1]
    return log_softmax(rows)[np.arange(len(ids)), ids]


@each_engine
@each_mask
def test_a_score_is_what_the_whole_text_says_with_the_prompt_as_prefix(engine, mask):
    model = model_of(engine, mask)
    got = score(model, PROMPT, CONTINUATIONS)
    assert [one.shape for one in got] == [(4,), (1,), (0,), (9,), (4,)]
    for one, ids in zip(got, CONTINUATIONS, strict=True):
        assert one.dtype == np.float64
        want = scored_whole(model, PROMPT, ids, len(PROMPT) if mask == "prefix" else 0)
        assert (one == want).all() if engine.startswith("c") else one == pytest.approx(want, abs=1e-5)
    assert (got[0] == got[4]).all()  # whatever was scored between


@each_mask
def test_all_engines_agree_with_the_oracle(mask):
    rows = [forward(PARAMS, CONFIG, [*PROMPT, *ids], len(PROMPT) if mask == "prefix" else 0) for ids in CONTINUATIONS]
    want = [log_softmax(row[7:-1])[np.arange(len(ids)), ids] for row, ids in zip(rows, CONTINUATIONS, strict=True)]
    for engine in ENGINES:
        got = score(model_of(engine, mask), PROMPT, CONTINUATIONS)
        most = 2e-3 if "f16" in engine else 2e-2 if "q8" in engine else 1e-5
        assert np.concatenate(got) == pytest.approx(np.concatenate(want), abs=most)
    assert np.abs(np.concatenate(want)).std() > 0.3


@each_engine
@pytest.mark.parametrize("changed", [2, 3])
def test_later_tokens_do_not_leak_into_earlier_scores(engine, changed):
    """They would under the mask as GPT-JT's files store it, ones over the whole text: the answer is seen."""
    model, ids = model_of(engine, "prefix"), [5, 3, 5, 8]
    other = [*ids]
    other[changed] = 11
    one, two = score(model, PROMPT, [ids, other])
    assert (one[:changed] == two[:changed]).all() and (one[changed:] != two[changed:]).all()
    naive = [scored_whole(model, PROMPT, text, len(PROMPT) + 4) for text in (ids, other)]
    assert (naive[0][:changed] != naive[1][:changed]).all()


@each_mask
def test_what_generation_reports_is_what_scoring_says(tmp_path, mask):
    model = refgpt.load(write_model(tmp_path, CONFIG, PARAMS), mask=mask)
    got = model.generate(PROMPT, max_new_tokens=12, seed=3, logprobs=True, ignore_eos=True)
    assert model.score(PROMPT, [got.ids])[0].tolist() == got.logprobs


@each_engine
@each_mask
@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_the_prompt_is_computed_once_and_the_last_token_never(engine, mask, at_once, monkeypatch):
    real, passes = ENGINES[engine], []

    def session(n_seqs, capacity):
        made = real.session(n_seqs, capacity)
        step = made.step
        made.step = lambda parts, n_rows: (passes.append((parts, n_rows)), step(parts, n_rows))[1]
        return made

    counted = SimpleNamespace(session=session, config=CONFIG, kv_dtype=real.kv_dtype)
    model = SimpleNamespace(engine=counted, mask=mask, tokenizer=None)
    want = score(model_of(engine, mask), PROMPT, CONTINUATIONS)
    monkeypatch.setattr(scoring, "MOST_TOGETHER", at_once)
    monkeypatch.setattr(reading, "MOST_ROWS_WANTED", 3)
    got = score(model, PROMPT, CONTINUATIONS)
    assert all((a == b).all() for a, b in zip(got, want, strict=True))
    assert sum(len(ids) for parts, _ in passes for _, ids, _ in parts) == 8 + 3 + 0 + 8 + 3
    assert sum(sum(n_rows) for _, n_rows in passes) == 1 + 3 + 0 + 8 + 3
    assert max(max(n_rows) for _, n_rows in passes) == 3
    assert max(len(parts) for parts, _ in passes) == min(at_once, 3)
    if at_once == 16:
        assert len(passes) < 6


@each_engine
def test_whether_each_token_is_the_likeliest(engine):
    likely = [int(ENGINES[engine].logits(PROMPT)[-1].argmax())]
    likely.append(int(ENGINES[engine].logits([*PROMPT, *likely])[-1].argmax()))
    other = (likely[1] + 1) % CONFIG.n_vocab
    texts = [likely, [likely[0], other], [other, likely[1]], [], likely[:1]]
    plain, got = (score(model_of(engine), PROMPT, texts, greedy) for greedy in (False, True))
    assert [is_greedy for _, is_greedy in got] == [True, False, False, True, True]
    assert all((a == b).all() for a, (b, _) in zip(plain, got, strict=True))


def test_nothing_to_score_computes_nothing():
    model = SimpleNamespace(engine=None, mask="causal", tokenizer=None)
    assert score(model, PROMPT, []) == []
    assert [one.shape for one in score(model, PROMPT, [[], []])] == [(0,), (0,)]


def test_logits_that_are_not_finite_are_refused():
    class Broken:
        config, kv_dtype = CONFIG, "f32"

        def session(self, n_seqs, capacity):
            return SimpleNamespace(step=lambda *_: np.array([[0, np.nan, 0]]), release=lambda *_: None)

    with pytest.raises(GenerationError, match="not finite"):
        score(SimpleNamespace(engine=Broken(), mask="causal"), [1], [[0]])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_tokenizer(write_model(tmp_path_factory.mktemp("models") / "tiny", CONFIG, PARAMS))


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_texts_and_ids_score_alike(path, backend):
    model = refgpt.load(path, backend=backend)
    texts = [" fox", " dog", ""]
    ids = [model.tokenizer.encode(text) for text in texts]
    want = model.score(model.tokenizer.encode("The quick"), ids)
    for prompt in ("The quick", model.tokenizer.encode("The quick"), np.array(model.tokenizer.encode("The quick"))):
        for given in (texts, ids, [texts[0], ids[1], ""], tuple(texts)):
            got = model.score(prompt, given)
            assert all((a == b).all() for a, b in zip(got, want, strict=True))


def test_an_empty_prompt_is_the_beginning_of_a_text(path):
    model = refgpt.load(path, backend="numpy")
    want = model.score([CONFIG.bos_id], ["ab"])[0]
    for prompt in ("", []):
        assert (model.score(prompt, ["ab"])[0] == want).all()


def test_a_continuation_is_spelt_as_in_the_whole_text(tmp_path):
    """Though a sentencepiece model puts a space before a text of its own."""
    tokenizer, config = spaced_tokenizer(tmp_path), tiny_config(bos_id=1)
    for prompt, continuation in (("time", "time"), ("Once upon", " a time"), ("", "Once")):
        before = tokenizer.encode(prompt)
        start, (ids,) = encode_continuations(prompt, [continuation], config, tokenizer)
        assert start == (before or [1]) and [*before, *ids] == tokenizer.encode(prompt + continuation)
        _, (alone,) = encode_continuations(before, [continuation], config, tokenizer)
        assert alone == tokenizer.encode(continuation)
        assert (alone != ids) == (continuation == "time")


def test_a_token_that_spans_the_seam_is_not_used():
    tokenizer, config = refgpt.load_tokenizer(refgpt.default_model_path()), tiny_config(n_vocab=4096)
    prompt, continuation = "Once up", "on a time"
    assert tokenizer.encode(prompt + continuation)[: len(tokenizer.encode(prompt))] != tokenizer.encode(prompt)
    start, (ids,) = encode_continuations(prompt, [continuation], config, tokenizer)
    assert (start, ids) == (tokenizer.encode(prompt), tokenizer.encode(continuation))


@pytest.mark.parametrize(
    "prompt, continuations, said",
    [
        ("ab", "cd", "^continuations: cannot be used; got str; wanted a list"),
        ("ab", b"cd", "^continuations: cannot be used; got bytes"),
        ("ab", {"cd": 1}, "^continuations: cannot be used; got dict"),
        ("ab", 5, "^continuations: cannot be used; got int"),
        ("ab", [1, 2], r"^continuations\[0\], ids: ids are not one flat list; got 0"),
        ("ab", ["c", b"d"], r"^continuations\[1\]: cannot be used; got bytes.*decode"),
        ("ab", ["c", bytearray(b"d")], r"^continuations\[1\]: cannot be used; got bytearray"),
        ("ab", ["c", [60, 61]], r"^continuations\[1\], ids\[1\]: the id does not exist"),
        ("ab", [[0.5]], r"^continuations\[0\], ids: ids are not whole"),
        ("ab", [None], r"^continuations\[0\], ids"),
        ("ab", ["c", "d" * 64], r"^continuations\[1\]: is too long .*got 64 tokens after 2 of .*wanted at most 65"),
        ("a" * 65, [], "longer than the model's context"),
        (b"ab", ["c"], "^prompt: cannot be used; got bytes"),
        ([61], ["c"], r"^prompt, ids\[0\]: the id does not exist"),
        (["ab"], ["c"], "^prompt, ids: ids are not whole numbers"),
        (5, ["c"], "^prompt, ids"),
    ],
)
def test_what_cannot_be_scored_is_named_and_nothing_computed(path, monkeypatch, prompt, continuations, said):
    model = refgpt.load(path, backend="numpy")
    monkeypatch.setattr(SpecEngine, "session", lambda *_: pytest.fail("it was computed"))
    with pytest.raises(GenerationError, match=said):
        model.score(prompt, continuations)


def test_the_whole_context_can_be_used(path):
    for backend in ("c", "numpy"):
        (got,) = refgpt.load(path, backend=backend).score("a" * 60, ["bcdef"])
        assert got.shape == (5,)
        (got,) = refgpt.load(path, backend=backend).score("a" * 64, ["b"])
        assert got.shape == (1,)


def test_text_needs_a_tokenizer(tmp_path):
    model = refgpt.load(write_model(tmp_path, CONFIG, PARAMS), backend="numpy")
    with pytest.raises(GenerationError, match="prompt is text, and this model has no tokenizer"):
        model.score("a", [[1]])
    with pytest.raises(GenerationError, match=r"continuations\[1\] is text, and this model has no tokenizer"):
        model.score([1], [[1], "b"])


def test_an_empty_prompt_needs_an_id_to_start_from(tmp_path):
    config = tiny_config()
    model = refgpt.load(write_model(tmp_path, config, PARAMS), backend="numpy")
    with pytest.raises(GenerationError, match="empty"):
        model.score([], [[1]])


def test_a_character_that_cannot_be_spelt_is_the_tokenizers_error(path):
    with pytest.raises(TokenizerError):
        refgpt.load(path, backend="numpy").score("a", ["\ud800"])
