"""A small model with a tokenizer, and texts to train it with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=0)
PAIRS = [
    {"prompt": f"Say {word}!", "completion": f" {word}, {word}."} for word in ("toad", "mill", "well", "rain", "duck")
]


def write_small_model(directory: Path) -> Path:
    """GPT-J of two blocks with a token a character; text ends with id 0."""
    directory.mkdir(parents=True, exist_ok=True)
    return write_tokenizer(write_model(directory, CONFIG, random_params(CONFIG, 5)))


def write_lines(path: Path, records: list[Any]) -> Path:
    """JSONL; a record that is a text is a line as it stands."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
