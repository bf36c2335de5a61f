"""Byte-level BPE: exact merges, exact inverse, the added tokens, and whatever a tokenizer.json asks for besides."""

import itertools
import json
import os

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from refgpt._common.errors import TokenizerError
from refgpt.tokenizers import load_tokenizer
from refgpt.tokenizers.byte_level_bpe import BYTE_OF_LETTER
from tests import goldens
from tests.helpers.small_tokenizers import SENTENCES, write_json, write_pair

EXTRA = {f"<|extratoken_{n}|>": 319 + n for n in range(1, 144)}
fragments = st.sampled_from(
    ["<|endoftext|>", "<|extratoken_1|>", "<|extratoken_143|>", "<|", " the", "n't", "\n\n", "Mühle"]
)
texts = st.lists(st.one_of(st.text(), fragments)).map("".join)


def merge_by_hand(word: str, description: dict) -> list[int]:
    """BPE as one would explain it: letters, then the most urgent merge until none applies."""
    letter_of_byte = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}
    parts = [letter_of_byte[byte] for byte in word.encode()]
    ranks = {tuple(merge): rank for rank, merge in enumerate(description["model"]["merges"])}
    while known := [pair for pair in itertools.pairwise(parts) if pair in ranks]:
        first = min(known, key=ranks.__getitem__)
        at = next(n for n in range(len(parts)) if tuple(parts[n : n + 2]) == first)
        parts[at : at + 2] = ["".join(first)]
    return [description["model"]["vocab"][part] for part in parts]


def test_the_alphabet_is_gpt2s():
    assert sorted(BYTE_OF_LETTER) == sorted(ByteLevel.alphabet())
    assert sorted(BYTE_OF_LETTER.values()) == list(range(256))
    spelt = {
        text: ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text) for text in map(chr, range(256))
    }
    for text, [(letters, _)] in spelt.items():
        assert bytes(BYTE_OF_LETTER[letter] for letter in letters) == text.encode()


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_two_files_are_the_same_tokenizer_as_one(names, trained, byte_level, tmp_path):
    pair = load_tokenizer(write_pair(tmp_path, trained, names))
    assert (pair.n_vocab, pair.eos_id) == (byte_level.n_vocab, byte_level.eos_id) == (320, 0)
    for text in [*SENTENCES, "a<|endoftext|> b", ""]:
        assert pair.encode(text) == byte_level.encode(text)
    for name in names:  # either file may be named
        assert load_tokenizer(tmp_path / name).n_vocab == 320


@given(word=st.one_of(st.sampled_from(" ".join(SENTENCES).split()), st.text("abcdefghilmnorst", min_size=1)))
def test_merges_are_exact(word, trained, byte_level):
    letters_only = "".join(filter(str.isalpha, word))
    assert byte_level.encode(letters_only) == merge_by_hand(letters_only, trained)
    assert byte_level.encode(" " + letters_only) == merge_by_hand(" " + letters_only, trained)


@given(text=texts)
def test_every_text_comes_back(text, byte_level):
    assert byte_level.decode(byte_level.encode(text)) == text


@given(text=texts)
def test_added_tokens_are_found_in_the_text(text, gptj_like):
    ids = gptj_like.encode(text)
    assert gptj_like.decode(ids) == text
    assert [i for i in ids if i >= 320 or i == 0] == [
        ({"<|endoftext|>": 0} | EXTRA)[token] for token in _special_tokens_in(text)
    ]


def _special_tokens_in(text: str) -> list[str]:
    found = []
    while starts := {text.find(token): token for token in ["<|endoftext|>", *EXTRA] if token in text}:
        found.append(starts[min(starts)])
        text = text[min(starts) + len(found[-1]) :]
    return found


@pytest.fixture(scope="module")
def gptj_like(trained, tmp_path_factory):
    directory = write_pair(tmp_path_factory.mktemp("gptj_like"), trained)
    return load_tokenizer(write_json(directory, "added_tokens.json", dict(reversed(EXTRA.items()))))


