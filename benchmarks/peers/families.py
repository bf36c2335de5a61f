"""The families that are compared, in the shapes of known models, and checkpoints of them with random weights.

GPT-J's is written piece by piece by ``checkpoint.py``; the others fit into memory and take the way of every model that
refgpt writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.checkpoint import gptj_config, pieces, write_checkpoint
from benchmarks.quick import WIDTHS
from refgpt.checkpoints.checkpoint import Checkpoint
from refgpt.conversion import huggingface
from refgpt.spec import gpt2, gpt_neox
from refgpt.spec.families import family_of, leaf_shapes

#: In quick mode the others' widths are GPT-J's, but for the rotated ones, which GPT-2 has not.
NARROW = {name: width for name, width in WIDTHS.items() if name != "d_rotary"}


@dataclass(frozen=True)
class Family:
    """One model of a family.

    Attributes
    ----------
    title : str
        As shown: "4 of <title>'s <n_layer> layers".
    n_layer : int
        Layers of the whole model.
    config : callable
        The shape with so many layers.
    """

    title: str
    n_layer: int
    config: Callable[[int], Any]


def gpt2_config(n_layer: int) -> gpt2.Config:
    """GPT-2's smallest shape, 124M with its 12 layers."""
    return gpt2.Config(n_layer=n_layer, **NARROW)


def pythia_config(n_layer: int) -> gpt_neox.Config:
    """Pythia 6.9B's shape, which is GPT-NeoX with a quarter of each head rotated."""
    shape = {"n_head": 32, "d_model": 4096, "d_ff": 16384, "d_rotary": 32, **NARROW}
    return gpt_neox.Config(n_layer=n_layer, n_vocab=50432, n_ctx=2048, activation="gelu", **shape)


FAMILIES = {
    "gptj": Family("GPT-J", 28, gptj_config),
    "gpt-neox": Family("Pythia 6.9B", 32, pythia_config),
    "gpt2": Family("GPT-2 124M", 12, gpt2_config),
}


def write_random(directory: Path, family: str, n_layer: int, quiet: bool = False) -> None:
    """Write a float16 checkpoint of a family with random weights, in Hugging Face's layout."""
    config = FAMILIES[family].config(n_layer)
    if family == "gptj":
        write_checkpoint(directory, config, quiet=quiet)
        return
    directory.mkdir(parents=True, exist_ok=True)
    leaves = {
        name: np.concatenate(list(pieces(name, shape, 0))).reshape(shape) for name, shape in leaf_shapes(config).items()
    }
    params = family_of(config).Params.from_leaves(leaves, config.n_layer)
    source = Checkpoint(directory, "random", config.model_type, config, params, "causal", "", ())
    huggingface.write(source, None, None, directory)
    write_words(directory, config.n_vocab)


def write_words(directory: Path, n_vocab: int) -> None:
    """A tokenizer, without which llama.cpp loads no file: 256 bytes, one merge, and a word for each other id."""
    from refgpt.tokenizers.byte_level_bpe import letters_of_bytes

    tokens = [letters_of_bytes(bytes([i])) for i in range(256)] + ["ab"]
    tokens += [f"<{i}>" for i in range(len(tokens), n_vocab)]
    (directory / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (directory / "merges.txt").write_text("#version: 0.2\na b\n", encoding="utf-8")
