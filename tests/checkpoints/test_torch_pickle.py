import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from refgpt._common.errors import CheckpointError
from refgpt.checkpoints.files import pickle_machine, torch_pickle
from tests.goldens.recorders.torch_files import HERE, recorded_state
from tests.helpers import writers
from tests.helpers.writers import (
    HOOKS,
    call_code,
    global_code,
    int_code,
    ints_code,
    state_code,
    storage_code,
    text_code,
    tuple_code,
    view_code,
    write_torch_zip,
)

F32 = storage_code("FloatStorage", "0", 6)
SIX = np.arange(6, dtype="<f4")


def read_program(path, program, storages=None, **archive):
    write_torch_zip(path / "x.bin", program, {"0": SIX.tobytes()} if storages is None else storages, **archive)
    return torch_pickle.read(path / "x.bin")


def assert_same(got, want):
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype and got[name].shape == array.shape, name
        assert got[name].tobytes() == array.tobytes(), name
        assert not got[name].flags.writeable


@pytest.mark.parametrize(
    ("file", "dtype", "mask"),
    [
        ("float32_causal", "f32", "causal"),
        ("float16_ones", "f16", "ones"),
        ("bfloat16", "bf16", None),
        ("parameters", "f32", None),
        ("transposed", "f32", "causal"),
    ],
)
def test_reads_what_torch_writes(file, dtype, mask):
    got = torch_pickle.read(HERE / f"{file}.bin")
    saved = {name: got.pop(name) for name in list(got) if name.endswith(("attn.bias", "masked_bias"))}
    assert_same(got, recorded_state(dtype))
    if mask is None:
        assert not saved
    else:
        bias = saved["transformer.h.0.attn.bias"]
        assert bias.shape == (1, 1, 6, 6) and bias.dtype == (bool if mask == "causal" else np.uint8)
        assert (bias[0, 0] == (np.tri(6) if mask == "causal" else np.ones((6, 6)))).all()
        assert saved["transformer.h.0.attn.masked_bias"] == np.float32(-1e9)


def test_a_transposed_matrix_is_viewed_not_copied():
    wte = torch_pickle.read(HERE / "transposed.bin")["transformer.wte.weight"]
    assert wte.strides == (4, 4 * 11) and not wte.flags.owndata


def test_tensors_may_share_a_storage():
    got = torch_pickle.read(HERE / "shared_storage.bin")
    assert (got["low"] == np.arange(12).reshape(3, 4)).all()
    assert (got["high"] == np.arange(6, 18).reshape(4, 3).T).all()
    assert np.shares_memory(got["low"], got["high"])


def test_a_module_with_integer_counters():
    got = torch_pickle.read(HERE / "module_state.bin")
    assert got["norm.num_batches_tracked"].dtype == np.int64 and got["norm.num_batches_tracked"] == 0
    assert got["norm.running_var"].tolist() == [1, 1] and got["linear.weight"].shape == (2, 3)


@pytest.mark.parametrize("byteorder", [b"little", None])
def test_own_writer_round_trips(tmp_path, byteorder):
    """Files of older versions of torch have no member that tells the byte order."""
    tensors = {"a": SIX.reshape(2, 3), "c": np.array(2.5, "<f8"), "empty": np.zeros((0, 3), "<f2")}
    writers.write_torch(tmp_path / "x.bin", tensors)
    assert_same(torch_pickle.read(tmp_path / "x.bin"), tensors)
    code = state_code([("a", view_code(F32, 1, [2, 2], [3, 1]))])
    assert read_program(tmp_path, code, byteorder=byteorder)["a"].tolist() == [[1, 2], [4, 5]]


def test_unaligned_storages_are_read(tmp_path):
    tensors = {f"t{i}": np.arange(i, dtype="<f4") for i in range(1, 9)}
    writers.write_torch(tmp_path / "x.bin", tensors)
    got = torch_pickle.read(tmp_path / "x.bin")
    assert not all(array.flags.aligned for array in got.values())
    assert_same(got, tensors)


def refused(path, program, says=None, storages=None, **archive):
    with pytest.raises(CheckpointError, match=says) as error:
        read_program(path, program, storages, **archive)
    assert "x.bin" in str(error.value)


