"""What the small tokenizers of these tests are made of, and how they are written as models ship them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from refgpt.tokenizers import Tokenizer, load_tokenizer

SENTENCES = [
    "In the garden behind the mill there lived an old toad, and nobody knew how old.",
    "She said: \"I'll wait by the well until the rain is over; the ducks don't mind.\"",
    "Seven times 7 is 49, and the miller's daughter counted them   twice.",
    "Où est le crapaud? Im Garten, über der Mühle, sagte die Kröte.",
]

#: All ways in which a sentencepiece model may treat the spaces at the start of a text.
SENTENCEPIECE_FLAGS: dict[str, dict[str, Any]] = {
    "keeps all": {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "user_defined_symbols": ["\n"]},
    "dummy prefix": {"add_dummy_prefix": True, "remove_extra_whitespaces": False},
    "dummy prefix, no extra": {"add_dummy_prefix": True, "remove_extra_whitespaces": True},
    "no extra": {"add_dummy_prefix": False, "remove_extra_whitespaces": True},
}


def sentencepiece_model(name: str) -> bytes:
    """A serialised model with one of ``SENTENCEPIECE_FLAGS``, trained in an instant."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=340,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
        **SENTENCEPIECE_FLAGS[name],
    )
    return model.getvalue()


def spaced_tokenizer(directory: Path) -> Tokenizer:
    """A sentencepiece tokenizer of a few words, which puts a space before every text."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Once upon a time"] * 9),
        model_prefix=str(directory / "tokenizer"),
        vocab_size=30,
        model_type="bpe",
        add_dummy_prefix=True,
        minloglevel=2,
    )
    return load_tokenizer(directory)


def byte_level_bpe() -> tokenizers.Tokenizer:
    """A byte-level BPE of 320 tokens, trained in an instant; its first token is "<|endoftext|>"."""
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=letters, show_progress=False
    )
    library.train_from_iterator(SENTENCES * 2, trainer)
    return library


def write_json(directory: Path, name: str, value: object) -> Path:
    (directory / name).write_text(json.dumps(value), encoding="utf-8")
    return directory


def write_pair(
    directory: Path, description: dict[str, Any], names: tuple[str, str] = ("vocab.json", "merges.txt")
) -> Path:
    """The same tokenizer as vocabulary and merges."""
    merges = "".join(f"{left} {right}\n" for left, right in description["model"]["merges"])
    (directory / names[1]).write_text("#version: 0.2\n" + merges, encoding="utf-8")
    return write_json(directory, names[0], description["model"]["vocab"])


class Letters(Tokenizer):
    """Each id a letter."""

    def __init__(self, n, changed=()):
        super().__init__({i: chr(0x100 + i).encode() for i in range(n)} | dict(changed), None)

    def _encode(self, text, special=True):
        return [ord(letter) - 0x100 for letter in text]
