"""Small models on which the command line is tested."""

from __future__ import annotations

from pathlib import Path

from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=0, bos_id=0)
PARAMS = random_params(CONFIG, seed=2, dtype="f16")


def write_tiny(folder: Path) -> str:
    """A GPT-J with a token for each character, in float16. -> its path"""
    return str(write_tokenizer(write_model(folder / "tiny", CONFIG, PARAMS)))


def write_both_ways(folder: Path) -> str:
    """The same weights with GPT-JT's mask and without a tokenizer. -> its path"""
    return str(write_model(folder / "both_ways", CONFIG, PARAMS, prefix=True))