def test_gptjs_extra_tokens(gptj_like, byte_level):
    assert gptj_like.n_vocab == 320 + 143
    assert gptj_like.encode("the <|extratoken_143|>end") == [
        *byte_level.encode("the "),
        320 + 142,
        *byte_level.encode("end"),
    ]
    assert gptj_like.decode([320, 462, 0]) == "<|extratoken_1|><|extratoken_143|><|endoftext|>"


def test_added_tokens_decode_to_their_text_and_not_to_letters(trained, tmp_path):
    directory = write_pair(tmp_path, trained)
    tokenizer = load_tokenizer(write_json(directory, "added_tokens.json", {"Ġé": 320, "a b": 321}))
    assert tokenizer.encode("xĠéy") == [*tokenizer.encode("x"), 320, *tokenizer.encode("y")]
    assert tokenizer.decode([320, 321]) == "Ġéa b"


def test_added_tokens_beside_a_tokenizer_json_complete_it(description, tmp_path):
    write_json(tmp_path, "tokenizer.json", description)
    tokenizer = load_tokenizer(write_json(tmp_path, "added_tokens.json", {"<|endoftext|>": 0, "<more>": 400}))
    assert tokenizer.encode("<more><|endoftext|>") == [400, 0]
    assert tokenizer.n_vocab == 401
    for gap in (320, 399):
        with pytest.raises(TokenizerError, match=f"no such id; got {gap}; wanted a whole number from 0 to 400"):
            tokenizer.decode([gap])


def test_flags_of_added_tokens_are_honoured(description, tmp_path):
    flags = {"single_word": False, "normalized": False, "special": False}
    description["added_tokens"] += [
        {"id": 320, "content": "<eats-left>", "lstrip": True, "rstrip": False, **flags},
        {"id": 321, "content": "<eats-right>", "lstrip": False, "rstrip": True, **flags},
    ]
    tokenizer = load_tokenizer(write_json(tmp_path, "tokenizer.json", description))
    a, b = tokenizer.encode("a"), tokenizer.encode("b")
    assert tokenizer.encode("a  <eats-left>b") == [*a, 320, *b]
    assert tokenizer.encode("a<eats-right>  b") == [*a, 321, *b]


@pytest.mark.parametrize(
    ("files", "eos_id"),
    [
        ({}, 0),
        ({"special_tokens_map.json": {"eos_token": "!"}}, "!"),
        ({"special_tokens_map.json": {"eos_token": {"content": "!", "lstrip": False}}}, "!"),
        ({"tokenizer_config.json": {"eos_token": "!"}}, "!"),
        ({"tokenizer_config.json": {"eos_token": "#"}, "special_tokens_map.json": {"eos_token": "!"}}, "!"),
        ({"tokenizer_config.json": {"eos_token": "</s>"}}, 0),
        ({"tokenizer_config.json": {"eos_token": None}, "special_tokens_map.json": {}}, 0),
    ],
)
def test_eos(files, eos_id, trained, tmp_path):
    write_json(tmp_path, "tokenizer.json", trained)
    for name, value in files.items():
        write_json(tmp_path, name, value)
    assert load_tokenizer(tmp_path).eos_id == trained["model"]["vocab"].get(eos_id, eos_id)


def test_no_eos(description, tmp_path):
    vocab = description["model"]["vocab"]
    vocab["<|start|>"] = vocab.pop("<|endoftext|>")
    description["added_tokens"] = []
    assert load_tokenizer(write_json(tmp_path, "tokenizer.json", description)).eos_id is None


def test_eos_is_matched_in_text_though_no_file_lists_it_as_added(description, tmp_path):
    description["added_tokens"] = []
    assert load_tokenizer(write_json(tmp_path, "tokenizer.json", description)).encode("<|endoftext|>") == [0]


def test_nothing_is_cut_padded_added_or_left_to_chance(trained, byte_level, tmp_path):
    library = tokenizers.Tokenizer.from_str(json.dumps(trained))
    library.enable_truncation(4)
    library.enable_padding(length=50, pad_id=7)
    library.post_processor = tokenizers.processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    library.model.dropout = 0.9
    write_json(tmp_path, "tokenizer.json", json.loads(library.to_str()))
    write_json(tmp_path, "tokenizer_config.json", {"model_max_length": 1024})
    tokenizer = load_tokenizer(tmp_path)
    long = " ".join(SENTENCES * 50)
    assert tokenizer.encode(long) == byte_level.encode(long)
    assert len(tokenizer.encode(long)) > 1024
    assert tokenizer.encode("toad") == byte_level.encode("toad")
    assert tokenizer.encode("") == []