def sentinel_programs(sentinel):
    """Programs that create a file if anything runs them."""
    command = text_code(f"touch {sentinel}")
    system = b"".join([b"\x80\x02", global_code("os", "system"), tuple_code([command]), b"R."])
    evil = pickle.dumps(Evil(str(sentinel)), protocol=2)
    modern = pickle.dumps(Evil(str(sentinel)), protocol=4)
    # The names of the function arrive on the stack, put together from the memo.
    computed = (
        b"\x80\x02"
        + text_code("os")
        + b"q\0"
        + text_code("system")
        + b"q\1"
        + b"0h\0h\1\x93"
        + tuple_code([command])
        + b"R."
    )
    return {
        "os.system": (system, "os.system"),
        "builtins.eval": (
            b"\x80\x02" + call_code("builtins", "eval", [text_code(f"open({str(sentinel)!r}, 'w')")]) + b".",
            "builtins.eval",
        ),
        "posix.system by pickle": (evil, "system"),
        "protocol 4": (modern, "protocol"),
        "STACK_GLOBAL": (computed, "the instruction POP"),
        "STACK_GLOBAL alone": (
            b"\x80\x02" + text_code("os") + text_code("system") + b"\x93" + tuple_code([command]) + b"R.",
            "STACK_GLOBAL",
        ),
        "inside a state dict": (state_code([("w", system[2:-1])]), "os.system"),
        "as the state of BUILD": (b"\x80\x02" + HOOKS + system[2:-1] + b"b.", "os.system"),
        "as a storage type": (
            state_code(
                [
                    (
                        "w",
                        view_code(
                            tuple_code(
                                [
                                    text_code("storage"),
                                    global_code("os", "system"),
                                    text_code("0"),
                                    text_code("cpu"),
                                    int_code(6),
                                ]
                            )
                            + b"Q",
                            0,
                            [6],
                            [1],
                        ),
                    )
                ]
            ),
            "os.system",
        ),
        "INST": (b"\x80\x02(" + command + b"ios\nsystem\n.", "INST"),
        "OBJ": (b"\x80\x02(" + global_code("os", "system") + command + b"o.", "os.system"),
        "NEWOBJ": (b"\x80\x02" + global_code("collections", "OrderedDict") + b")\x81.", "NEWOBJ"),
        "an extension": (b"\x80\x02\x82\x01.", "EXT1"),
        "a dotted name": (b"\x80\x02" + global_code("torch", "serialization.os.system") + b".", "serialization"),
        "a loader within": (b"\x80\x02" + global_code("torch.storage", "_load_from_bytes") + b".", "_load_from_bytes"),
        "a newline in the name": (b"\x80\x02cos\nsystem\x00\n.", "os"),
    }


class Evil:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


@pytest.mark.parametrize("case", sentinel_programs(""))
def test_a_program_that_asks_for_more_than_tensors_is_refused(tmp_path, case):
    program, says = sentinel_programs(tmp_path / "sentinel")[case]
    refused(tmp_path, program, says)
    assert not (tmp_path / "sentinel").exists()


def test_the_sentinel_would_be_seen(tmp_path):
    """The programs above do run in Python's own unpickler, so that their absence of effect means something."""
    pickle.loads(sentinel_programs(tmp_path / "sentinel")["os.system"][0])
    assert (tmp_path / "sentinel").exists()


FLOAT = global_code("torch", "FloatStorage")
ROW = int_code(0), ints_code([6]), ints_code([1])


def view(*args):
    """A tensor from arguments that may be of any type."""
    return call_code("torch._utils", "_rebuild_tensor_v2", [*args, b"\x89", HOOKS])


def storage(kind, key, n_items):
    return tuple_code([text_code("storage"), kind, key, text_code("cpu"), n_items]) + b"Q"


def test_the_pieces_of_the_damaged_programs_are_sound(tmp_path):
    code = view(storage(FLOAT, text_code("0"), int_code(6)), *ROW)
    assert read_program(tmp_path, state_code([("w", code)]))["w"].tolist() == SIX.tolist()


