"""``tokenizer(texts)``: ids as ``encode`` gives them, places as transformers gives them, cut where asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgpt import TokenizerError
from refgpt.tokenizers import load_tokenizer
from refgpt.tokenizers.greedy import GreedyTokenizer
from tests.goldens import HERE
from tests.helpers.small_tokenizers import SENTENCEPIECE_FLAGS, SENTENCES, write_json

GOLDENS = json.loads((HERE / "token_offsets.json").read_text(encoding="utf-8"))
texts = st.lists(st.one_of(st.text(), st.sampled_from([" ", "  ", " toad", "Kröte", "\n", "🙂", "日"]))).map("".join)


@pytest.mark.parametrize("name", GOLDENS["tokenizers"]["changes"])
def test_places_are_those_of_transformers(name, tmp_path):
    description = GOLDENS["tokenizers"]["description"] | GOLDENS["tokenizers"]["changes"][name]
    tokenizer = load_tokenizer(write_json(tmp_path, "tokenizer.json", description))
    cases = [case[1:] for case in GOLDENS["cases"] if case[0] == name]
    assert len(cases) > 40
    found = tokenizer([text for text, _, _ in cases], return_offsets=True)
    assert found["input_ids"] == [ids for _, ids, _ in cases]
    assert found["offset_mapping"] == [[tuple(span) for span in spans] for _, _, spans in cases]


@pytest.fixture(scope="session")
def greedy(byte_level):
    tokens = {n: byte_level.token_bytes(n) for n in range(byte_level.n_vocab)}
    return GreedyTokenizer(tokens, 0, Path("vocab.bin"))


@given(text=texts)
def test_places_hold_the_bytes_of_their_tokens(byte_level, greedy, text):
    """Also of tokens that spell part of a character: together they have exactly its bytes."""
    for tokenizer in (byte_level, greedy):
        found = tokenizer(text, return_offsets=True)
        ids, spans = found["input_ids"], found["offset_mapping"]
        assert ids == tokenizer.encode(text) and len(spans) == len(ids)
        at = 0
        for token_id, (start, stop) in zip(ids, spans, strict=True):
            n_bytes = len(tokenizer.token_bytes(token_id))
            assert text[start:stop].encode().find(tokenizer.token_bytes(token_id)) >= 0
            assert len(text[:start].encode()) <= at and at + n_bytes <= len(text[:stop].encode())
            assert at + n_bytes > len(text[: stop - 1].encode()) and at < len(text[: start + 1].encode())
            at += n_bytes
        assert at == len(text.encode())


@pytest.mark.parametrize("kind", SENTENCEPIECE_FLAGS)
@given(text=texts)
def test_places_of_pieces(kind, text, pieces):
    tokenizer = pieces[kind]
    found = tokenizer(text, return_offsets=True)
    assert found["input_ids"] == tokenizer.encode(text)
    at, run = 0, b""
    for token_id, (start, stop) in zip(found["input_ids"], found["offset_mapping"], strict=True):
        spelt = tokenizer.token_bytes(token_id)
        if len(spelt) == 1 and spelt[0] >= 0x80:  # a byte of a character
            run += spelt
            assert stop == start + 1 and text[start].encode().startswith(run)
            run = b"" if text[start].encode() == run else run
            at = start if run else stop
            continue
        assert at <= start <= stop <= len(text) and not run
        assert text[at:start].strip(" ") == ""  # spaces that the model takes away
        if start == stop:
            assert spelt == b" "  # put before the text
        else:
            said = text[start:stop].replace("\u2581", " ")
            assert said.strip(" ") == spelt.decode().strip(" ") or tokenizer._library.is_unknown(token_id)
        at = stop


def test_places_around_added_tokens(tmp_path, sentencepiece_models):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_models["dummy prefix"])
    entry = {"content": "<mark>", "lstrip": True, "rstrip": False, "single_word": False, "special": False}
    write_json(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": {"340": entry}})
    tokenizer = load_tokenizer(tmp_path)
    text = "Die Kröte  <mark> im<mark>日"
    found = tokenizer(text, return_offsets=True)
    assert found["input_ids"] == tokenizer.encode(text)
    marks = [span for i, span in zip(*found.values(), strict=True) if i == 340]
    assert [text[start:stop] for start, stop in marks] == ["  <mark>", "<mark>"]
    assert found["offset_mapping"][-3:] == [(26, 27)] * 3
    assert all(
        a[1] <= b[0] or a == b for a, b in zip(found["offset_mapping"], found["offset_mapping"][1:], strict=False)
    )


def test_texts_are_cut_at_either_end(byte_level):
    whole = byte_level(SENTENCES, return_offsets=True)
    for n in (1, 5, 10_000):
        right = byte_level(SENTENCES, truncation=True, max_length=n, return_offsets=True)
        left = byte_level(SENTENCES, truncation=True, max_length=n, truncation_side="left", return_offsets=True)
        for name in ("input_ids", "offset_mapping"):
            assert right[name] == [one[:n] for one in whole[name]]
            assert left[name] == [one[-n:] for one in whole[name]]


def test_one_text_gives_one_list(byte_level):
    assert byte_level("toad") == {"input_ids": byte_level.encode("toad")}
    assert byte_level(["toad"]) == {"input_ids": [byte_level.encode("toad")]}
    assert byte_level([]) == {"input_ids": []} and byte_level([], return_offsets=True)["offset_mapping"] == []
    assert byte_level("") == {"input_ids": []} and byte_level(iter(["a", "b"]))["input_ids"][1] == byte_level.encode(
        "b"
    )
    assert (
        len(byte_level("<|endoftext|>")["input_ids"])
        == 1
        < len(byte_level("<|endoftext|>", special=False)["input_ids"])
    )


@pytest.mark.parametrize(
    "given, options, where",
    [
        (5, {}, "texts"),
        (b"toad", {}, "texts"),
        (["toad", 5], {}, r"texts\[1\]"),
        (["toad", "\ud800"], {}, r"texts\[1\]"),
        ("\ud800", {}, "the text"),
        ("toad", {"truncation": True}, "truncation, max_length"),
        ("toad", {"max_length": 5}, "truncation, max_length"),
        ("toad", {"truncation": True, "max_length": 0}, "max_length"),
        ("toad", {"truncation": "longest_first", "max_length": 1}, "truncation"),
        ("toad", {"truncation": True, "max_length": 1, "truncation_side": "middle"}, "truncation_side"),
        ("toad", {"return_offsets": 1}, "return_offsets"),
    ],
)
def test_what_cannot_be_used_is_refused(byte_level, given, options, where):
    with pytest.raises(TokenizerError, match=where):
        byte_level(given, **options)
