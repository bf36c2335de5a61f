"""The same model as a file of 2023's ggml, which ctransformers reads: GPT-J in 4 bits.

The layout is that of ggml's GPT-J example: magic, seven sizes, the vocabulary, then each tensor with a small header;
all numbers little-endian, nothing aligned. Blocks of q4_0 are 32 weights of a row: a float16 scale d, then 16 bytes of
which byte i holds weight i in its low half and weight i + 16 in its high half, each as q with weight = d (q - 8).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.peers.checkpoint import stored_name
from refgpt import ModelConfig
from refgpt.checkpoints import open_checkpoint
from refgpt.spec.gptj import leaf_shapes

MAGIC = 0x67676D6C
F32, Q4_0 = 0, 2  # types of tensors
FTYPE = 2 * 1000 + 2  # quantisation version 2, mostly q4_0
BLOCK = 32
ROWS = 1024  # quantised at a time


def quantise_q4_0(w: np.ndarray) -> bytes:
    """Rows of weights as blocks. The weight of largest magnitude becomes -8 d. [n, m], m a multiple of 32"""
    x = w.astype(np.float32).reshape(-1, BLOCK)
    extreme = np.take_along_axis(x, np.abs(x).argmax(1)[:, None], 1)
    d = extreme / -8
    q = np.clip(x * np.divide(1, d, out=np.zeros_like(d), where=d != 0) + 8.5, 0, 15).astype(np.uint8)
    low, high = q[:, : BLOCK // 2], q[:, BLOCK // 2 :]
    return np.concatenate([d.astype("<f2").view(np.uint8), low | high << 4], axis=1).tobytes()


def header(config: ModelConfig) -> bytes:
    """Magic, sizes, and a vocabulary of as many distinct strings as there are rows in the embedding."""
    sizes = (config.n_vocab, config.n_ctx, config.d_model, config.n_head, config.n_layer, config.d_rotary, FTYPE)
    tokens = [f"<{i}>".encode() for i in range(config.n_vocab)]
    entries = b"".join(struct.pack("<i", len(token)) + token for token in tokens)
    return struct.pack("<I8i", MAGIC, *sizes, config.n_vocab) + entries


def tensor(leaf: str, values: np.ndarray) -> Iterator[bytes]:
    """A tensor with its header: dimensions from the innermost out."""
    name, kind = stored_name(leaf).encode(), Q4_0 if values.ndim == 2 else F32
    yield struct.pack(f"<{3 + values.ndim}i", values.ndim, len(name), kind, *reversed(values.shape)) + name
    if kind == F32:
        yield values.astype("<f4").tobytes()
        return
    for start in range(0, len(values), ROWS):
        yield quantise_q4_0(values[start : start + ROWS])


def write_ggml(checkpoint: Path, path: Path) -> None:
    """The checkpoint as one legacy file: matrices in q4_0, vectors in float32."""
    found = open_checkpoint(checkpoint)
    leaves = dict(found.params.items())
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        file.write(header(found.config))
        for leaf in leaf_shapes(found.config):
            for piece in tensor(leaf, leaves[leaf]):
                file.write(piece)
    partial.rename(path)
