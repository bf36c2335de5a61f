"""Whatever happens to a file of Mesh Transformer JAX or CTranslate2, it opens or is refused in the proper way."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refgpt._common.errors import CheckpointError
from refgpt.checkpoints import open_checkpoint
from refgpt.checkpoints.files import ctranslate2_file, npz_file
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.leaves import widen
from tests.checkpoints.test_checkpoint_fuzz import reads_properly
from tests.helpers import ctranslate2_writer, mesh_writer
from tests.helpers.fuzzing import FAST, JSON, answers_properly, damaged
from tests.helpers.tiny import random_params, tiny_config

ARRAYS = [np.arange(6, dtype="<f4").reshape(2, 3), np.array(7, "<i4"), np.arange(5, dtype="<u2").view(BFLOAT16)]
NPZ = mesh_writer.npz(ARRAYS)
SMALL = tiny_config(n_layer=1, n_head=2, d_model=8, d_ff=32, d_rotary=2, n_vocab=12, n_ctx=6)
VARIABLES = ctranslate2_writer.variables(random_params(SMALL, 1), SMALL, int8=True)
BETAS = "decoder/layer_norm/beta", "decoder/layer_0/shared_layer_norm/beta"
MODEL_BIN = ctranslate2_writer.model_bin({name: x for name, x in VARIABLES.items() if name != BETAS[0]}, dict([BETAS]))
FILES, _ = mesh_writer.files(random_params(SMALL, 1, "bf16"), 2)
TAR = mesh_writer.tar(FILES)
ARCHIVE = mesh_writer.compressed(TAR)


def opens_properly(write):
    """With every number in 32 MB; or one error, which is returned."""

    def open_all(path):
        for _, leaf in open_checkpoint(path).params.items():
            widen(leaf)

    return answers_properly(write, open_all, 32 << 20)


def test_the_whole_files_open():
    assert opens_properly(lambda path: ctranslate2_writer.write_ctranslate2(path, MODEL_BIN, SMALL)) is None
    assert opens_properly(write_archive(ARCHIVE)) is None


@FAST
@given(damaged(NPZ))
def test_damaged_npz_files(raw):
    reads_properly(lambda path: dict(enumerate(npz_file.read(path))), raw)


@FAST
@given(damaged(MODEL_BIN))
def test_damaged_model_bin_files(raw):
    reads_properly(lambda path: ctranslate2_file.read(path).arrays, raw)


@FAST
@given(damaged(MODEL_BIN))
def test_damaged_directories_of_ctranslate2(raw):
    opens_properly(lambda directory: ctranslate2_writer.write_ctranslate2(directory, raw, SMALL))


@FAST
@given(st.data())
def test_edited_variables_of_ctranslate2(data):
    """Sound files of which one variable has become another."""
    name = data.draw(st.sampled_from(sorted(VARIABLES)))
    dtype = data.draw(st.sampled_from(["<f4", "i1", "<i2", "<i4", "<f2", BFLOAT16]))
    shape = data.draw(st.lists(st.integers(0, 24), max_size=3))
    value = data.draw(st.sampled_from([0, 1, 2, 8, 127]))
    array = np.full(shape, value, "<u2").view(BFLOAT16) if dtype is BFLOAT16 else np.full(shape, value, dtype)
    raw = ctranslate2_writer.model_bin(VARIABLES | {name: array})
    keys = data.draw(
        st.dictionaries(st.sampled_from(["bos_token", "eos_token", "layer_norm_epsilon"]), JSON, max_size=2)
    )
    opens_properly(lambda directory: ctranslate2_writer.write_ctranslate2(directory, raw, SMALL, **keys))


def write_archive(raw, **keys):
    def write(directory):
        mesh_writer.write_params_json(directory, SMALL, **keys)
        (directory / "slim.tar.zst").write_bytes(raw)
        return directory / "slim.tar.zst"

    return write


@FAST
@given(damaged(ARCHIVE))
def test_damaged_archives(raw):
    opens_properly(write_archive(raw))


@FAST
@given(damaged(TAR))
def test_damaged_archives_compressed_afterwards(raw):
    opens_properly(write_archive(mesh_writer.compressed(raw)))


@FAST
@given(st.sampled_from(sorted(FILES)).flatmap(lambda name: st.tuples(st.just(name), damaged(FILES[name]))))
def test_damaged_files_of_a_directory(file):
    def write(directory):
        mesh_writer.write_files(directory, FILES | dict([file]))
        mesh_writer.write_params_json(directory, SMALL)
        return directory

    opens_properly(write)


@FAST
@given(st.dictionaries(st.sampled_from([*mesh_writer.params_json(), "d_head"]), JSON, min_size=1, max_size=3))
def test_edited_configurations(keys):
    opens_properly(write_archive(ARCHIVE, **keys))


@FAST
@given(damaged(json.dumps(mesh_writer.params_json(SMALL)).encode()))
def test_damaged_configurations(raw):
    def write(directory):
        path = write_archive(ARCHIVE)(directory)
        (directory / "params.json").write_bytes(raw)
        return path

    opens_properly(write)


def test_every_truncation_of_model_bin_is_refused(tmp_path):
    for n_bytes in range(6, len(MODEL_BIN), 7):
        (tmp_path / "model.bin").write_bytes(MODEL_BIN[:n_bytes])
        try:
            ctranslate2_file.read(tmp_path / "model.bin")
        except CheckpointError:
            continue
        raise AssertionError(n_bytes)
