"""llama.cpp's logits for the GGUF files of GPT-2 and GPT-NeoX that refgpt writes, in llama_cpp.npz.

It needs ``pip install llama-cpp-python``; recorded with 0.3.36. Beside the logits stands the SHA-256 of each file, so
that the tests notice when another file is written than the one that llama.cpp has read.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._open import open_model
from refgpt.checkpoints.checkpoint import Checkpoint
from refgpt.conversion import gguf, huggingface
from refgpt.spec import gpt2, gpt_neox
from refgpt.tokenizers.byte_level_bpe import letters_of_bytes
from tests.goldens import HERE
from tests.helpers.tiny import random_params

GOLDENS = HERE / "llama_cpp.npz"
SHAPE: dict[str, Any] = {"n_layer": 2, "n_head": 2, "d_model": 64, "d_ff": 96, "n_vocab": 261, "n_ctx": 32}
SHAPE |= {"bos_id": 0, "eos_id": 0}
GPT2 = gpt2.Config(**SHAPE)
NEOX = gpt_neox.Config(**SHAPE, d_rotary=8, activation="gelu")
#: Of each file the configuration and the dtype of its matrices.
CASES: dict[str, tuple[Any, str]] = {
    "gpt2-f32": (GPT2, "f32"),
    "gpt2-f16": (GPT2, "f16"),
    "gpt_neox-f32": (NEOX, "f32"),
    "gpt_neox-f16": (NEOX, "f16"),
    "gpt_neox-sequential": (replace(NEOX, use_parallel_residual=False), "f32"),
}
IDS = [5, 260, 17, 17, 2, 33, 0, 8, 101, 256, 77, 9]


def write(case: str, directory: Path) -> Path:
    """The file that llama.cpp reads, made of a directory of the same model with a tokenizer."""
    config, dtype = CASES[case]
    params = random_params(config, 12, "f16")
    source, written = directory / case, directory / "written"
    source.mkdir()
    written.mkdir()
    huggingface.write(
        Checkpoint(source, "random", config.model_type, config, params, "causal", "", ()), None, None, source
    )
    tokens = [letters_of_bytes(bytes([i])) for i in range(256)] + ["ab", "cd", "ef", "gh", "ij"]
    (source / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    merges = "".join(f"{token[0]} {token[1]}\n" for token in tokens[256:])
    (source / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    gguf.write(*open_model(source), dtype, written)
    (path,) = written.glob("*.gguf")
    return path


def digest(path: Path) -> str:
    """The SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    import tempfile

    from llama_cpp import Llama

    recorded: dict[str, np.ndarray] = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            path = write(case, Path(directory))
            # Keys and values in float32 (0 is ggml's number for it), as little rounded as llama.cpp can.
            model = Llama(str(path), n_ctx=32, logits_all=True, type_k=0, type_v=0, n_threads=1, verbose=False)
            model.eval(IDS)
            recorded[case] = np.array(model.scores[: len(IDS)], np.float32)
            recorded[f"{case} sha256"] = np.array(digest(path))
    np.savez_compressed(GOLDENS, **recorded)