DAMAGED = {
    "no end": b"\x80\x02}",
    "nothing": b"",
    "end of nothing": b"\x80\x02.",
    "text cut short": b"\x80\x02X\xff\xff\xff\xffabc",
    "text not UTF-8": b"\x80\x02X\x01\0\0\0\xff.",
    "global cut short": b"\x80\x02ctorch\nFloatSt",
    "number cut short": b"\x80\x02J\1",
    "memo unset": b"\x80\x02h\7.",
    "far memo unset": b"\x80\x02j\xff\xff\xff\xff.",
    "tuple without mark": b"\x80\x02t.",
    "items without mark": b"\x80\x02}u.",
    "odd items": b"\x80\x02}(Nu.",
    "items of a tuple": b"\x80\x02)NNs.",
    "value below the mark": b"\x80\x02}(\x85.",
    "mark left": b"\x80\x02(}.",
    "values left": b"\x80\x02}}.",
    "after the end": b"\x80\x02}.}",
    "key not a name": b"\x80\x02}K\1Ns.",
    "key a mutable": b"\x80\x02}}Ns.",
    "key twice": b"\x80\x02}" + text_code("a") + b"NsX\1\0\0\0aNs.",
    "protocol 5": b"\x80\x05}.",
    "call of a number": b"\x80\x02K\1)R.",
    "call of a storage type": b"\x80\x02ctorch\nFloatStorage\n)R.",
    "call without a tuple": b"\x80\x02ccollections\nOrderedDict\nNR.",
    "dictionary of arguments": b"\x80\x02ccollections\nOrderedDict\nN\x85R.",
    "attributes of a number": b"\x80\x02K\1}b.",
    "attributes that are none": b"\x80\x02}Nb.",
    "persistent text": b"\x80\x02" + text_code("storage") + b"Q.",
    "top is a tuple": b"\x80\x02).",
    "top is a tensor": b"\x80\x02" + view_code(F32, 0, [6], [1]) + b".",
    "value is a number": state_code([("epoch", int_code(3))]),
    "value is a dictionary": state_code([("state_dict", b"}")]),
    "value is a list": state_code([("losses", b"]")]),
    "value is a float": state_code([("loss", b"G" + bytes(8))]),
    "parameter of a number": state_code(
        [("w", call_code("torch._utils", "_rebuild_parameter", [b"N", b"\x88", HOOKS]))]
    ),
    "too few arguments": state_code([("w", call_code("torch._utils", "_rebuild_tensor_v2", [F32, int_code(0)]))]),
    "storage is a number": state_code([("w", view_code(int_code(1), 0, [1], [1]))]),
    "shape is a number": state_code(
        [
            (
                "w",
                call_code(
                    "torch._utils",
                    "_rebuild_tensor_v2",
                    [F32, int_code(0), int_code(1), tuple_code([]), b"\x89", HOOKS],
                ),
            )
        ]
    ),
    "strides are text": state_code([("w", view(F32, int_code(0), ints_code([6]), text_code("1")))]),
    "offset is text": state_code([("w", view(F32, text_code("0"), ints_code([6]), ints_code([1])))]),
    "negative stride as a long": state_code(
        [("w", view(F32, int_code(0), ints_code([1]), tuple_code([b"\x8a\1\xff"])))]
    ),
    "storage of text": state_code([("w", view(storage(text_code("FloatStorage"), text_code("0"), int_code(6)), *ROW))]),
    "storage named by a number": state_code([("w", view(storage(FLOAT, int_code(0), int_code(6)), *ROW))]),
    "storage without a size": state_code([("w", view(storage(FLOAT, text_code("0"), b"N"), *ROW))]),
    "tensor twice": state_code([("w", view(F32, *ROW)), ("w", view(F32, *ROW))]),
    "memo below the mark": b"\x80\x02}(q\0u.",
    "negated": state_code([("w", view_code(F32, 0, [6], [1], b"}" + text_code("neg") + b"\x88s"))]),
    "quantised": state_code([("w", view_code(storage_code("QInt8Storage", "0", 6), 0, [6], [1]))]),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_program_is_refused(tmp_path, case):
    refused(tmp_path, DAMAGED[case])


VIEWS = {
    "offset beyond": (6, [1], [1]),
    "longer than the storage": (0, [7], [1]),
    "shifted out": (1, [6], [1]),
    "stride out": (0, [2], [6]),
    "shape that overflows": (0, [2**32, 2**32], [1, 1]),
    "stride that overflows": (0, [2], [2**64]),
    "offset that overflows": (2**64, [1], [1]),
    "terabytes out of a zero stride": (0, [2**40], [0]),
    "aliased rows": (0, [4, 3], [1, 1]),
    "negative size": (0, [-1], [1]),
    "negative stride": (5, [6], [-1]),
    "negative offset": (-1, [1], [1]),
    "fewer strides": (0, [2, 3], [1]),
    "more strides": (0, [2], [1, 1]),
    "65 dimensions": (0, [1] * 65, [1] * 65),
}


@pytest.mark.parametrize("case", VIEWS)
def test_a_view_must_lie_in_its_storage(tmp_path, case):
    refused(tmp_path, state_code([("w", view_code(F32, *VIEWS[case]))]))


@pytest.mark.parametrize(
    ("view", "want"),
    [
        ((0, [2, 3], [3, 1]), [[0, 1, 2], [3, 4, 5]]),
        ((0, [3, 2], [1, 3]), [[0, 3], [1, 4], [2, 5]]),
        ((5, [], []), 5),
        ((1, [2], [0]), [1, 1]),
        ((2, [1, 2], [2**70, 2]), [[2, 4]]),
        ((6, [0, 5], [9, 9]), []),
    ],
)
def test_views_that_do(tmp_path, view, want):
    assert read_program(tmp_path, state_code([("w", view_code(F32, *view))]))["w"].tolist() == want


@pytest.mark.parametrize("n_items", [5, 7, 2**62, 2**64 + 6])
def test_a_storage_has_the_size_that_the_program_says(tmp_path, n_items):
    program = state_code([("w", view_code(storage_code("FloatStorage", "0", n_items), 0, [1], [1]))])
    refused(tmp_path, program, "tensor 'w'.*storage")


@pytest.mark.parametrize("key", ["1", "../data.pkl", "", "/etc/passwd"])
def test_a_storage_must_be_in_the_archive(tmp_path, key):
    refused(tmp_path, state_code([("w", view_code(storage_code("FloatStorage", key, 6), 0, [1], [1]))]), "missing")


def test_big_endian_is_refused(tmp_path):
    refused(tmp_path, state_code([]), "little-endian", byteorder=b"big")


LARGEST = pickle_machine.MOST_INSTRUCTIONS - 1000

BOMBS = {
    "a long program": b"\x80\x02" + text_code("x" * (2 << 20)) + b".",
    "many instructions": b"\x80\x02)" + b"\x85" * 1_000_000 + b".",
    "a deep stack": b"\x80\x02" + b"N" * 100_000 + b".",
    "deep marks": b"\x80\x02" + b"(" * LARGEST + b".",
    "nested tuples": b"\x80\x02)" + b"\x85" * LARGEST + b".",
    "nested tuples as a key": b"\x80\x02})" + b"\x85" * LARGEST + b"Ns.",
    "nested tuples as arguments": b"\x80\x02"
    + global_code("torch._utils", "_rebuild_parameter")
    + b")"
    + b"\x85" * LARGEST
    + b"R.",
    "billion laughs": b"\x80\x02)" + b"q\0h\0h\0h\0\x87" * 25_000 + b".",
    "a number of 2**2000": state_code([("w", view_code(F32, 0, [1 << 2000] * 9, [1 << 2000] * 9))]),
    "memo everywhere": b"\x80\x02N" + b"".join(b"r" + struct.pack("<L", 2**32 - 1 - i) for i in range(50_000)) + b".",
}


@pytest.mark.parametrize("case", BOMBS)
@pytest.mark.parametrize("guard", ["quick", "small"])
def test_bombs_do_not_go_off(tmp_path, case, guard, request):
    with request.getfixturevalue(guard)():
        refused(tmp_path, BOMBS[case])


@pytest.mark.parametrize("case", ["a long program", "many instructions"])
def test_an_absurdly_long_program_is_said_to_be_one(tmp_path, case):
    refused(tmp_path, BOMBS[case], "absurdly long")


def test_an_old_file_is_refused_with_the_way_out():
    with pytest.raises(CheckpointError, match=r"before 1\.6.*save it again"):
        torch_pickle.read(HERE / "before_torch_1_6.bin")


@pytest.mark.parametrize(
    ("start", "says"), [(b"lmgg", "ggml"), (b"GGUF", "GGUF"), (b"<!DOCTYPE html>", "not a file of torch")]
)
def test_other_files_are_named(tmp_path, start, says):
    (tmp_path / "x.bin").write_bytes(start + bytes(100))
    with pytest.raises(CheckpointError, match=says):
        torch_pickle.read(tmp_path / "x.bin")


@pytest.mark.parametrize("names", [[], ["a/data.pkl", "b/data.pkl"], ["data.pkl"], ["a/b/data.pkl"]])
def test_an_archive_needs_one_program(tmp_path, names):
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        archive.writestr("readme", b"")
        for name in names:
            archive.writestr(name, state_code([]))
    with pytest.raises(CheckpointError, match=r"one data\.pkl"):
        torch_pickle.read(tmp_path / "x.bin")
