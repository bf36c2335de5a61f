import numpy as np
import pytest

from refgpt._common.errors import CheckpointError
from refgpt.checkpoints.files import safetensors_file, torch_pickle
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.finite import all_finite, check_finite
from refgpt.numbers.mapped import map_file, place_of, release
from tests.helpers.writers import write_safetensors, write_torch

INTEGERS = {"f16": ("<f2", "<u2"), "bf16": (BFLOAT16, "<u2"), "f32": ("<f4", "<u4"), "f64": ("<f8", "<u8")}
INFINITY = {"f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F800000, "f64": 0x7FF0000000000000}
SIGN = {"f16": 1 << 15, "bf16": 1 << 15, "f32": 1 << 31, "f64": 1 << 63}


@pytest.mark.parametrize("write", [write_safetensors, write_torch])
def test_release_gives_the_pages_back(tmp_path, write, resident_bytes):
    write(tmp_path / "x", {"a": np.ones((1000, 1000), "<f4"), "w": np.ones((3000, 2000), "<f4")})
    tensors = (safetensors_file if write is write_safetensors else torch_pickle).read(tmp_path / "x")
    before = resident_bytes()
    part = tensors["w"][::-1, ::-1].T
    assert part.sum(dtype=float) == 6e6
    touched = resident_bytes()
    assert touched - before > 20e6
    release(part)
    assert resident_bytes() - before < 2e6
    assert part.sum(dtype=float) == 6e6 and (tensors["a"] == 1).all()  # still there


def test_release_leaves_other_arrays_alone(tmp_path):
    owned = np.arange(10.0)
    np.save(tmp_path / "x.npy", owned)
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[3] = 99
    for array in (owned, private, np.float32(3), np.zeros(0)):
        release(np.asarray(array))
    assert private[3] == 99 and owned[9] == 9


def test_release_of_scalars_and_empty_views(tmp_path):
    write_torch(tmp_path / "x", {"s": np.array(2.0, "<f4"), "e": np.zeros((0, 3), "<f4")})
    for array in torch_pickle.read(tmp_path / "x").values():
        release(array)


def test_a_missing_file_an_empty_one_and_a_directory(tmp_path):
    (tmp_path / "empty").touch()
    for name, says in (("none", "no such file"), ("empty", "empty"), (".", "is not a file.*a directory")):
        with pytest.raises(CheckpointError, match=says):
            map_file(tmp_path / name)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(), (1,), (7, 5), (300_000,), (3, 100_001), (200_000, 2), (2, 3, 4)])
def test_one_bad_number_anywhere_is_found(dtype, shape):
    stored, integer = INTEGERS[dtype]
    bits = np.full(shape, INFINITY[dtype] - 1, integer)  # the largest finite number
    bits[...] |= np.array(SIGN[dtype], integer)
    assert all_finite(bits.view(stored))
    flat = bits.reshape(-1)
    for where in {0, flat.size // 2, flat.size - 1}:
        good = flat[where]
        for bad in (INFINITY[dtype], INFINITY[dtype] | SIGN[dtype], INFINITY[dtype] + 1):
            flat[where] = bad
            assert not all_finite(bits.view(stored))
            if bits.ndim == 2:
                assert not all_finite(bits.view(stored).T)
        flat[where] = good


@pytest.mark.parametrize("dtype", INTEGERS)
def test_all_finite_of_nothing(dtype):
    for shape in [(0,), (0, 3), (3, 0)]:
        assert all_finite(np.zeros(shape, INTEGERS[dtype][0]))


def test_check_finite_names_file_and_tensor_as_the_file_has_them(tmp_path):
    write_safetensors(tmp_path / "model.safetensors", {"u": np.ones(3, "<f4"), "w": np.array([1, np.nan], "<f4")})
    mapped = safetensors_file.read(tmp_path / "model.safetensors")["w"]
    with pytest.raises(CheckpointError, match=r"model.safetensors, tensor 'w'.*NaN"):
        check_finite(place_of(mapped, "blocks.0.wq"), mapped)
    with pytest.raises(CheckpointError, match=r"^blocks.0.wq: "):
        check_finite("blocks.0.wq", np.array([np.inf]))
    check_finite("blocks.0.wq", np.ones(3))


def test_all_finite_reads_in_small_pieces(small):
    array = np.ones(16_000_000, "<f2")
    with small():
        assert all_finite(array)
        assert all_finite(array.reshape(4000, 4000).T)
