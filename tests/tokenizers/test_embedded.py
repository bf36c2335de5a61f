"""Tokenizers of the vocabularies that ggml and GGUF files bring: with merges the same as from the model's own files,
without them greedy, which is said aloud."""

import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from refgpt._common.errors import TokenizerError
from refgpt.tokenizers import load_tokenizer, tokenizer_of
from refgpt.tokenizers.byte_level_bpe import BYTE_OF_LETTER
from refgpt.tokenizers.greedy import GreedyTokenizer
from refgpt.tokenizers.vocabulary import Vocabulary
from tests.helpers.small_tokenizers import SENTENCES, write_json, write_pair
from tests.helpers.work import little_work

N_EXTRA = 3
texts = st.lists(
    st.one_of(st.text(), st.sampled_from([*SENTENCES, "<|endoftext|>", "<|extratoken_2|>", "<|", "  ", " the", "ü"]))
).map("".join)


def plain(letters):
    return bytes(BYTE_OF_LETTER[letter] for letter in letters)


@pytest.fixture(scope="session")
def spelt(trained):
    """Token by id, in letters, with GPT-J's extra tokens at the end."""
    by_id = sorted(trained["model"]["vocab"].items(), key=lambda item: item[1])
    return [letters for letters, _ in by_id] + [f"<|extratoken_{n + 1}|>" for n in range(N_EXTRA)]


@pytest.fixture(scope="session")
def merges(trained):
    return tuple(" ".join(pair) for pair in trained["model"]["merges"])


@pytest.fixture(scope="session")
def original(trained, spelt, tmp_path_factory):
    """The tokenizer of the model's own files."""
    directory = write_pair(tmp_path_factory.mktemp("original"), trained)
    write_json(directory, "added_tokens.json", {token: n for n, token in enumerate(spelt) if n >= 320})
    return load_tokenizer(directory)


@pytest.fixture
def vocabulary(spelt, merges, tmp_path):
    def build(in_letters=False, merges=merges, tokens=None, special=None, eos_id=0):
        tokens = spelt if tokens is None else tokens
        stored = (token.encode() if in_letters else plain(token) for token in tokens)
        return Vocabulary(tuple(stored), in_letters, merges, special, eos_id, tmp_path / "model.bin")

    return build


def assert_same(got, want, texts=SENTENCES):
    assert (got.n_vocab, got.eos_id) == (want.n_vocab, want.eos_id)
    assert (got.exists == want.exists).all()
    for text in [*texts, "a<|endoftext|> b<|extratoken_2|>", "", "\n \t  é\U0001f600"]:
        assert got.encode(text) == want.encode(text)
        assert got.decode(got.encode(text)) == text
    for token_id in range(want.n_vocab):
        assert got.token_bytes(token_id) == want.token_bytes(token_id)


@pytest.mark.parametrize("special", [None, frozenset([0, 320, 321, 322])])
@pytest.mark.parametrize("in_letters", [False, True])
def test_merges_in_the_file(vocabulary, original, tmp_path, in_letters, special, caplog):
    assert_same(tokenizer_of(vocabulary(in_letters, special=special), tmp_path), original)
    assert not caplog.records


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_file_inside_is_no_larger_than_one_beside(vocabulary, tmp_path, name):
    inside = replace(vocabulary(), files={name: b" " * ((8 << 20) + 1)})
    with pytest.raises(
        TokenizerError, match=rf"model\.bin, {name}: .*far too large.*got 8388609 bytes; wanted at most"
    ):
        tokenizer_of(inside, tmp_path)


def test_merges_beside_the_file(vocabulary, original, trained, tmp_path, caplog):
    write_pair(tmp_path, trained)
    (tmp_path / "vocab.json").unlink()
    found = tokenizer_of(vocabulary(merges=None), tmp_path)
    assert_same(found, original)
    assert found.describe() == "byte-level BPE, 323 ids, from the vocabulary in model.bin and merges.txt"
    assert not caplog.records


def test_a_whole_tokenizer_beside_the_file(vocabulary, original, trained, tmp_path, caplog):
    write_json(tmp_path, "tokenizer.json", trained)
    write_json(tmp_path, "added_tokens.json", {f"<|extratoken_{n + 1}|>": 320 + n for n in range(N_EXTRA)})
    found = tokenizer_of(vocabulary(merges=None), tmp_path)
    assert_same(found, original)
    assert found.describe() == "byte-level BPE, 323 ids, from tokenizer.json, added_tokens.json"
    assert not caplog.records


def test_another_models_tokenizer_beside_the_file_is_not_used(vocabulary, trained, spelt, tmp_path, caplog):
    vocab = trained["model"]["vocab"]
    swapped = vocab | {spelt[100]: 101, spelt[101]: 100}
    write_json(tmp_path, "tokenizer.json", trained | {"model": trained["model"] | {"vocab": swapped}})
    assert isinstance(tokenizer_of(vocabulary(merges=None), tmp_path), GreedyTokenizer)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "greedily" in record.getMessage() and "another model's" in record.getMessage()


