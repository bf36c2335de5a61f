"""Tiny models as directories of files, for the tests of everything above the loaders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike
from safetensors.numpy import save_file

from refgpt import ModelConfig
from refgpt.checkpoints.families.gptj import HUGGING_FACE
from refgpt.spec.gptj import Params


def write_model(
    directory: Path, config: ModelConfig, params: Params, prefix: bool | None = None, mask_dtype: DTypeLike = np.uint8
) -> Path:
    """A Hugging Face directory: config.json and model.safetensors; with ``prefix``, the buffers that tell the mask."""
    directory.mkdir(exist_ok=True)
    raw = {keys[0]: getattr(config, field) for field, keys in HUGGING_FACE.keys.items()}
    (directory / "config.json").write_text(json.dumps({"model_type": "gptj", **raw}))
    tensors = {HUGGING_FACE.names(name): leaf for name, leaf in params.items()}
    if prefix is not None:
        square = np.ones((1, 1, config.n_ctx, config.n_ctx), mask_dtype)
        for i in range(config.n_layer):
            tensors[f"transformer.h.{i}.attn.bias"] = square if prefix else np.tril(square)
    save_file({name: np.ascontiguousarray(leaf) for name, leaf in tensors.items()}, directory / "model.safetensors")
    return directory


def write_tokenizer(directory: Path) -> Path:
    """Byte-level BPE without merges: a token each for 60 characters and the end of a text."""
    spelt = [
        "<|endoftext|>",
        "\u010a",
        "\u0120",
        *map(chr, range(ord("A"), ord("Z") + 1)),
        *map(chr, range(ord("a"), ord("z") + 1)),
        *",.!?'-",
    ]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(spelt)}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    return directory
