"""Small models with a byte-level tokenizer, for comparing with lm-evaluation-harness, and the handmade data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import refgpt
from tests.goldens import HERE
from tests.helpers.model_files import write_model
from tests.helpers.tiny import random_params, tiny_config

DATA = Path(__file__).parents[1] / "data" / "evaluation"
TOKENIZER = HERE / "lm_eval" / "tokenizer"
GOLDENS = HERE / "lm_eval" / "results.json"
#: Tokens of the tokenizer; the models' heads have some more rows.
N_TOKENS = 400
END = 0

SHAPE: dict[str, Any] = {"n_vocab": N_TOKENS + 16, "bos_id": END, "eos_id": END}
#: Name, shape, seed and dtype of each model. The first has so small a context that most texts are too long for it.
MODELS = {
    "short context": (tiny_config(n_ctx=40, **SHAPE), 21, "f32"),
    "three layers": (tiny_config(n_layer=3, n_ctx=512, d_model=48, d_rotary=8, **SHAPE), 22, "f16"),
}


def model_named(name: str, directory: Path, **options: Any) -> refgpt.Model:
    """One of ``MODELS``, written to a directory and loaded from there."""
    return refgpt.load(write_named(name, directory), **options)


def params_of(name: str) -> Any:
    """The weights of one of ``MODELS``: random, but rows of the head without a token are never the likeliest."""
    config, seed, dtype = MODELS[name]
    params = random_params(config, seed, dtype)
    params.b_head[N_TOKENS:] = -30
    return params


def write_named(name: str, directory: Path) -> Path:
    """A directory with one of ``MODELS`` and its tokenizer."""
    write_model(directory, MODELS[name][0], params_of(name))
    for file in TOKENIZER.iterdir():
        (directory / file.name).write_bytes(file.read_bytes())
    return directory
