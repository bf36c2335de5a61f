"""Checkpoints of random weights in GPT-J-6B's shape, in the forms in which they are published, and loading them.

    python -m benchmarks.loading write mesh DIRECTORY
    python -m benchmarks.loading write torch DIRECTORY
    python -m benchmarks.loading load DIRECTORY/random.tar.zst --dtype f16
    python -m benchmarks.loading load DIRECTORY --dtype f16

``write mesh`` makes an archive of Mesh Transformer JAX, ``random.tar.zst``, and ``params.json``; ``write torch`` makes
shards of PyTorch with the causal masks that files of 2021 hold, their index, and ``config.json``. Either is float16,
with 28 layers 12.1 GB before it is compressed, and written in the memory of a buffer. ``load`` packs a checkpoint for
the C kernels and prints the seconds that takes and the largest resident set, beside 1.1 times the weights in the dtype
asked for, and 300 MB.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np

from benchmarks.memory import peak_bytes
from benchmarks.peers.checkpoint import config_json, gptj_config, pieces, stored_name
from refgpt import ModelConfig
from refgpt.spec.gptj import leaf_shapes

SHAPE = gptj_config(28)
D_MODEL, D_FF, N_VOCAB = SHAPE.d_model, SHAPE.d_ff, SHAPE.n_vocab
PARAMS_JSON = {
    "layers": 28,
    "d_model": D_MODEL,
    "n_heads": SHAPE.n_head,
    "n_vocab": N_VOCAB,
    "seq": SHAPE.n_ctx,
    "norm": "layernorm",
    "pe": "rotary",
    "pe_rotary_dims": SHAPE.d_rotary,
}
N_PIECES = 16
CHUNK = 1 << 22  # numbers written in one go
MOST_IN_A_SHARD = 10_000_000_000  # bytes, as transformers cuts


def mesh_shapes(n_layer: int, n_shards: int) -> Iterator[tuple[int, ...]]:
    """Of the arrays of a shard in their order; the last is the number of the step."""
    c, f, v = D_MODEL // n_shards, D_FF // n_shards, N_VOCAB // n_shards
    yield from ((D_MODEL,), (v, D_MODEL))
    for _ in range(n_layer):
        yield from (*[(D_MODEL, c)] * 3, (c, D_MODEL), (f,), (D_MODEL, f), (D_MODEL,), (f, D_MODEL), *[(D_MODEL,)] * 2)
    yield from ((v,), (D_MODEL, v), *[(D_MODEL,)] * 2)
    yield ()


def random_bytes(stream: np.random.Generator, n: int) -> Iterator[bytes]:
    """Float16 of either sign and 0.008 to 0.125 in size, which hardly compress."""
    for start in range(0, n, CHUNK):
        bits = stream.integers(0, 1 << 16, min(CHUNK, n - start), np.uint16)
        yield (bits & 0x8FFF | 0x2000).tobytes()


def write_npz(file: BinaryIO, arrays: list[tuple[int, ...]], stream: np.random.Generator) -> None:
    """As numpy.savez does, without the arrays."""
    with zipfile.ZipFile(file, "w") as archive:
        for i, shape in enumerate(arrays):
            with archive.open(f"arr_{i}.npy", "w", force_zip64=True) as member:
                if shape == ():
                    np.lib.format.write_array(member, np.array(1, np.int32))
                    continue
                header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for chunk in random_bytes(stream, prod(shape)):
                    member.write(chunk)


def write_mesh(directory: Path, n_layer: int, n_shards: int, level: int) -> Path:
    """Write an archive shard by shard, and the configuration beside it."""
    import zstandard

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "params.json").write_text(json.dumps(PARAMS_JSON | {"layers": n_layer}))
    path = directory / "random.tar.zst"
    arrays = list(mesh_shapes(n_layer, n_shards))
    cuts = np.array_split(np.arange(len(arrays)), N_PIECES)  # the longer ones first, as there
    stream = np.random.default_rng(0)
    compressor = zstandard.ZstdCompressor(level, threads=-1)
    with (
        path.open("wb") as file,
        compressor.stream_writer(file) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT) as archive,
    ):
        for shard in range(n_shards):
            for j, cut in enumerate(cuts):
                with tempfile.TemporaryFile(dir=directory) as npz:
                    write_npz(npz, [arrays[i] for i in cut], stream)
                    member = tarfile.TarInfo(f"step_1/shard_{shard}/{j}.npz")
                    member.size = npz.tell()
                    npz.seek(0)
                    archive.addfile(member, npz)
    return path


def torch_shards(config: ModelConfig) -> list[dict[str, tuple[int, ...]]]:
    """The leaves of each shard with their shapes, none larger than ``MOST_IN_A_SHARD``; those of a layer in a row."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for leaf, shape in leaf_shapes(config).items():
        n_bytes = 2 * prod(shape)
        if size + n_bytes > MOST_IN_A_SHARD:
            shards.append({})
            size = 0
        shards[-1][leaf] = shape
        size += n_bytes
    return shards


