"""Sentencepiece models of every kind decode as the library does, id by id."""

import re

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from refgpt._common.errors import TokenizerError
from refgpt.tokenizers import load_tokenizer
from refgpt.tokenizers.sentencepiece_model import SPACE
from tests.helpers.small_tokenizers import SENTENCEPIECE_FLAGS, write_json

kinds = pytest.mark.parametrize("kind", SENTENCEPIECE_FLAGS)
texts = st.lists(st.one_of(st.text(), st.sampled_from([" ", "  ", " toad", "Kröte", "\n", "\0", "🙂"]))).map("".join)


@pytest.fixture(scope="module")
def libraries(sentencepiece_models):
    loaded = {}
    for kind, model in sentencepiece_models.items():
        loaded[kind] = sentencepiece.SentencePieceProcessor()
        loaded[kind].LoadFromSerializedProto(model)
    return loaded


@kinds
@given(text=texts)
def test_whole_texts_as_the_library_has_them(kind, text, pieces, libraries):
    ids = pieces[kind].encode(text)
    assert ids == libraries[kind].encode(text)
    assert pieces[kind].decode(ids) == libraries[kind].decode(ids)


@kinds
@given(data=st.data())
def test_any_ids_as_the_library_has_them(kind, data, pieces, libraries):
    """But for how many U+FFFD stand for one broken sequence, and control tokens in the midst of a character."""
    library = libraries[kind]
    often = [library.piece_to_id(SPACE), library.piece_to_id(SPACE + "t"), library.unk_id(), library.eos_id()]
    ids = data.draw(st.lists(st.one_of(st.sampled_from(often), st.integers(0, library.get_piece_size() - 1))))
    want = library.decode([i for i in ids if not library.is_control(i)])
    got = pieces[kind].decode(ids)
    assert re.sub("\ufffd+", "\ufffd", got) == re.sub("\ufffd+", "\ufffd", want)


@pytest.mark.parametrize("kind", ["keeps all", "dummy prefix"])
@given(text=texts)
def test_every_text_comes_back_except_the_sign_for_a_space(kind, text, pieces):
    assert pieces[kind].decode(pieces[kind].encode(text)) == text.replace(SPACE, " ")


@kinds
def test_control_tokens_decode_to_nothing_and_the_unknown_token_to_its_mark(kind, pieces, libraries):
    library = libraries[kind]
    assert pieces[kind].decode([library.bos_id(), library.eos_id()]) == ""
    assert pieces[kind].decode([library.unk_id()]) == " ⁇ "
    a = library.piece_to_id("a")
    assert pieces[kind].decode([a, library.eos_id(), a]) == "aa"


def test_bytes(pieces, libraries):
    byte = libraries["keeps all"].piece_to_id("<0x00>")
    euro = [byte + value for value in "€".encode()]
    assert pieces["keeps all"].decode(euro) == "€"
    assert pieces["keeps all"].decode(euro[:2]) == "\ufffd"
    assert pieces["keeps all"].decode([*euro[:2], byte + ord("A")]) == "\ufffdA"


@pytest.mark.parametrize(
    ("named", "want"),
    [(None, "</s>"), ("<s>", "<s>"), ({"content": "<s>"}, "<s>"), ("<none such>", "</s>")],
)
def test_eos(named, want, sentencepiece_models, libraries, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_models["keeps all"])
    write_json(tmp_path, "special_tokens_map.json", {"eos_token": named})
    assert load_tokenizer(tmp_path).eos_id == libraries["keeps all"].piece_to_id(want)


def test_a_model_without_eos(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a toad and a duck"]),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=20,
        model_type="bpe",
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    assert load_tokenizer(tmp_path).eos_id is None


@kinds
def test_ids_outside_the_model_are_refused(kind, pieces):
    assert pieces[kind].n_vocab == 340
    for token_id in (-1, 340, np.int64(340)):
        with pytest.raises(TokenizerError, match="no such id"):
            pieces[kind].decode([token_id])