def _old_form(description):
    del description["model"]["type"]
    description["model"] |= {"unk_token": "", "continuing_subword_prefix": "", "end_of_word_suffix": ""}
    description["model"]["merges"] = [" ".join(merge) for merge in description["model"]["merges"]]


def _sequence(description):
    step = {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Isolated", "invert": False}
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [step, description["pre_tokenizer"]]}


@pytest.mark.parametrize("change", [_old_form, _sequence])
def test_other_ways_to_write_the_same(change, description, byte_level, tmp_path):
    change(description)
    tokenizer = load_tokenizer(write_json(tmp_path, "tokenizer.json", description))
    for text in SENTENCES:
        assert tokenizer.encode(text) == byte_level.encode(text)


def test_merges_with_windows_line_ends_and_without_the_version_line(trained, byte_level, tmp_path):
    write_pair(tmp_path, trained)
    lines = (tmp_path / "merges.txt").read_text("utf-8").splitlines()[1:]
    (tmp_path / "merges.txt").write_bytes("\r\n".join(lines).encode())
    for text in SENTENCES:
        assert load_tokenizer(tmp_path).encode(text) == byte_level.encode(text)


def test_two_files_are_split_into_words_before_they_are_merged(description, tmp_path):
    description["model"]["merges"].insert(0, ["e", "Ġ"])
    description["model"]["vocab"]["eĠ"] = 320
    assert 320 not in load_tokenizer(write_pair(tmp_path, description)).encode("the mill, she said")


def test_ignore_merges_is_honoured(description, tmp_path):
    description["model"]["vocab"]["Ġzq"] = 320
    assert 320 not in load_tokenizer(write_json(tmp_path, "tokenizer.json", description)).encode("a zq")
    description["model"]["ignore_merges"] = True
    assert 320 in load_tokenizer(write_json(tmp_path, "tokenizer.json", description)).encode("a zq")


def test_a_token_with_other_characters_than_letters_is_plain_text(description, tmp_path):
    description["model"]["vocab"] |= {"a b": 320, "€é": 321}
    assert load_tokenizer(write_json(tmp_path, "tokenizer.json", description)).decode([320, 321]) == "a b€é"


def test_a_merge_may_begin_with_a_hash(description, tmp_path):
    description["model"]["merges"].insert(0, ["#", "#"])
    description["model"]["vocab"]["##"] = 320
    assert load_tokenizer(write_pair(tmp_path, description)).encode("##") == [320]


def test_a_character_that_no_token_spells_is_an_error_and_not_lost(description, tmp_path):
    vocab, merges = description["model"]["vocab"], description["model"]["merges"]
    description["model"]["merges"] = [merge for merge in merges if not set("".join(merge)) & {"<", "Z"}]
    for letter in ("<", "Z"):
        del vocab[letter]
    tokenizer = load_tokenizer(write_json(tmp_path, "tokenizer.json", description))
    assert tokenizer.decode(tokenizer.encode("well<|endoftext|>mill")) == "well<|endoftext|>mill"
    with pytest.raises(TokenizerError, match="no token spells this character; got 'Z' at position 4"):
        tokenizer.encode("fuzzZ")


GOLDENS = json.loads((goldens.HERE / "gpt2_tokens.json").read_text("utf-8"))


@pytest.mark.skipif(
    "REFGPT_GPT2_VOCAB" not in os.environ, reason="REFGPT_GPT2_VOCAB names no directory with GPT-2's vocabulary"
)
def test_gpt2s_own_vocabulary():
    tokenizer = load_tokenizer(os.environ["REFGPT_GPT2_VOCAB"])
    assert tokenizer.encode("hello\n\nhello") == [31373, 198, 198, 31373]
    assert tokenizer.eos_id == 50256
    for text, ids in GOLDENS:
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text
