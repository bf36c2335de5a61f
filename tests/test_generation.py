"""Generation over the spec and over a scripted engine whose next token is known."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgpt._common.errors import GenerationError
from refgpt.generation import scheduler
from refgpt.generation.loop import generate, generate_events, stream_text
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompts import encode_prompt, is_batch
from refgpt.generation.sampling import log_softmax
from refgpt.generation.scheduler import MOST_TOGETHER
from refgpt.generation.stopping import Transcript
from refgpt.numbers.dtypes import KV_DTYPES
from refgpt.runtime.cache import KVCache
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec import forward
from refgpt.tokenizers import Tokenizer
from tests.helpers.small_tokenizers import spaced_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=0, bos_id=1, n_ctx=24)
PARAMS = random_params(CONFIG, seed=5)


class Letters(Tokenizer):
    """One token a byte of "abc...", one for the two halves of é each, and one that spells a word."""

    def __init__(self, eos_id=None):
        halves = "é".encode()
        spelt = [
            b"<end>",
            *(bytes([byte]) for byte in b"abcdefghijklmnopqrstuvwxyz .\n"),
            halves[:1],
            halves[1:],
            b"stopping",
        ]
        super().__init__(dict(enumerate(spelt)), eos_id)

    def _encode(self, text, special=True):
        return [next(i for i, spelt in self._tokens.items() if spelt == bytes([byte])) for byte in text.encode()]


class Scripted:
    """An engine that continues every prompt with the same ids, and keeps what it was asked."""

    def __init__(self, script, config=CONFIG):
        self.config, self.script, self.prefills, self.together = config, script, [], []

    kv_dtype = "f32"

    def session(self, n_seqs, capacity):
        self.n_seqs, self.capacity, self.position = n_seqs, capacity, [-1] * n_seqs
        return self

    def step(self, parts, n_rows):
        rows, n_decoded = [], 0
        for (seq, ids, prefix_len), n in zip(parts, n_rows, strict=True):
            if self.position[seq] < 0:
                self.prefills.append((seq, list(ids), prefix_len))
                assert n == 1
            else:
                n_decoded += 1
                assert [self.script[self.position[seq]]] == list(ids)
            rows.append(self._row(seq))
        if n_decoded:
            self.together.append(n_decoded)
        return np.stack(rows)

    def release(self, seq):
        self.position[seq] = -1

    def _row(self, seq):
        self.position[seq] += 1
        row = np.zeros(self.config.n_vocab, np.float32)
        row[self.script[self.position[seq]]] = 30
        return row


def model_of(engine, tokenizer=None, mask="causal"):
    return SimpleNamespace(engine=engine, tokenizer=tokenizer, mask=mask)


def run(model, prompts, **params):
    settings, config = GenerationParams(**params), model.engine.config
    encoded = [encode_prompt(prompt, config, model.tokenizer, settings) for prompt in prompts]
    return generate(model, encoded, settings)


def scripted(text, **params):
    """Generate from a model that wants to write ``text``, then end."""
    tokenizer = Letters()
    ids = tokenizer.encode(text) if isinstance(text, str) else text
    return run(model_of(Scripted([*ids, 0, 0, 0]), tokenizer), ["a"], temperature=0, **params)[0]


SPEC = model_of(SpecEngine(PARAMS, CONFIG, np.float64))


def test_greedy_follows_the_argmax_of_the_whole_text():
    (got,) = run(SPEC, [[3, 4, 5]], temperature=0, max_new_tokens=8, ignore_eos=True, logprobs=2)
    rows = forward(PARAMS, CONFIG, [3, 4, 5, *got.ids])
    assert got.ids == rows[2:10].argmax(-1).tolist()
    assert got.logprobs == pytest.approx([log_softmax(row)[i] for row, i in zip(rows[2:], got.ids, strict=False)])
    assert [next(iter(top)) for top in got.top_logprobs] == got.ids
    assert (got.text, got.finish_reason, got.n_prompt) == ("", "length", 3)


def test_a_prompt_sees_itself_whole_with_the_prefix_mask():
    model = model_of(SPEC.engine, mask="prefix")
    (got,) = run(model, [[3, 4, 5]], temperature=0, max_new_tokens=6, ignore_eos=True)
    rows = forward(PARAMS, CONFIG, [3, 4, 5, *got.ids], prefix_len=3)
    assert got.ids == rows[2:8].argmax(-1).tolist()
    assert got.ids != run(SPEC, [[3, 4, 5]], temperature=0, max_new_tokens=6, ignore_eos=True)[0].ids


def test_a_seeded_prompt_is_the_same_alone_and_in_company():
    prompts = [[i % 61, (7 * i) % 61, 3][: 1 + i % 3] for i in range(MOST_TOGETHER + 5)]
    params = {"seed": 11, "max_new_tokens": 5, "temperature": 1.5, "logprobs": 1}
    together = run(SPEC, prompts, **params)
    for prompt, got in zip(prompts, together, strict=True):
        assert run(SPEC, [prompt], **params) == [got]
    assert len({tuple(got.ids) for got in together}) > 10
    assert {got.finish_reason for got in together} == {"length", "stop"}


def test_sequences_are_decoded_together_and_make_room_for_those_in_line():
    engine = Scripted([5, 6, 7, 0])
    n = MOST_TOGETHER + 2
    got = run(model_of(engine), [[i] for i in range(n)], temperature=0, max_new_tokens=9)
    assert [one.ids for one in got] == [[5, 6, 7, 0]] * n
    assert engine.n_seqs == MOST_TOGETHER
    assert engine.together == [MOST_TOGETHER] * 3 + [2] * 3
    assert [ids for _, ids, _ in engine.prefills] == [[i] for i in range(n)]
    assert engine.capacity == 10


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("affordable, together", [(0.5, 1), (1, 1), (2.9, 2), (7, 5)])
def test_caches_together_stay_within_a_budget(kv_dtype, affordable, together, monkeypatch):
    engine = Scripted([5, 6, 7, 0])
    engine.kv_dtype = kv_dtype
    cache = KVCache(CONFIG, 1, 16, kv_dtype)
    one = (cache.k.nbytes + cache.v.nbytes) * 10 // 16  # a prompt of 1 and 9 new tokens
    monkeypatch.setattr(scheduler, "MOST_CACHE", int(affordable * one))
    got = run(model_of(engine), [[i] for i in range(5)], temperature=0, max_new_tokens=9)
    assert [one.ids for one in got] == [[5, 6, 7, 0]] * 5
    assert together == max(engine.together)


def test_prompts_that_end_at_once_make_room_too():
    n = MOST_TOGETHER + 2
    got = run(model_of(Scripted([0])), [[i] for i in range(n)], temperature=0)
    assert [(one.ids, one.finish_reason) for one in got] == [([0], "stop")] * n


@pytest.mark.parametrize("end", [9, 4, 7, 0])
def test_any_of_several_ids_ends_a_text(end):
    config = tiny_config(eos_id=9, further_eos_ids=(4, 7), n_ctx=24)
    model = model_of(Scripted([2, end, 3, 3], config), Letters(eos_id=0))
    (got,) = run(model, ["a"], temperature=0, max_new_tokens=3)
    assert (got.ids, got.finish_reason) == ([2, end], "stop")
    (got,) = run(model, ["a"], temperature=0, max_new_tokens=3, ignore_eos=True)
    assert (got.ids, got.finish_reason) == ([2, end, 3], "length")


def test_end_of_text_ends_and_can_be_ignored():
    ended = scripted("abc", max_new_tokens=5)
    assert (ended.text, ended.finish_reason, ended.ids) == ("abc", "stop", [1, 2, 3, 0])
    assert scripted("abc", max_new_tokens=5, ignore_eos=True).text == "abc<end><end>"
    by_tokenizer = run(model_of(Scripted([4, 9, 4]), Letters(eos_id=9)), ["a"], temperature=0)[0]
    assert (by_tokenizer.ids, by_tokenizer.text) == ([4, 9], "d")


@pytest.mark.parametrize(
    "stop, text",
    [
        ("lo", "hel"),
        (["xyz", "lo w"], "hel"),
        (["world", "orl"], "hello w"),  # completed first, though it begins later
        (["ld", "world"], "hello "),  # completed by one character: the longer
        ("h", ""),
        ("hello world.", "hello world"),
        ([], "hello world"),
    ],
)
def test_stop_strings_across_tokens(stop, text):
    got = scripted("hello world", stop=stop)
    assert (got.text, got.finish_reason) == (text, "stop")
    assert Letters().decode(got.ids).startswith(text)


def test_a_stop_string_inside_a_token():
    word = Letters().n_vocab - 1  # "stopping"
    got = scripted([1, word, 1], stop="opp")
    assert (got.text, got.ids) == ("ast", [1, word])


def test_nothing_that_may_become_a_stop_string_is_shown_early():
    model = model_of(Scripted([*Letters().encode("ab abc"), 0]), Letters())
    events = list(generate_events(model, [[1]], GenerationParams(temperature=0, stop="abc")))
    assert [event.text for event in events] == ["", "", "ab ", "", "", ""]
    assert [event.finish_reason for event in events] == [None] * 5 + ["stop"]


def test_held_text_comes_out_at_the_end():
    assert scripted("xab", stop="abc").text == "xab"
    limited = scripted("xabc", stop="abcd", max_new_tokens=3)
    assert (limited.text, limited.finish_reason) == ("xab", "length")


def test_what_was_held_comes_out_when_ctrl_c_ends_it():
    class Interrupted(Scripted):
        def step(self, parts, n_rows):
            if self.together == [1, 1]:
                raise KeyboardInterrupt
            return super().step(parts, n_rows)

    model = model_of(Interrupted(Letters().encode("xabab")), Letters())
    pieces = stream_text(model, [1], GenerationParams(temperature=0, stop="abc"))
    shown = []
    with pytest.raises(KeyboardInterrupt):
        shown.extend(pieces)
    assert shown == ["x", "ab"]


def test_characters_are_never_cut():
    model = model_of(Scripted([*Letters().encode("é"), 30, 0]), Letters())
    events = list(generate_events(model, [[1]], GenerationParams(temperature=0)))
    assert [event.text for event in events] == ["", "é", "", "\N{REPLACEMENT CHARACTER}"]


def test_a_character_that_the_prompt_begins_is_completed():
    first, second = Letters().encode("é")
    model = model_of(Scripted([second, 1, 0]), Letters())
    assert run(model, [[1, first]], temperature=0)[0].text == "éa"
    assert run(model, [[1, 60, first]], temperature=0)[0].text == "éa"  # 60 is an id of the head's alone


@pytest.mark.parametrize("stop, text", [(None, " upon a time"), (" upon", ""), ("upon", " ")])
def test_the_space_before_a_continuation_is_kept(stop, text, tmp_path):
    """Though the tokenizer drops the one at the start of a text."""
    tokenizer = spaced_tokenizer(tmp_path)
    prompt, whole = tokenizer.encode("Once"), tokenizer.encode("Once upon a time")
    assert whole[: len(prompt)] == prompt and tokenizer.decode(whole[len(prompt) :]) == "upon a time"
    script = [*whole[len(prompt) :], tokenizer.eos_id]
    assert run(model_of(Scripted(script), tokenizer), ["Once"], temperature=0, stop=stop)[0].text == text
    assert run(model_of(Scripted([*whole, tokenizer.eos_id]), tokenizer), [""], temperature=0)[0].text == (
        "Once upon a time"
    )


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.data())
def test_text_does_not_depend_on_how_it_is_cut_into_tokens(text, stops, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    decoder = SimpleNamespace(push=pieces.__getitem__, finish=lambda: "")
    transcript = Transcript(decoder, stops)
    shown = [transcript.push(i) for i in range(len(pieces))] + [transcript.finish()]
    ends = [end for end in range(len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    longest = max((len(stop) for stop in stops if ends and text[: ends[0]].endswith(stop)), default=0)
    assert "".join(shown) == (text[: ends[0] - longest] if ends else text)
    assert transcript.stopped == bool(ends)


def test_ids_that_the_tokenizer_lacks_are_never_drawn():
    tokenizer = Letters()
    model = model_of(SPEC.engine, tokenizer)
    (got,) = run(model, ["abc"], temperature=5.0, seed=1, max_new_tokens=20, ignore_eos=True)
    assert max(got.ids) < tokenizer.n_vocab < CONFIG.n_vocab


def test_ids_in_a_gap_of_the_vocabulary_are_never_drawn():
    """Though the model likes them best: here the ids 3 to 29 do not exist."""
    letters = Letters()
    letters.exists[3:30] = False
    row = np.linspace(0, 1, CONFIG.n_vocab, dtype=np.float32)
    row[3:30] = 100
    engine = Scripted([5])
    engine._row = lambda seq: row
    for params in ({"temperature": 0}, {"seed": 1}, {"seed": 1, "top_k": 20}, {"seed": 1, "top_p": 0.5}):
        (got,) = run(model_of(engine, letters), ["a"], max_new_tokens=1, logprobs=50, **params)
        assert letters.exists[got.ids[0]]
        assert set(got.top_logprobs[0]) == set(np.flatnonzero(letters.exists))


def test_an_empty_prompt_starts_from_no_id_beyond_the_head():
    config = tiny_config(eos_id=None, bos_id=None, n_ctx=24)
    with pytest.raises(GenerationError, match="the prompt is empty"):
        run(model_of(Scripted([2, 2], config), Letters(eos_id=config.n_vocab)), [""], max_new_tokens=1)


def test_a_full_context_ends_with_length():
    (got,) = run(SPEC, [[1] * 20], temperature=0, max_new_tokens=100, ignore_eos=True)
    assert (len(got.ids), got.finish_reason) == (CONFIG.n_ctx - 20, "length")


@pytest.mark.parametrize("n", [24, 25, 5000])
def test_a_prompt_without_room_for_a_token_is_refused(n):
    with pytest.raises(GenerationError, match=f"got {n} tokens; wanted at most 23; give a shorter.*--truncate left"):
        run(SPEC, [[1] * n])


@pytest.mark.parametrize("truncate", [None, "left"])
def test_a_context_of_one_position_has_no_room(truncate):
    model = model_of(Scripted([5], tiny_config(n_ctx=1, bos_id=1)))
    with pytest.raises(GenerationError, match=r"one position.*logits") as error:
        run(model, [[1]], truncate=truncate)
    assert "truncate" not in str(error.value)


def test_the_longest_prompt_that_fits():
    assert len(run(SPEC, [[1] * 23], ignore_eos=True)[0].ids) == 1


@pytest.mark.parametrize(
    "n, max_new_tokens, kept", [(30, 4, 20), (30, 100, 12), (10, 100, 10), (21, 4, 20), (20, 4, 20)]
)
def test_truncation_drops_the_beginning(n, max_new_tokens, kept):
    params = GenerationParams(truncate="left", max_new_tokens=max_new_tokens)
    assert encode_prompt(list(range(n)), CONFIG, None, params) == list(range(n))[-kept:]


def test_an_empty_prompt_starts_from_the_beginning_of_text():
    assert encode_prompt([], CONFIG, None, GenerationParams()) == [CONFIG.bos_id]
    assert encode_prompt("", tiny_config(), Letters(eos_id=7), GenerationParams()) == [7]
    with pytest.raises(GenerationError, match="prompt is empty"):
        encode_prompt([], tiny_config(), None, GenerationParams())


def test_what_is_one_prompt_and_what_are_several():
    assert [is_batch(one) for one in ("ab", "", [1, 2], (1, 2), np.array([1, 2]))] == [False] * 5
    assert [is_batch(many) for many in (["ab"], [[1], "b"], [[]], np.ones((2, 3), int))] == [True] * 4
    assert is_batch(np.zeros((3, 0), int))
    for bad in (
        5,
        None,
        b"abc",
        bytearray(b"abc"),
        memoryview(b"abc"),
        [b"abc"],
        ["a", bytearray(b"b")],
        {"a": 1},
        [1, "a"],
        np.array(5),
    ):
        with pytest.raises(GenerationError, match="prompt"):
            is_batch(bad)
    for empty in ([], (), np.array([]), np.zeros((0, 3), int)):
        with pytest.raises(GenerationError, match=r"an empty list; give '' or \[\[\]\] for an empty prompt"):
            is_batch(empty)


@pytest.mark.parametrize("ids", [[61], [-1], [1.5], [True], [[1]], [None]])
def test_ids_that_do_not_exist_are_refused(ids):
    with pytest.raises(GenerationError):
        run(SPEC, [ids])


def test_text_needs_a_tokenizer():
    with pytest.raises(GenerationError, match="prompt is text, and this model has no tokenizer"):
        run(SPEC, ["hello"])
    with pytest.raises(GenerationError, match="stop strings are text, and this model has no tokenizer"):
        run(SPEC, [[1]], stop="x")


BAD = [
    ("max_new_tokens", 0),
    ("max_new_tokens", 1.0),
    ("stop", [""]),
    ("stop", ""),
    ("stop", [3]),
    ("stop", 3),
    ("truncate", "right"),
    ("truncate", ["left"]),
    ("temperature", -1),
    ("ignore_eos", "x"),
    ("ignore_eos", None),
]


@pytest.mark.parametrize("name, value", BAD)
def test_parameters_that_make_no_sense_are_named(name, value):
    with pytest.raises(GenerationError, match=f"^{name}: cannot be used"):
        GenerationParams(**{name: value})


def test_nothing_is_computed_for_text_that_is_not_asked_for():
    engine = Scripted([5, 6, 7, 0])
    events = generate_events(model_of(engine), [[1]], GenerationParams(temperature=0))
    next(events)
    events.close()
    assert engine.together == []
