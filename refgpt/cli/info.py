"""``refgpt info``."""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from refgpt._common.memory import machine_memory
from refgpt._common.wording import shortened, size
from refgpt._open import open_model
from refgpt.checkpoints import Checkpoint, TensorInfo
from refgpt.cli.json_output import print_json
from refgpt.cli.loading import progress_bar
from refgpt.cli.options import Commands, add_command, add_json, add_model, add_source
from refgpt.cli.printing import print_line
from refgpt.numbers.cached import kv_bytes
from refgpt.numbers.dtypes import KV_DTYPES
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

#: Notes on published parameter counts, by number of parameters.
PUBLISHED = {
    6_050_882_784: " (published as 6,053,381,344: trained on 8 devices, each of which had a copy of the LayerNorms, "
    "the biases of mlp.fc_out and a bias of the embeddings)"
}
#: Up to this many files are named; more are only counted.
MOST_FILES = 6
#: Characters of a tensor's name: all names are given the room of the longest.
LONGEST_NAME = 120

EXAMPLES = """examples:
  refgpt info                               the included model
  refgpt info -m ~/gpt-j-6b --tensors
  refgpt info EleutherAI/gpt-j-6b --json
"""


def add_to(commands: Commands) -> None:
    """Declare ``info``."""
    info = add_command(commands, "info", _info, "describe a model's files and the memory it needs", EXAMPLES)
    add_model(info, positional=True)
    info.add_argument("--tensors", action="store_true", help="list every tensor")
    add_json(info)
    add_source(info)


def _info(arguments: argparse.Namespace) -> int:
    with progress_bar() as progress:
        checkpoint, tokenizer = open_model(
            arguments.model, progress=progress, revision=arguments.revision, tokenizer=arguments.tokenizer
        )
    if arguments.json:
        print_json(_record(checkpoint, tokenizer))
        return 0
    config = checkpoint.config
    n_items = checkpoint.params.size
    cached = ", ".join(f"{size(n)} in {dtype}" for dtype, n in _cached(config).items())
    dtypes = Counter(tensor.dtype for tensor in checkpoint.tensors)
    facts = [
        ("model", checkpoint.path),
        ("format", checkpoint.format),
        ("family", checkpoint.family),
        ("shape", config),
        ("parameters", f"{n_items:,}{PUBLISHED.get(n_items, '')}"),
        ("files", _files(checkpoint)),
        ("tensors", f"{len(checkpoint.tensors)}: " + ", ".join(f"{n} {dtype}" for dtype, n in dtypes.most_common())),
        ("mask", f"{checkpoint.mask} ({checkpoint.mask_source})"),
        ("tokenizer", tokenizer.describe() if tokenizer else "none: the model takes and returns token ids"),
        ("memory", f"weights {size(checkpoint.params.nbytes)} as stored, {_sizes(n_items)}"),
        ("", f"attention cache of a full context ({config.n_ctx} tokens) {cached}"),
        ("", _memory_present()),
    ]
    for name, fact in facts:
        if fact:
            print_line(f"{name:<12}{fact}")
    print_line()
    for line in _tensor_lines(checkpoint.tensors, each=arguments.tensors):
        print_line(line)
    return 0


def _record(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The same information for ``--json``; sizes are in bytes."""
    config, (total, available) = checkpoint.config, machine_memory()
    n_items = checkpoint.params.size
    files = sorted({tensor.file for tensor in checkpoint.tensors})
    return {
        "model": str(checkpoint.path),
        "format": checkpoint.format,
        "family": checkpoint.family,
        "config": vars(config),
        "n_parameters": n_items,
        "files": [{"name": file.name, "bytes": file.stat().st_size} for file in files],
        "tensors": [
            {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape), "bytes": tensor.n_bytes}
            for tensor in checkpoint.tensors
        ],
        "mask": checkpoint.mask,
        "mask_source": checkpoint.mask_source,
        "tokenizer": tokenizer and tokenizer.describe(),
        "memory": {
            "weights_as_stored": checkpoint.params.nbytes,
            "weights_f32": 4 * n_items,
            "weights_f16": 2 * n_items,
            **{f"cache_{dtype}": n_bytes for dtype, n_bytes in _cached(config).items()},
            "total": total,
            "available": available,
        },
    }


def _cached(config: AnyConfig) -> dict[str, int]:
    """Bytes of the attention cache of a full context, by its dtype."""
    return {dtype: config.n_ctx * kv_bytes(config.n_layer, config.n_head, config.d_head, dtype) for dtype in KV_DTYPES}


def _memory_present() -> str:
    """The machine's memory and, where the system reports it, the available part; "" if unknown."""
    total, available = machine_memory()
    if total is None:
        return ""
    return f"present {size(total)}" + ("" if available is None else f", {size(available)} of it available")


def _files(checkpoint: Checkpoint) -> str:
    """The files with their sizes, or their number and total size."""
    sizes = {file: file.stat().st_size for file in sorted({tensor.file for tensor in checkpoint.tensors})}
    if len(sizes) <= MOST_FILES:
        return ", ".join(f"{file.name} ({size(n_bytes)})" for file, n_bytes in sizes.items())
    first, last = (f"{file.parent.name}/{file.name}" for file in (min(sizes), max(sizes)))
    return f"{len(sizes)} ({size(sum(sizes.values()))}), {first} to {last}"


def _tensor_lines(tensors: Sequence[TensorInfo], each: bool) -> Iterator[str]:
    """One line per tensor, or one line for all tensors that differ only in their layer number."""

    def kind(tensor: TensorInfo) -> tuple[str, str, tuple[int, ...]]:
        name = tensor.name if each else re.sub(r"\b(h\.|blk\.|layer_)\d+([./])", r"\1*\2", tensor.name)
        return shortened(name, LONGEST_NAME), tensor.dtype, tensor.shape

    width = max([40, *(len(kind(tensor)[0]) for tensor in tensors)])
    for (name, dtype, shape), same in groupby(sorted(tensors, key=kind), kind):
        sizes = [tensor.n_bytes for tensor in same]
        count = f"{len(sizes)} x " if len(sizes) > 1 else ""
        yield f"{name:<{width}} {dtype:<5} {count}{list(shape)}  {size(sum(sizes))}"


def _sizes(n_items: int) -> str:
    return f"{size(4 * n_items)} in f32, {size(2 * n_items)} in f16"
