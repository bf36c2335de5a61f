"""A checkpoint of GPT-J's full width with random weights, as Hugging Face lays it out, written piece by piece.

    python -m benchmarks.peers.checkpoint DIRECTORY --layers 28

writes 12.1 GB of float16 in a few dozen megabytes of memory. Speed depends on shapes alone, so any weights will do;
these have the magnitudes of freshly initialised ones, so that activations stay in range and quantised weights mean
something.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.quick import WIDTHS
from refgpt import ModelConfig
from refgpt.checkpoints.families.gptj import HUGGING_FACE
from refgpt.spec.gptj import leaf_shapes

SPREAD = 0.02  # standard deviation of matrices and biases; LayerNorm's gains are spread about 1
PIECE = 1 << 22  # numbers made at a time
GAINS = ("ln_w", "ln1_w", "ln2_w")


def gptj_config(n_layer: int) -> ModelConfig:
    """GPT-J-6B's shape in all but depth, and in quick mode width."""
    return ModelConfig(n_layer=n_layer, **WIDTHS)


def config_json(config: ModelConfig) -> dict[str, object]:
    """The keys of config.json as transformers reads them."""
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "activation_function": "gelu_new",
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.d_model,
        "n_inner": config.d_ff,
        "rotary_dim": config.d_rotary,
        "vocab_size": config.n_vocab,
        "n_positions": config.n_ctx,
        "layer_norm_epsilon": config.ln_eps,
        "bos_token_id": config.bos_id,
        "eos_token_id": config.eos_id,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }


def stored_name(leaf: str) -> str:
    """The name of a leaf in the file: "blocks.3.wq" -> "transformer.h.3.attn.q_proj.weight"."""
    return HUGGING_FACE.names(leaf)


def pieces(leaf: str, shape: tuple[int, ...], seed: int) -> Iterator[np.ndarray]:
    """A leaf's random numbers in order, float16, some at a time; the same for the same seed."""
    random = np.random.default_rng([seed, *leaf.encode()])
    about = 1 if leaf.rpartition(".")[2] in GAINS else 0
    n = math.prod(shape)
    for start in range(0, n, PIECE):
        numbers = random.standard_normal(min(PIECE, n - start), np.float32)
        yield (about + SPREAD * numbers).astype("<f2")


def write_checkpoint(directory: Path, config: ModelConfig, seed: int = 0, quiet: bool = False) -> None:
    """Write config.json and a float16 model.safetensors.

    The file takes its name when it is whole, so one that is there can be trusted. The layout is the one at
    https://huggingface.co/docs/safetensors: length of the header, header (padded to 8 bytes), tensors end to end.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shapes = leaf_shapes(config)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for leaf, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[stored_name(leaf)] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = directory / "model.safetensors.partial"
    with partial.open("wb") as file, tqdm(total=end, unit="B", unit_scale=True, disable=quiet) as bar:
        file.write(len(text).to_bytes(8, "little") + text)
        for leaf, shape in shapes.items():
            bar.set_description(leaf)
            for piece in pieces(leaf, shape, seed):
                file.write(piece)
                bar.update(piece.nbytes)
    (directory / "config.json").write_text(json.dumps(config_json(config), indent=2), encoding="utf-8")
    partial.rename(directory / "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a float16 GPT-J checkpoint with random weights.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=28, help="28 are GPT-J-6B, 12.1 GB (default)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_checkpoint(args.directory, gptj_config(args.layers), args.seed)


if __name__ == "__main__":
    main()
