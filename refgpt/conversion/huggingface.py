"""Writing a directory as Hugging Face lays it out: config.json, safetensors, the tokenizer's files.

Weights of more than five gigabytes go into shards with an index, as transformers writes them. GPT-JT's mask is written
as GPT-JT's own files have it: as all-ones buffers ``attn.bias``, by which this package and transformers before 4.28
know it; later ones pass them over, and are causal. Either mask is also told in config.json, under a key of this
package's own: else the name of a directory could decide it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import ConfigError
from refgpt._common.file_names import CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS
from refgpt._common.progress import Progress
from refgpt._common.small_files import LARGEST_JSON, is_there, read_bytes, read_json
from refgpt.checkpoints import Checkpoint
from refgpt.checkpoints.families.gptj import KEYS, full_name
from refgpt.checkpoints.layouts.huggingface import MASK
from refgpt.conversion.leaves import PIECE, dtypes_of, written
from refgpt.conversion.sums import SummedFile, Sums
from refgpt.conversion.tensor_files import ITEM_SIZES, header
from refgpt.conversion.tokenizer_files import write_tokenizer
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

DTYPES = (None, "f32", "f16", "bf16")
SINGLE = WEIGHTS[0]
LARGEST_SHARD = 5_000_000_000

TORCH_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64"}


def write(
    source: Checkpoint,
    tokenizer: Tokenizer | None,
    dtype: str | None,
    directory: Path,
    progress: Progress | None = None,
) -> None:
    """Write config.json, the tokenizer and the weights, one tensor after the other: see ``Target.write``.

    For what the tensors become see ``dtypes_of``.
    """
    dtypes = dtypes_of(source.params, dtype)
    _write_config(source, dtypes, directory)
    write_tokenizer(source, tokenizer, directory)
    writer, sums = _Writer(source, dtypes, progress), Sums(directory)
    shards = writer.shards()
    weight_map: dict[str, str] = {}
    for n, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{n:05d}-of-{len(shards):05d}.safetensors"
        with sums.writing(name) as file:
            writer.write_tensors(file, shard)
        weight_map |= dict.fromkeys(shard, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": writer.n_total}, "weight_map": dict(sorted(weight_map.items()))}
        (directory / (SINGLE + INDEX)).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    sums.write()


def n_bytes(source: Checkpoint, dtype: str | None) -> int:
    """How many bytes of tensors ``write`` writes."""
    return _Writer(source, dtypes_of(source.params, dtype), None).n_total


class _Writer:
    """The tensors of a checkpoint by their names in the files: weights, and the buffers of a mask."""

    def __init__(self, source: Checkpoint, dtypes: dict[str, str], progress: Progress | None) -> None:
        self.leaves = {full_name(name): (name, leaf) for name, leaf in source.params.items()}
        self.dtypes = {full_name(name): dtype for name, dtype in dtypes.items()}
        self.shapes: dict[str, tuple[int, ...]] = {name: leaf.shape for name, (_, leaf) in self.leaves.items()}
        if source.mask == "prefix":
            n = source.config.n_ctx
            for i in range(source.config.n_layer):
                name = f"transformer.h.{i}.attn.bias"
                self.dtypes[name], self.shapes[name] = "bool", (1, 1, n, n)
        self.n_done, self.n_total = 0, sum(map(self.n_bytes, self.shapes))
        self.progress = progress

    def n_bytes(self, name: str) -> int:
        return int(np.prod(self.shapes[name], dtype=np.int64)) * ITEM_SIZES[self.dtypes[name]]

    def shards(self) -> list[list[str]]:
        """Names by file; within a file the widest dtypes come first, so that every tensor is aligned."""
        shards: list[list[str]] = [[]]
        room = LARGEST_SHARD
        for name in self.shapes:
            if self.n_bytes(name) > room and shards[-1]:
                shards.append([])
                room = LARGEST_SHARD
            shards[-1].append(name)
            room -= self.n_bytes(name)
        return [sorted(shard, key=lambda name: -ITEM_SIZES[self.dtypes[name]]) for shard in shards]

    def write_tensors(self, file: SummedFile, names: list[str]) -> None:
        """Write a whole file of safetensors."""
        file.write(header({name: (self.dtypes[name], self.shapes[name]) for name in names}, {"format": "pt"}))
        for name in names:
            for piece in self._pieces(name):
                self.n_done += file.write(piece)
                if self.progress is not None:
                    self.progress(self.n_done, self.n_total)

    def _pieces(self, name: str) -> Iterator[np.ndarray]:
        if name not in self.leaves:
            n_left = self.n_bytes(name)  # a mask is as large as the context is long, squared
            while n_left:
                ones = np.ones(min(n_left, PIECE), np.uint8)
                n_left -= len(ones)
                yield ones
            return
        leaf_name, leaf = self.leaves[name]
        yield from written(leaf_name, leaf, self.dtypes[name])


def _write_config(source: Checkpoint, dtypes: dict[str, str], directory: Path) -> None:
    """What transformers needs; a config.json of the source keeps what else it says."""
    kept: dict[str, Any] = {}
    if source.config_file is not None:
        kept = read_json(source.config_file, ConfigError)
        if is_there(settings := source.directory / GENERATION_CONFIG):
            (directory / GENERATION_CONFIG).write_bytes(read_bytes(settings, ConfigError, LARGEST_JSON))
    kept = {key: value for key, value in kept.items() if key not in ("dtype", "_name_or_path")}
    told = {"torch_dtype": TORCH_DTYPES[dtypes["wte"]], MASK: source.mask}
    config = kept | config_json(source.config) | told
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def config_json(config: AnyConfig) -> dict[str, Any]:
    """A configuration as transformers' ``GPTJConfig`` names it."""
    numbers = {keys[0]: getattr(config, field) for field, keys in KEYS.items()}
    if config.further_eos_ids:
        numbers[KEYS["eos_id"][0]] = list(config.eos_ids)
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "activation_function": "gelu_new",
        "tie_word_embeddings": False,
    } | numbers
