"""What results depend on: a run that resumes must notice whatever would change them."""

from __future__ import annotations

import json
from types import SimpleNamespace

from refgpt.generation.identity import identity_digest, model_identity, tokenizer_digest
from refgpt.tokenizers import load_tokenizer


def word_tokenizer(directory, letters):
    """A byte-level BPE of single letters, in this order."""
    directory.mkdir()
    (directory / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return load_tokenizer(directory)


def test_another_tokenizer_of_the_same_size_is_noticed(tmp_path):
    one, other = word_tokenizer(tmp_path / "one", "abc"), word_tokenizer(tmp_path / "other", "bac")
    assert one.describe() == other.describe() and one.encode("a") != other.encode("a")

    def digest(tokenizer):
        engine = SimpleNamespace(identity=lambda: {"weights": "w"})
        return identity_digest(model_identity(SimpleNamespace(engine=engine, tokenizer=tokenizer, mask="causal")))

    again = load_tokenizer(tmp_path / "one")
    assert digest(one) == digest(again) and len({digest(one), digest(other), digest(None)}) == 3
    assert tokenizer_digest(None) is None
