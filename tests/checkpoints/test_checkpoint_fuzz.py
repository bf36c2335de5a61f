"""Whatever happens to a file, it is read or refused in the proper way, quickly and in little memory."""

import json
import struct
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from checkpoints.record_torch_files import HERE
from checkpoints.writers import (
    STORAGE_TYPES,
    config_json,
    state_code,
    tensor_code,
    write_safetensors,
    write_torch,
    write_torch_zip,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refgpt.checkpoints import safetensors_file, torch_pickle
from refgpt.checkpoints.gptj import read_config
from refgpt.checkpoints.pickle_machine import INSTRUCTIONS, Machine
from refgpt.errors import CheckpointError, ConfigError
from refgpt.small_files import parse_json

FAST = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
TENSORS = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.ones((2, 2), "?"), "c": np.array(7, "<f2")}


def written(write):
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory) / "x", TENSORS)
        return (Path(directory) / "x").read_bytes()


SAFETENSORS, TORCH = written(write_safetensors), written(write_torch)
RECORDED = [(HERE / f"{name}.bin").read_bytes() for name in ("shared_storage", "module_state", "float16_ones")]


@st.composite
def damaged(draw, raw):
    """The bytes with a few flips, cuts, insertions, repetitions or large numbers put in."""
    raw = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(raw) - 1, 0)))
        n_bytes = draw(st.integers(1, 16))
        kind = draw(st.sampled_from(["flip", "cut", "drop", "insert", "repeat", "number"]))
        if kind == "flip" and raw:
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del raw[at:]
        elif kind == "drop":
            del raw[at : at + n_bytes]
        elif kind == "insert":
            raw[at:at] = draw(st.binary(min_size=1, max_size=16))
        elif kind == "repeat":
            raw[at:at] = raw[at : at + n_bytes]
        else:
            number = draw(st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]))
            raw[at : at + 8] = struct.pack("<Q", number)
    return bytes(raw)


def answers_properly(read, raw):
    """Reads every number of every tensor, or raises CheckpointError; no more than 8 MB and a second either way."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.any"
        path.write_bytes(raw)
        tracemalloc.start()
        start = time.process_time()
        try:
            tensors = read(path)
            n_read = sum(len(tensor.tobytes()) for tensor in tensors.values())
        except CheckpointError as error:
            assert "model.any" in str(error) and len(str(error)) < 4000
            n_read = 0
        finally:
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert time.process_time() - start < 1 and most < 8 << 20
        assert n_read <= 64 * len(raw)  # tensors may share a storage, but none is larger than the file


@FAST
@given(damaged(SAFETENSORS))
def test_damaged_safetensors(raw):
    answers_properly(safetensors_file.read, raw)


@FAST
@given(st.sampled_from([TORCH, *RECORDED]).flatmap(damaged))
def test_damaged_torch_files(raw):
    answers_properly(torch_pickle.read, raw)


PROGRAM = state_code(
    (name, tensor_code(STORAGE_TYPES[x.dtype], str(i), x)) for i, (name, x) in enumerate(TENSORS.items())
)
PIECES = st.sampled_from(
    [
        *INSTRUCTIONS,
        b"ctorch\nFloatStorage\n",
        b"ccollections\nOrderedDict\n",
        b"X\1\0\0\0a",
        b"K\1",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"0",
        b"2",
        b"]",
        b"e",
        b"\x93",
        b"\x94",
        b"I1\n",
        b".",
    ]
)


@FAST
@given(damaged(PROGRAM) | st.lists(PIECES, max_size=40).map(lambda pieces: b"\x80\x02" + b"".join(pieces) + b"."))
def test_damaged_programs(program):
    """In an archive that is sound, so that the program is always reached."""

    def read(path):
        write_torch_zip(path, program, {str(i): x.tobytes() for i, x in enumerate(TENSORS.values())})
        return torch_pickle.read(path)

    answers_properly(read, b"x" * 1000)


@FAST
@given(st.binary(max_size=200))
def test_the_machine_on_noise(noise):
    try:
        Machine(noise, Path("noise")).run()
    except CheckpointError:
        return


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["F32", "BF16", 0, 4, 24, 2**64]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@FAST
@given(st.data())
def test_safetensors_with_an_edited_header(data):
    n_header = int.from_bytes(SAFETENSORS[:8], "little")
    header = json.loads(SAFETENSORS[8 : 8 + n_header])
    name = data.draw(st.sampled_from(sorted(TENSORS)))
    key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    header[name][key] = data.draw(JSON | st.lists(st.integers(-1, 30) | st.just(2**62), max_size=4))
    text = json.dumps(header).encode()
    answers_properly(safetensors_file.read, struct.pack("<Q", len(text)) + text + SAFETENSORS[8 + n_header :])


@FAST
@given(st.dictionaries(st.sampled_from([*config_json(), "hidden_size", "eight_bit"]), JSON, max_size=3))
def test_edited_configurations(changes):
    try:
        config = read_config(config_json(**changes), Path("config.json"))
    except ConfigError as error:
        assert "config.json" in str(error)
    else:
        assert config.n_params > 0


@FAST
@given(damaged(json.dumps(config_json()).encode()))
def test_damaged_json(raw):
    try:
        got = parse_json(raw, "config.json", ConfigError)
    except ConfigError as error:
        assert "config.json" in str(error)
    else:
        assert got == json.loads(raw)


@pytest.mark.parametrize(("read", "raw"), [(safetensors_file.read, SAFETENSORS), (torch_pickle.read, TORCH)])
def test_every_truncation_is_refused(tmp_path, read, raw):
    for n_bytes in range(len(raw)):
        (tmp_path / "x").write_bytes(raw[:n_bytes])
        with pytest.raises(CheckpointError):
            read(tmp_path / "x")
    (tmp_path / "x").write_bytes(raw)
    assert read(tmp_path / "x").keys() == TENSORS.keys()
