"""Packed files with checksums that are right and numbers that are none."""

import hashlib
import json
import struct

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import CheckpointError
from refgpt._open import open_model
from refgpt.conversion import convert
from refgpt.numbers import checksums
from refgpt.numbers.panels import BLOCK_BYTES
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.writers import config_json, state_dict, write_safetensors

CONFIG = tiny_config()
BAD = {"NaN": float("nan"), "infinity": float("inf"), "minus infinity": float("-inf")}


def poison(directory, name, at, raw):
    """Write bytes into a leaf, as somebody would who writes checksums too."""
    file = directory / "packed.safetensors"
    whole = file.read_bytes()
    n = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + n]), bytearray(whole[8 + n :])
    start, stop = header[name]["data_offsets"]
    at += (stop - start) if at < 0 else 0
    data[start + at : start + at + len(raw)] = raw
    leaves = json.loads(header["__metadata__"]["leaves"])
    words = np.frombuffer(bytes(data[start:stop]), np.uint32)
    leaves[name]["checksum"] = checksums.checksum(checksums.digests(words))
    header["__metadata__"]["leaves"] = json.dumps(leaves, separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    head = struct.pack("<Q", len(text)) + text
    file.write_bytes(head + data)
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"][file.name] = {"bytes": len(head) + len(data), "sha256": hashlib.sha256(head).hexdigest()}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def number(kind, value):
    if kind == "f32":
        return struct.pack("<f", value)
    return struct.pack("<f", value)[2:] if kind == "bf16" else struct.pack("<e", value)


def places(kind, n_out, n_in):
    """Where in a matrix the first and the last number are; of quantised ones the scales of whole lanes."""
    if kind in BLOCK_BYTES:
        n_bytes, last = BLOCK_BYTES[kind], -(-n_out // 16) * -(-n_in // 32) - 1
        return n_bytes - 32, last * n_bytes + n_bytes - 32
    item = 4 if kind == "f32" else 2
    return 0, (-(-n_out // 16) * n_in - 1) * 16 * item


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("kind", ["f32", "f16", "bf16", "q8", "q4", "q3"])
def test_numbers_that_are_none_are_refused(tmp_path, kind, value):
    source = tmp_path / "source"
    source.mkdir()
    params = random_params(CONFIG, 1, "bf16" if kind == "bf16" else "f16")
    write_safetensors(source / "model.safetensors", state_dict(params))
    (source / "config.json").write_text(json.dumps(config_json(CONFIG)))
    shapes = {"blocks.1.w_in": (80, 32), "w_head": (61, 32)}
    cases = [(name, at) for name, shape in shapes.items() for at in places(kind, *shape)]
    cases += [("wte", 0), ("blocks.0.ln_b", 0)]
    for i, (name, at) in enumerate(cases):
        directory = tmp_path / f"{i}"
        convert(*open_model(source), directory, dtype=None if kind == "bf16" else kind)
        stored = "f32" if name == "blocks.0.ln_b" else kind
        if name == "wte" and kind in BLOCK_BYTES:
            stored, at = "q8", BLOCK_BYTES["q8"] - 32
        poison(directory, name, at, number(stored, BAD[value]))
        for backend in ("c", "numpy"):
            with pytest.raises(CheckpointError, match=f"{name}'.*NaN or infinity"):
                refgpt.load(directory, backend=backend)
        for to in ("refgpt", "hf", "gguf"):
            with pytest.raises(CheckpointError, match=f"{name}'.*NaN or infinity"):
                convert(*open_model(directory), tmp_path / "again", to)
            assert not (tmp_path / "again").exists()
