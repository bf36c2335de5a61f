import json
import struct

import numpy as np
import pytest

from refgpt._common.errors import CheckpointError
from refgpt.checkpoints.files import safetensors_file
from refgpt.numbers.dtypes import BFLOAT16
from tests.helpers import writers
from tests.helpers.work import little_work

MIXED = {
    "f32": np.arange(6, dtype="<f4").reshape(2, 3),
    "f16": np.linspace(-1, 1, 5, dtype="<f2"),
    "bf16": np.arange(4, dtype="<u2").view(BFLOAT16).reshape(2, 2),
    "f64": np.array([[np.pi]]),
    "bool": np.array([True, False, True]),
    "u8": np.arange(3, dtype="u1"),
    "i64": np.array(-7, "<i8"),
    "empty": np.zeros((0, 4), "<f4"),
}


def raw_file(path, entries, data=b"", header=None):
    """A file from the parts of its header, right or wrong."""
    header = json.dumps(entries).encode() if header is None else header
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def entry(start, stop, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_reads_what_the_library_writes(tmp_path):
    writers.write_safetensors(tmp_path / "mixed.safetensors", MIXED)
    got = safetensors_file.read(tmp_path / "mixed.safetensors")
    assert got.keys() == MIXED.keys()  # the library sorts them
    for name, want in MIXED.items():
        assert got[name].dtype == want.dtype and got[name].shape == want.shape
        assert got[name].tobytes() == want.tobytes()
        assert not got[name].flags.writeable


def test_reads_a_file_of_no_tensors(tmp_path):
    writers.write_safetensors(tmp_path / "none.safetensors", {})
    assert safetensors_file.read(tmp_path / "none.safetensors") == {}


FAULTY = {
    "no bytes": (b"", "empty"),
    "shorter than the length": (b"\0\0\0", "length of its header"),
    "length beyond the file": (struct.pack("<Q", 100) + b"{}", "length of its header"),
    "length of 2**63": (struct.pack("<Q", 2**63) + b"{}", "length of its header"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    "a web page": (b"<!DOCTYPE html><html></html>", "no safetensors file"),
}


@pytest.mark.parametrize("case", FAULTY)
def test_refuses_bytes_that_are_no_safetensors(tmp_path, case):
    raw, says = FAULTY[case]
    (tmp_path / "x.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=says) as error:
        safetensors_file.read(tmp_path / "x.safetensors")
    assert "x.safetensors" in str(error.value)


HEADERS = {
    "not JSON": (b"{]", "not JSON"),
    "not UTF-8": (b'{"\xff":1}', "not UTF-8"),
    "a list": (b"[]", "not an object"),
    "duplicate tensor": (
        b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        "twice",
    ),
    "NaN": (b'{"a":NaN}', "not finite"),
    "nested too deep": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "deep"),
    "trailing text": (b"{}x", "not JSON"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_refuses_a_bad_header(tmp_path, case):
    header, says = HEADERS[case]
    with pytest.raises(CheckpointError, match=says) as error:
        safetensors_file.read(raw_file(tmp_path / "x.safetensors", None, header=header))
    assert "x.safetensors, header" in str(error.value)


ENTRIES = {
    "not an object": ([1, 2], 0, "entry makes no sense"),
    "key missing": ({"dtype": "F32", "shape": [1]}, 4, "entry makes no sense"),
    "key too many": (entry(0, 4, [1]) | {"more": 1}, 4, "entry makes no sense"),
    "unknown dtype": (entry(0, 4, [4], "F8_E4M3"), 4, "F8_E4M3"),
    "dtype not a string": (entry(0, 4, [1], ["F32"]), 4, "dtype"),
    "shape of floats": (entry(0, 4, [1.0]), 4, "shape makes no sense"),
    "shape of truth": (entry(0, 4, [True]), 4, "shape makes no sense"),
    "negative shape": (entry(0, 4, [-1, -1]), 4, "shape makes no sense"),
    "too many dimensions": (entry(0, 4, [1] * 33), 4, "shape makes no sense"),
    "shape that overflows 64 bits": (entry(0, 0, [2**32, 2**32]), 0, "offsets do not fit"),
    "absurd shape of nothing": (entry(0, 0, [0, 2**62]), 0, "shape makes no sense"),
    "longer than its shape": (entry(0, 8, [1]), 8, "offsets do not fit"),
    "shorter than its shape": (entry(0, 4, [2]), 4, "offsets do not fit"),
    "offsets reversed": (entry(4, 0, [1]), 4, "offsets do not fit"),
    "three offsets": (entry(0, 4, [1]) | {"data_offsets": [0, 4, 8]}, 8, "offsets do not fit"),
    "negative offset": (entry(-4, 0, [1]), 4, "offsets do not fit"),
    "beyond the end": (entry(0, 8, [2]), 4, "beyond the end"),
    "absurd offset": (entry(2**70, 2**70 + 4, [1]), 4, "beyond the end"),
    "gap in front": (entry(4, 8, [1]), 8, "belong to none"),
}


@pytest.mark.parametrize("case", ENTRIES)
def test_refuses_a_bad_entry_by_name(tmp_path, case):
    bad, n_bytes, says = ENTRIES[case]
    with pytest.raises(CheckpointError, match=says) as error:
        safetensors_file.read(raw_file(tmp_path / "x.safetensors", {"h.0.w": bad}, bytes(n_bytes)))
    assert "x.safetensors, tensor 'h.0.w'" in str(error.value)


def test_refuses_overlap_gap_and_data_after_the_end(tmp_path):
    path = tmp_path / "x.safetensors"
    overlap = {"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}
    with pytest.raises(CheckpointError, match="'b': the tensor overlaps"):
        safetensors_file.read(raw_file(path, overlap, bytes(12)))
    gap = {"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}
    with pytest.raises(CheckpointError, match="'b': bytes before"):
        safetensors_file.read(raw_file(path, gap, bytes(12)))
    with pytest.raises(CheckpointError, match="after the last tensor"):
        safetensors_file.read(raw_file(path, {"a": entry(0, 4, [1])}, bytes(5)))


def test_order_in_the_header_is_free(tmp_path):
    data = np.arange(3, dtype="<f4")
    entries = {"late": entry(8, 12, [1]), "early": entry(0, 8, [2]), "nothing": entry(8, 8, [0])}
    got = safetensors_file.read(raw_file(tmp_path / "x.safetensors", entries, data.tobytes()))
    assert got["early"].tolist() == [0, 1] and got["late"].tolist() == [2] and got["nothing"].size == 0


def test_the_largest_header_takes_little_more_than_its_json(tmp_path):
    header = ("{" + ",".join(f'"{i:06}":{{}}' for i in range(safetensors_file.LARGEST_HEADER // 12)) + "}").encode()
    path = raw_file(tmp_path / "x.safetensors", None, header=header)
    with little_work(lambda: json.loads(header), times=10), pytest.raises(CheckpointError, match="tensor '000000'"):
        safetensors_file.read(path)


def test_a_hostile_name_is_escaped_and_cut(tmp_path):
    name = "\ud800\n\x1b[31m" + "x" * 10_000
    with pytest.raises(CheckpointError) as error:
        safetensors_file.read(raw_file(tmp_path / "x.safetensors", {name: 1}))
    assert str(error.value).isprintable() and len(str(error.value)) < 1000
