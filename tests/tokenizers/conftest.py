"""Small tokenizers, trained in an instant."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from refgpt.tokenizers import Tokenizer, load_tokenizer
from tests.helpers.small_tokenizers import SENTENCEPIECE_FLAGS, byte_level_bpe, sentencepiece_model, write_json


@pytest.fixture(scope="session")
def trained() -> dict[str, Any]:
    """The contents of a tokenizer.json: see ``byte_level_bpe``."""
    description = json.loads(byte_level_bpe().to_str())
    merges = description["model"]["merges"]  # older releases of the library write a pair as one string
    description["model"]["merges"] = [pair.split(" ") if isinstance(pair, str) else pair for pair in merges]
    return description


@pytest.fixture
def description(trained: dict[str, Any]) -> dict[str, Any]:
    """A copy of the same to spoil."""
    return copy.deepcopy(trained)


@pytest.fixture(scope="session")
def byte_level(trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_json(tmp_path_factory.mktemp("byte_level"), "tokenizer.json", trained))


@pytest.fixture(scope="session")
def sentencepiece_models() -> dict[str, bytes]:
    """One serialised model for each of ``SENTENCEPIECE_FLAGS``."""
    return {name: sentencepiece_model(name) for name in SENTENCEPIECE_FLAGS}


@pytest.fixture(scope="session")
def pieces(sentencepiece_models: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """The same models as tokenizers."""
    directory = tmp_path_factory.mktemp("sentencepiece")
    for name, model in sentencepiece_models.items():
        (directory / f"{name}.model").write_bytes(model)
    return {name: load_tokenizer(directory / f"{name}.model") for name in sentencepiece_models}