def write_torch(directory: Path, n_layer: int) -> Path:
    """Write shards as torch.save does, every tensor in a storage of its own, and an index and a configuration."""
    from tests.helpers.writers import state_code, tensor_code

    directory.mkdir(parents=True, exist_ok=True)
    config = gptj_config(n_layer)
    shards = torch_shards(config)
    causal = np.tri(config.n_ctx, dtype=bool).reshape(1, 1, config.n_ctx, config.n_ctx)
    weight_map = {}
    for n, leaves in enumerate(shards, 1):
        file = f"pytorch_model-{n:05d}-of-{len(shards):05d}.bin"
        names = {stored_name(leaf): (leaf, shape) for leaf, shape in leaves.items()}
        masks = [name.replace("q_proj.weight", "bias") for name in names if name.endswith("q_proj.weight")]
        # One number, repeated by a stride of zero: code needs a shape, not a tensor.
        listed = [
            (name, tensor_code("HalfStorage", str(i), np.broadcast_to(np.float16(0), shape)))
            for i, (name, (_, shape)) in enumerate(names.items())
        ]
        listed += [(name, tensor_code("BoolStorage", str(len(names) + i), causal)) for i, name in enumerate(masks)]
        with zipfile.ZipFile(directory / file, "w") as archive:
            archive.writestr("archive/data.pkl", state_code(listed))
            for i, (leaf, shape) in enumerate(names.values()):
                with archive.open(f"archive/data/{i}", "w") as member:
                    for piece in pieces(leaf, shape, 0):
                        member.write(piece)
            for i in range(len(masks)):
                archive.writestr(f"archive/data/{len(names) + i}", causal.tobytes())
            archive.writestr("archive/version", b"3\n")
        weight_map |= dict.fromkeys([name for name, _ in listed], file)
    (directory / "config.json").write_text(json.dumps(config_json(config)))
    index = directory / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 2 * config.n_params}, "weight_map": weight_map}))
    return directory


def load(path: Path, dtype: str | None) -> None:
    """Load a checkpoint, once in a process, and say what it took."""
    import refgpt

    start = time.monotonic()
    model = refgpt.load(path, dtype=dtype)
    seconds = time.monotonic() - start
    peak = peak_bytes() or 0
    width = {"f16": 2, "f32": 4, None: 2}[dtype]
    most = 1.1 * width * model.config.n_params + 300e6
    print(f"{seconds:.0f} s, largest resident set {peak / 1e9:.2f} GB, wanted at most {most / 1e9:.2f} GB")
    logits = model.logits([1, 2, 3])
    print(f"logits {logits.shape}, mean {logits.mean():.6f}")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write")
    writing.add_argument("form", choices=["mesh", "torch"])
    writing.add_argument("directory", type=Path)
    writing.add_argument("--layers", type=int, default=28)
    writing.add_argument("--shards", type=int, default=8, help="of a mesh")
    writing.add_argument("--level", type=int, default=1, help="of a mesh's compression")
    loading = commands.add_parser("load")
    loading.add_argument("path", type=Path)
    loading.add_argument("--dtype", choices=["f16", "f32"])
    arguments = parser.parse_args()
    if arguments.command == "load":
        load(arguments.path, arguments.dtype)
    elif arguments.form == "mesh":
        print(write_mesh(arguments.directory, arguments.layers, arguments.shards, arguments.level))
    else:
        print(write_torch(arguments.directory, arguments.layers))


if __name__ == "__main__":
    main()