def test_without_merges_the_longest_token_counts_and_that_is_said(vocabulary, tmp_path, caplog):
    tokens = ["<|endoftext|>", *"abcd", "ab", "bcd", "abc", "\u0120a", "\u0120"]
    greedy = tokenizer_of(vocabulary(merges=None, tokens=tokens), tmp_path)
    (record,) = caplog.records
    assert re.search(r"model\.bin has a vocabulary but no merges.*greedily.*merges\.txt", record.getMessage())
    assert greedy.encode("abcd") == [7, 4]  # "abc" "d", although "a" "bcd" would also do
    assert greedy.encode("ab abab") == [5, 8, 2, 5]  # words first: " abab" begins with " a"
    assert greedy.encode("b<|endoftext|>a") == [2, 0, 1]
    assert greedy.decode([7, 4, 0]) == "abcd<|endoftext|>" and greedy.eos_id == 0
    with pytest.raises(TokenizerError, match=r"no token spells this.*'xy'"):
        greedy.encode("abxy")
    with pytest.raises(TokenizerError, match="no such id"):
        greedy.decode([10])


@given(text=texts)
def test_greedy_is_what_ggml_describes(text, spelt):
    """Words by GPT-2's pattern, of each the longest beginning that is a token, and so on; by another road."""
    greedy = GreedyTokenizer(dict(enumerate(map(plain, spelt))), 0, Path("model.bin"))
    ids = greedy.encode(text)
    assert greedy.decode(ids) == text
    want = []
    for piece in re.split(r"(<\|(?:endoftext|extratoken_[123])\|>)", text):
        if re.fullmatch(r"<\|\w+\|>", piece):
            want.append(spelt.index(piece))
            continue
        for letters, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(piece) if piece else ():
            while letters:
                best = max((token for token in spelt if letters.startswith(token)), key=len)
                want.append(spelt.index(best))
                letters = letters[len(best) :]
    assert ids == want


def test_what_only_looks_like_a_special_token_is_text(vocabulary, tmp_path):
    greedy = tokenizer_of(vocabulary(merges=None, tokens=["<|b|>", *"<|ab>", "<|", "|>"]), tmp_path)
    assert greedy.encode("<|a|><|b|>|>") == [6, 3, 7, 0, 7]
    assert greedy.encode("<|a<|b|>") == [6, 3, 0] and greedy.encode("<||b|>") == [6, 2, 4, 7]
    assert greedy.encode("<|b|><|b|>") == [0, 0]


def test_a_long_token_is_looked_for_only_where_it_may_begin():
    class Counted(dict):
        n_asked = 0

        def __contains__(self, token):
            Counted.n_asked += 1
            return super().__contains__(token)

    tokens = [b"a", b"b", b"ab", b"x" * 200, b"y" * 300]
    tokenizer = GreedyTokenizer(dict(enumerate(tokens)), None, Path("here"))
    tokenizer._ids = Counted(tokenizer._ids)
    assert tokenizer.encode("ab" * 500 + "ba" + "x" * 200) == [2] * 500 + [1, 0, 3]
    assert Counted.n_asked < 510
    with pytest.raises(TokenizerError, match="the text: no token spells this; got b'yyyy"):
        tokenizer.encode("y" * 300)  # longer than any that is looked for


def test_many_special_tokens_take_little_work():
    n = 200_000
    with little_work():
        greedy = GreedyTokenizer({i: b"<|%x|>" % i for i in range(n)}, 0, Path("model.bin"))
        assert greedy.encode("<|7|><|1f|>" * 1000) == [7, 31] * 1000


def test_a_long_word_takes_little_work(spelt):
    greedy = GreedyTokenizer(dict(enumerate(map(plain, spelt))), 0, Path("model.bin"))
    with little_work():
        assert greedy.decode(greedy.encode("ab" * 50_000)) == "ab" * 50_000


def test_ids_that_mean_nothing(vocabulary, spelt, tmp_path):
    """An empty token, one that repeats another, and None: they exist for the model, not for a text."""
    stored = vocabulary(merges=None)
    tokens = (*stored.tokens, b"", stored.tokens[50], None, b"new")
    odd = Vocabulary(tokens, False, None, None, 0, stored.path)
    for merges in (None, ()):
        tokenizer = tokenizer_of(Vocabulary(tokens, False, merges, None, 0, odd.path), tmp_path)
        assert tokenizer.n_vocab == 327 and list(tokenizer.exists[-5:]) == [True, False, False, False, True]
        assert tokenizer.token_bytes(326) == b"new"


def test_damage_is_refused(vocabulary, tmp_path):
    for merges, why in ((("a",), "not two tokens"), (("ab cd",), "not in the vocabulary")):
        with pytest.raises(TokenizerError, match=why):
            tokenizer_of(vocabulary(merges=merges), tmp_path)
    with pytest.raises(TokenizerError, match=r"model\.bin: a token is not UTF-8"):
        tokenizer_of(Vocabulary((b"\xff",), True, (), None, None, tmp_path / "model.bin"), tmp_path)
    with pytest.raises(TokenizerError, match="empty"):
        tokenizer_of(Vocabulary((None, b""), False, None, None, None, tmp_path / "model.bin"), tmp_path)
