"""Writing a Hugging Face directory: config.json, safetensors, the tokenizer's files.

Weights of more than five gigabytes go into shards with an index, as transformers writes them. GPT-JT's mask is written
as in GPT-JT's own files: as all-ones buffers ``attn.bias``, which this package and transformers before 4.28 read; later
versions ignore them and are causal. Either mask is also stored in config.json, under a key of this package's own;
otherwise the name of the directory could decide it.
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
from refgpt.checkpoints.families import FAMILIES
from refgpt.checkpoints.families.names import named_tensors
from refgpt.checkpoints.layouts.huggingface import MASK
from refgpt.conversion.leaves import PIECE, dtypes_of, written
from refgpt.conversion.sums import SummedFile, Sums
from refgpt.conversion.tensor_files import ITEM_SIZES, header
from refgpt.conversion.tokenizer_files import write_tokenizer
from refgpt.numbers.leaves import Leaf
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

    ``dtypes_of`` gives the dtypes of the tensors.
    """
    tensors = _tensors(source)
    dtypes = dtypes_of(tensors, dtype)
    _write_config(source, dtypes, directory)
    write_tokenizer(source, tokenizer, directory)
    writer, sums = _Writer(source, tensors, dtypes, progress), Sums(directory)
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
    tensors = _tensors(source)
    return _Writer(source, tensors, dtypes_of(tensors, dtype), None).n_total


def _tensors(source: Checkpoint) -> dict[str, Leaf]:
    return named_tensors(source.params, FAMILIES[source.family].HUGGING_FACE.names, source.config)


class _Writer:
    """The tensors of a checkpoint by their names in the files: weights, and the buffers of a mask."""

    def __init__(
        self, source: Checkpoint, tensors: dict[str, Leaf], dtypes: dict[str, str], progress: Progress | None
    ) -> None:
        form = FAMILIES[source.family].HUGGING_FACE
        self.leaves, self.dtypes = tensors, dict(dtypes)
        self.shapes: dict[str, tuple[int, ...]] = {name: leaf.shape for name, leaf in tensors.items()}
        if source.mask == "prefix" and form.mask is not None:
            n = source.config.n_ctx
            for i in range(source.config.n_layer):
                name = form.names.body + form.mask.format(i)
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
            n_left = self.n_bytes(name)  # a mask's size is the context's length squared
            while n_left:
                ones = np.ones(min(n_left, PIECE), np.uint8)
                n_left -= len(ones)
                yield ones
            return
        yield from written(name, self.leaves[name], self.dtypes[name])


def _write_config(source: Checkpoint, dtypes: dict[str, str], directory: Path) -> None:
    """What transformers needs; a config.json of the source keeps what else it says."""
    form, kept = FAMILIES[source.family].HUGGING_FACE, dict[str, Any]()
    if source.config_file is not None:
        kept = read_json(source.config_file, ConfigError)
        if is_there(settings := source.directory / GENERATION_CONFIG):
            (directory / GENERATION_CONFIG).write_bytes(read_bytes(settings, ConfigError, LARGEST_JSON))
    kept = {key: value for key, value in kept.items() if key not in ("dtype", "_name_or_path")}
    told = {"torch_dtype": TORCH_DTYPES[dtypes[form.names("wte")]], MASK: source.mask}
    config = kept | config_json(source) | told
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def config_json(source: Checkpoint) -> dict[str, Any]:
    """The configuration as the family's class of transformers names it."""
    return FAMILIES[source.family].HUGGING_FACE.config_json(source.config)
