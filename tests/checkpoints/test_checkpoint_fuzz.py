"""Whatever happens to a file, it is read or refused in the proper way, quickly and in little memory."""

import json
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgpt._common.errors import CheckpointError, ConfigError
from refgpt._common.small_files import parse_json
from refgpt.checkpoints.families.gptj import HUGGING_FACE
from refgpt.checkpoints.files import safetensors_file, torch_pickle
from refgpt.checkpoints.files.pickle_machine import INSTRUCTIONS, Machine
from tests.goldens.recorders.torch_files import HERE
from tests.helpers.fuzzing import FAST, JSON, answers_properly, damaged, one_file
from tests.helpers.writers import (
    STORAGE_TYPES,
    config_json,
    state_code,
    tensor_code,
    write_safetensors,
    write_torch,
    write_torch_zip,
)

TENSORS = {"a": np.arange(6, dtype="<f4").reshape(2, 3), "b": np.ones((2, 2), "?"), "c": np.array(7, "<f2")}


def written(write):
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory) / "x", TENSORS)
        return (Path(directory) / "x").read_bytes()


SAFETENSORS, TORCH = written(write_safetensors), written(write_torch)
RECORDED = [(HERE / f"{name}.bin").read_bytes() for name in ("shared_storage", "module_state", "float16_ones")]


def reads_properly(read, raw):
    """Every number of every tensor in 8 MB, or one error."""

    def read_all(path):
        n_read = sum(len(tensor.tobytes()) for tensor in read(path).values())
        assert n_read <= 64 * len(raw)  # tensors may share a storage, but none is larger than the file

    error = answers_properly(one_file(raw), read_all, 8 << 20)
    assert error is None or isinstance(error, CheckpointError)


@FAST
@given(damaged(SAFETENSORS))
def test_damaged_safetensors(raw):
    reads_properly(safetensors_file.read, raw)


@FAST
@given(st.sampled_from([TORCH, *RECORDED]).flatmap(damaged))
def test_damaged_torch_files(raw):
    reads_properly(torch_pickle.read, raw)


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

    reads_properly(read, b"x" * 1000)


@FAST
@given(st.binary(max_size=200))
def test_the_machine_on_noise(noise):
    try:
        Machine(noise, Path("noise")).run()
    except CheckpointError:
        return


@FAST
@given(st.data())
def test_safetensors_with_an_edited_header(data):
    n_header = int.from_bytes(SAFETENSORS[:8], "little")
    header = json.loads(SAFETENSORS[8 : 8 + n_header])
    name = data.draw(st.sampled_from(sorted(TENSORS)))
    key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    header[name][key] = data.draw(JSON | st.lists(st.integers(-1, 30) | st.just(2**62), max_size=4))
    text = json.dumps(header).encode()
    reads_properly(safetensors_file.read, struct.pack("<Q", len(text)) + text + SAFETENSORS[8 + n_header :])


@FAST
@given(st.dictionaries(st.sampled_from([*config_json(), "hidden_size", "eight_bit"]), JSON, max_size=3))
def test_edited_configurations(changes):
    try:
        config = HUGGING_FACE.read_config(config_json(**changes), Path("config.json"))
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
