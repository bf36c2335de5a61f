"""A checkpoint of random weights in GPT-J-6B's shape, as Mesh Transformer JAX publishes its own, and loading it.

    python benchmarks/large_checkpoint.py write DIRECTORY --layers 28
    python benchmarks/large_checkpoint.py load DIRECTORY/random.tar.zst --dtype f16

``write`` makes ``random.tar.zst`` and ``params.json``: float16, with 28 layers 12.1 GB before they are compressed, in
the memory of a buffer. ``load`` packs them for the C kernels and prints the seconds that takes and the largest resident
set, beside 1.1 times the weights in the dtype asked for, and 300 MB.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

D_MODEL, D_FF, N_VOCAB = 4096, 16384, 50400
PARAMS_JSON = {"layers": 28, "d_model": D_MODEL, "n_heads": 16, "n_vocab": N_VOCAB, "seq": 2048, "norm": "layernorm",
               "pe": "rotary", "pe_rotary_dims": 64}  # fmt: skip
N_PIECES = 16
CHUNK = 1 << 22  # numbers written in one go


def shapes(n_layer: int, n_shards: int) -> Iterator[tuple[int, ...]]:
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
                for chunk in random_bytes(stream, int(np.prod(shape))):
                    member.write(chunk)


def write(directory: Path, n_layer: int, n_shards: int, level: int) -> Path:
    """Write an archive shard by shard, and the configuration beside it."""
    import zstandard

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "params.json").write_text(json.dumps(PARAMS_JSON | {"layers": n_layer}))
    path = directory / "random.tar.zst"
    arrays = list(shapes(n_layer, n_shards))
    cuts = np.array_split(np.arange(len(arrays)), N_PIECES)  # the longer ones first, as there
    stream = np.random.default_rng(0)
    compressor = zstandard.ZstdCompressor(level, threads=-1)
    with path.open("wb") as file, compressor.stream_writer(file) as packed, tarfile.open(
        fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT
    ) as archive:  # fmt: skip
        for shard in range(n_shards):
            for j, cut in enumerate(cuts):
                with tempfile.TemporaryFile(dir=directory) as npz:
                    write_npz(npz, [arrays[i] for i in cut], stream)
                    member = tarfile.TarInfo(f"step_1/shard_{shard}/{j}.npz")
                    member.size = npz.tell()
                    npz.seek(0)
                    archive.addfile(member, npz)
    return path


def load(path: Path, dtype: str | None) -> None:
    """Load a checkpoint, once in a process, and say what it took."""
    import refgpt

    start = time.monotonic()
    model = refgpt.load(path, dtype=dtype)
    seconds = time.monotonic() - start
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.split("VmHWM:")[1].split()[0])
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
    writing.add_argument("directory", type=Path)
    writing.add_argument("--layers", type=int, default=28)
    writing.add_argument("--shards", type=int, default=8)
    writing.add_argument("--level", type=int, default=1, help="of compression")
    loading = commands.add_parser("load")
    loading.add_argument("path", type=Path)
    loading.add_argument("--dtype", choices=["f16", "f32"])
    arguments = parser.parse_args()
    if arguments.command == "write":
        print(write(arguments.directory, arguments.layers, arguments.shards, arguments.level))
    else:
        load(arguments.path, arguments.dtype)


if __name__ == "__main__":
    main()
