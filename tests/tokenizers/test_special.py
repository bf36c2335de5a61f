"""``encode(text, special=False)``: strings of special tokens in somebody's text are text."""

from __future__ import annotations

from pathlib import Path

from refgpt.tokenizers import Tokenizer, load_tokenizer
from refgpt.tokenizers.greedy import GreedyTokenizer
from tests.helpers.small_tokenizers import write_json

END = "<|endoftext|>"
TEXT = f"a toad{END} by the well {END}{END}"


def check(tokenizer: Tokenizer, end: int, text: str = TEXT, name: str = END) -> None:
    assert tokenizer.encode(text).count(end) == text.count(name)
    plain = tokenizer.encode(text, special=False)
    assert end not in plain and tokenizer.decode(plain) == text
    harmless = "Kröte  🙂 <| |> <|endoftext"
    assert tokenizer.encode(harmless, special=False) == tokenizer.encode(harmless)


def test_byte_level_bpe(byte_level: Tokenizer) -> None:
    assert byte_level.eos_id is not None
    check(byte_level, byte_level.eos_id)


def test_greedy(byte_level: Tokenizer) -> None:
    tokens = {n: byte_level.token_bytes(n) for n in range(byte_level.n_vocab)}
    assert byte_level.eos_id is not None
    check(GreedyTokenizer(tokens, byte_level.eos_id, Path("vocab.bin")), byte_level.eos_id)


def test_sentencepiece(tmp_path: Path, sentencepiece_models: dict[str, bytes]) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_models["keeps all"])
    entries = {"340": {"content": "<user>", "special": True}, "341": {"content": "toad!", "special": False}}
    write_json(tmp_path, "tokenizer_config.json", {"added_tokens_decoder": entries})
    tokenizer = load_tokenizer(tmp_path)
    text = "a<user> b toad! c<user>"
    check(tokenizer, 340, text, "<user>")
    assert 341 in tokenizer.encode(text, special=False)  # no special token, but a word of the vocabulary
