"""Text and ids as every tokenizer treats them: types, ids that do not exist, and streams."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgpt._common.errors import TokenizerError
from refgpt.tokenizers.byte_level_bpe import BYTE_OF_LETTER
from tests.helpers.small_tokenizers import SENTENCEPIECE_FLAGS, SENTENCES


@pytest.fixture(scope="session")
def all_tokenizers(byte_level, pieces):
    return {"byte-level": byte_level, **pieces}


every = pytest.mark.parametrize("kind", ["byte-level", *SENTENCEPIECE_FLAGS])


def stream(tokenizer, ids):
    decoder = tokenizer.stream_decoder()
    return [*(decoder.push(token_id) for token_id in ids), decoder.finish()]


@every
@given(data=st.data())
def test_a_stream_is_the_whole_in_pieces(kind, data, all_tokenizers):
    tokenizer = all_tokenizers[kind]
    ids = data.draw(st.lists(st.integers(0, tokenizer.n_vocab - 1)))
    parts = stream(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids)
    for n in range(len(ids)):  # what has been said is never taken back
        assert tokenizer.decode(ids).startswith("".join(parts[: n + 1]))


@every
@given(text=st.text(st.sampled_from("aé€🙂 \n")))
def test_text_comes_as_soon_as_it_is_certain(kind, text, all_tokenizers):
    tokenizer = all_tokenizers[kind]
    ids = tokenizer.encode(text)
    decoder, said = tokenizer.stream_decoder(), ""
    for n, token_id in enumerate(ids):
        said += decoder.push(token_id)
        assert said == tokenizer.decode(ids[: n + 1]).removesuffix("\ufffd")
    assert decoder.finish() == ""


def test_never_half_a_character(byte_level, trained):
    spelt = {byte: trained["model"]["vocab"][letter] for letter, byte in BYTE_OF_LETTER.items()}
    ids = [spelt[byte] for byte in "a🙂€".encode()]
    assert stream(byte_level, ids) == ["a", "", "", "", "🙂", "", "", "€", ""]
    assert stream(byte_level, ids[:3]) == ["a", "", "", "\ufffd"]
    assert stream(byte_level, [ids[1], ids[0]]) == ["", "\ufffda", ""]
    assert stream(byte_level, [spelt[0xFF], spelt[0x80]]) == ["\ufffd", "\ufffd", ""]  # certain at once to be no UTF-8
    for data in (b"\xe2\x82A", b"\xf0\x80\x80", b"\xed\xa0\x80", b"\xc3\xc3\xa9"):
        assert byte_level.decode([spelt[byte] for byte in data]) == data.decode("utf-8", "replace")


@every
def test_numpy_integers_are_ids(kind, all_tokenizers):
    tokenizer = all_tokenizers[kind]
    ids = tokenizer.encode(SENTENCES[0])
    for dtype in (np.int64, np.int32, np.uint16):
        assert tokenizer.decode(np.array(ids, dtype)) == tokenizer.decode(ids)
    assert tokenizer.decode(iter(ids)) == tokenizer.decode(ids)
    assert tokenizer.decode([]) == ""


@every
@pytest.mark.parametrize("bad", [-1, 10**30, True, np.bool_(True), 1.0, np.float32(1), "1", None, [1]], ids=repr)
def test_what_is_no_id_is_refused(kind, bad, all_tokenizers):
    tokenizer = all_tokenizers[kind]
    for use in (lambda: tokenizer.decode([3, bad]), lambda: tokenizer.stream_decoder().push(bad)):
        with pytest.raises(
            TokenizerError, match=f"no such id; got .*; wanted a whole number from 0 to {tokenizer.n_vocab - 1}"
        ):
            use()
    with pytest.raises(TokenizerError, match="these are no ids"):
        tokenizer.decode(3)


@every
def test_a_refused_id_leaves_the_stream_as_it_was(kind, all_tokenizers):
    tokenizer = all_tokenizers[kind]
    ids = tokenizer.encode(" 🙂")
    decoder, said = tokenizer.stream_decoder(), ""
    for token_id in ids:
        with pytest.raises(TokenizerError):
            decoder.push(tokenizer.n_vocab)
        said += decoder.push(token_id)
    assert said + decoder.finish() == tokenizer.decode(ids)


@every
@pytest.mark.parametrize("bad", [None, b"toad", 7, ["toad"]], ids=repr)
def test_only_text_is_encoded(kind, bad, all_tokenizers):
    with pytest.raises(TokenizerError, match=f"only text can be encoded; got {type(bad).__name__}; wanted str"):
        all_tokenizers[kind].encode(bad)


@every
def test_lone_surrogates_are_refused(kind, all_tokenizers):
    with pytest.raises(TokenizerError, match=r"lone surrogate; got '\\ud83d' at position 3"):
        all_tokenizers[kind].encode("abc\ud83d")
