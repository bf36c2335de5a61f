"""Checkpoints of Mesh Transformer JAX, held to the checkpoint of Hugging Face that has the same numbers."""

import json
import re
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import refgpt
from refgpt import ModelConfig
from refgpt._common.errors import CheckpointError, ConfigError
from refgpt._open import open_model
from refgpt.checkpoints import open_checkpoint
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.leaves import row_slices, widen
from refgpt.numbers.mapped import place_of, release
from tests.helpers import mesh_writer
from tests.helpers.mesh_writer import CONFIG, compressed, model, npz, params_json, tar, write_mesh, write_params_json
from tests.helpers.model_files import write_model, write_tokenizer

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
STEP = "step_383500"


def assert_holds(checkpoint, whole):
    leaves = dict(checkpoint.params.items())
    for name, want in whole.items():
        got = np.concatenate(list(row_slices(leaves[name])))
        assert got.dtype == leaves[name].dtype and got.shape == want.shape
        assert (widen(got) == widen(want)).all(), name


@pytest.mark.parametrize("optimiser", [False, True])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_any_number_of_shards_and_every_dtype(tmp_path, n, dtype, optimiser):
    whole = write_mesh(tmp_path, model(dtype), n, optimiser)
    checkpoint = open_checkpoint(tmp_path)
    assert_holds(checkpoint, whole)
    assert checkpoint.config == CONFIG and checkpoint.family == "gptj" and checkpoint.mask == "causal"
    assert checkpoint.format.startswith(f"Mesh Transformer JAX, {n} shard")
    assert ("optimiser" in checkpoint.format) is optimiser
    for name, leaf in checkpoint.params.items():
        summed = name == "wte" or name.endswith("b_out")
        assert leaf.dtype == (np.float32 if summed else model(dtype).wte.dtype)
    assert {info.dtype for info in checkpoint.tensors} == {dtype, "int32"}
    assert len(checkpoint.tensors) == 27 * n and all(info.file.suffix == ".npz" for info in checkpoint.tensors)


def test_twelve_layers_are_in_the_order_of_strings(tmp_path):
    config = replace(CONFIG, n_layer=12)
    whole = write_mesh(tmp_path, model("f16", config=config), 2, config=config)
    assert_holds(open_checkpoint(tmp_path), whole)


@pytest.mark.parametrize("dtype", [None, "f16", "f32"])
@pytest.mark.parametrize("archive", [False, True])
def test_logits_are_those_of_the_hugging_face_checkpoint(tmp_path, archive, dtype):
    (tmp_path / "mesh").mkdir()
    whole = write_mesh(tmp_path / "mesh", model("bf16"), 4)
    path = tmp_path / "mesh"
    if archive:
        path = tmp_path / "mesh" / "slim.tar.zstd"
        path.write_bytes(compressed(tar(mesh_writer.files(model("bf16"), 4)[0])))
    twin = write_model(tmp_path / "hf", CONFIG, whole.map(lambda _, leaf: widen(leaf)))
    for backend in ("c", "numpy"):
        got = refgpt.load(path, backend=backend, dtype=dtype, threads=1)
        assert (got.logits(IDS) == refgpt.load(twin, backend=backend, dtype=dtype, threads=1).logits(IDS)).all()


def test_rows_come_in_any_slices(tmp_path):
    whole = write_mesh(tmp_path, model("f16"), 4)
    leaves = dict(open_checkpoint(tmp_path).params.items())
    for name, want in whole.items():
        for start, stop in ((0, 1), (3, 21), (7, 9), (len(want) - 1, len(want)), (0, len(want))):
            if want.ndim == 2:
                assert (leaves[name].rows(start, stop) == want[start:stop]).all(), name
    assert (leaves["wte"][np.array([59, 0, 17])] == whole.wte[[59, 0, 17]]).all()
    assert leaves["wte"].dtype == np.float32


def test_biases_are_summed_in_float32(tmp_path):
    """Of three bfloat16 addends that float32 holds and bfloat16 does not."""
    devices, _ = mesh_writer.trees(model("bf16"), 4)
    for device, value in zip(devices, [1.0, 2**-9, 2**-10, 0.0], strict=True):
        for tree in (
            device["causal_transformer_shard/~/layer_0/~/linear_5"],
            device["causal_transformer_shard/~/embedding_shard/~/linear"],
        ):
            tree["b"] = mesh_writer._narrow(np.full(32, value), BFLOAT16)
    for k, tree in enumerate(devices):
        leaves = list(mesh_writer.leaves_of(mesh_writer.state(tree, False)))
        mesh_writer.write_files(tmp_path, {f"step_1/shard_{k}/0.npz": npz(leaves)})
    write_params_json(tmp_path)
    params = open_checkpoint(tmp_path).params
    total = np.float32(1 + 2**-9 + 2**-10)
    assert (params.blocks[0].b_out == total).all()
    assert (params.wte.rows(0, 60) == widen(model("bf16").wte) + total).all()


def test_where_the_files_may_be(tmp_path):
    whole = write_mesh(tmp_path, model(), 2)
    inside = tmp_path / STEP
    assert_holds(open_checkpoint(inside), whole)
    (tmp_path / "params.json").rename(inside / "params.json")
    for path in (tmp_path, inside):
        assert_holds(open_checkpoint(path), whole)
    other = write_mesh(tmp_path / "other", model(seed=8), 1)
    shutil.move(tmp_path / "other" / STEP, tmp_path / "step_9")
    assert_holds(open_checkpoint(tmp_path), whole)  # 9 comes before 383500
    shutil.move(tmp_path / "other" / "params.json", tmp_path / "step_9")
    assert_holds(open_checkpoint(tmp_path / "step_9"), other)
    write_tokenizer(tmp_path)
    assert open_model(tmp_path)[1].n_vocab == 61


@pytest.mark.parametrize(
    ("first", "second"),
    [("shard_1", "shard_01"), ("shard_1/3.npz", "shard_1/03.npz"), ("../step_383500", "../step_0383500")],
)
def test_a_number_that_is_there_twice(tmp_path, first, second):
    mesh_writer.write_mesh(tmp_path, mesh_writer.model("f32"), 2)
    copy = shutil.copy if first.endswith(".npz") else shutil.copytree
    copy(tmp_path / STEP / first, tmp_path / STEP / second)
    with pytest.raises(CheckpointError, match=r"a number is there twice; got .* and .*; remove"):
        open_checkpoint(tmp_path)


def test_other_numbers_count_for_nothing(tmp_path):
    """Digits of other scripts, and steps without shards."""
    whole = mesh_writer.write_mesh(tmp_path, mesh_writer.model("f32"), 2)
    for name in (f"{STEP}/shard_\u0661", f"step_{7 * chr(0x669)}/shard_0", "step_0383500"):
        (tmp_path / name).mkdir(parents=True)
    assert_holds(open_checkpoint(tmp_path), whole)


def test_whole_heads_are_rotated_where_nothing_else_is_said(tmp_path):
    write_mesh(tmp_path, model(), 1)
    keys = params_json()
    del keys["pe_rotary_dims"], keys["norm"], keys["pe"]
    (tmp_path / "params.json").write_text(json.dumps(keys))
    assert open_checkpoint(tmp_path).config == replace(CONFIG, d_rotary=8)


def test_gpt_jt_by_name(tmp_path):
    (tmp_path / "GPT-JT").mkdir()
    write_mesh(tmp_path / "GPT-JT", model(), 1)
    assert open_checkpoint(tmp_path / "GPT-JT").mask == open_checkpoint(tmp_path / "GPT-JT" / STEP).mask == "prefix"
    assert open_checkpoint(tmp_path / "GPT-JT", mask="causal").mask == "causal"


def test_files_of_numpy_itself(tmp_path):
    """np.savez writes the two bytes of a bfloat16 as "|V2"; other versions of the header are read as well."""
    write_mesh(tmp_path, model("bf16"), 1)
    devices, whole = mesh_writer.trees(model("bf16"), 1)
    leaves = list(mesh_writer.leaves_of(mesh_writer.state(devices[0], False)))
    plain = [leaf.view("V2") if leaf.dtype == BFLOAT16 else leaf for leaf in leaves]
    shutil.rmtree(tmp_path / STEP / "shard_0")
    (tmp_path / STEP / "shard_0").mkdir()
    np.savez(tmp_path / STEP / "shard_0" / "0.npz", *plain)
    assert_holds(open_checkpoint(tmp_path), whole)
    turned = [np.asfortranarray(leaf) for leaf in plain]
    np.savez(tmp_path / STEP / "shard_0" / "0.npz", *turned)
    assert_holds(open_checkpoint(tmp_path), whole)


def rewritten(directory, change):
    """The files with the arrays of the first one changed."""
    path = directory / STEP / "shard_0" / "0.npz"
    with np.load(path) as stored:
        arrays = [stored[name] for name in stored.files]
    path.write_bytes(npz(change(arrays)))


FAULTS = {
    "no configuration": (lambda d: (d / "params.json").unlink(), ConfigError, r'no params\.json.*"layers": 28'),
    "t5": (lambda d: write_params_json(d, pe="t5"), ConfigError, r"params\.json: pe describes another.*'rotary'"),
    "rmsnorm": (lambda d: write_params_json(d, norm="rmsnorm"), ConfigError, "norm describes another model"),
    "no layers": (lambda d: (d / "params.json").write_text("{}"), ConfigError, "no layers, n_heads, d_model, seq"),
    "odd heads": (lambda d: write_params_json(d, n_heads=5), ConfigError, "n_heads does not divide"),
    "odd layers": (lambda d: write_params_json(d, layers="two"), ConfigError, "layers is not a number"),
    "more layers": (lambda d: write_params_json(d, layers=3), CheckpointError, "got 27 in a shard; wanted at least 37"),
    "fewer layers": (
        lambda d: write_params_json(d, layers=1),
        CheckpointError,
        "linear/w of shard 0",
    ),
    "other width": (lambda d: write_params_json(d, d_model=64), CheckpointError, r"b of shard 0 is \[32\], not \[64\]"),
    "other vocabulary": (lambda d: write_params_json(d, n_vocab=64), CheckpointError, r"\[30, 32\], not \[32, 32\]"),
    "three heads": (lambda d: write_params_json(d, n_heads=1), CheckpointError, "share out.*2 shards.*1 heads"),
    "no shard 1": (lambda d: shutil.rmtree(d / STEP / "shard_1"), CheckpointError, "share|linear"),
    "shard 2 alone": (lambda d: (d / STEP / "shard_1").rename(d / STEP / "shard_2"), CheckpointError, "no shard_1"),
    "no file 3": (lambda d: (d / STEP / "shard_1" / "3.npz").unlink(), CheckpointError, r"shard_1 has no 3\.npz"),
    "no last file": (lambda d: (d / STEP / "shard_1" / "15.npz").unlink(), CheckpointError, "got 26 or 27 in a shard"),
    "one more array": (lambda d: rewritten(d, lambda x: [*x, x[0]]), CheckpointError, "got 27 or 28 in a shard"),
    "two dtypes": (lambda d: rewritten(d, lambda x: [x[0].astype("f2"), *x[1:]]), CheckpointError, "is float16 in sha"),
    "whole numbers": (lambda d: rewritten(d, lambda x: [x[0].astype("i4"), *x[1:]]), CheckpointError, "holds int32"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_checkpoints_that_do_not_fit(tmp_path, case):
    spoil, kind, says = FAULTS[case]
    write_mesh(tmp_path, model(), 2)
    spoil(tmp_path)
    with pytest.raises(kind, match=says) as error:
        open_checkpoint(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_numbers_that_are_not_finite_are_found_where_they_are(tmp_path):
    spoilt = model("f16")
    spoilt.blocks[1].w_out[3, 100] = np.inf
    write_mesh(tmp_path, spoilt, 2)
    with pytest.raises(CheckpointError, match=r"tensor 'layer_1/~/linear_5/w': .*NaN or infinity"):
        refgpt.load(tmp_path)
    params = open_checkpoint(tmp_path).params
    assert place_of(params.wte, "wte") == f"{tmp_path}, tensor 'embedding_shard/~/linear/w'"
    assert place_of(params.ln_w, "ln_w").endswith("npz, tensor 'arr_0'")


NPZ_FAULTS = {
    "compressed": (npz([np.ones(3)], zipfile.ZIP_DEFLATED), "compressed"),
    "an object": (npz([np.ones(3)]).replace(b"<f8", b"|O8"), "dtype"),
    "big-endian": (npz([np.ones(3)]).replace(b"<f8", b">f8"), "dtype"),
    "a program": (npz([np.ones(3)]).replace(b"(3,)", b"f(3)"), "no array as NumPy writes it"),
    "too small": (npz([np.ones(3)]).replace(b"(3,)", b"(2,)"), "does not fill its place"),
    "too large": (npz([np.ones(3)]).replace(b"(3,)", b"(4,)"), "does not fill its place"),
    "another version": (npz([np.ones(3)]).replace(b"NUMPY\1", b"NUMPY\4"), "no array as NumPy writes it"),
    "another name": (npz([np.ones(3)]).replace(b"arr_0", b"arr_1"), "nothing else"),
    "no archive": (b"PK" * 100, "cut short"),
}


@pytest.mark.parametrize("case", NPZ_FAULTS)
def test_files_that_are_not_numpys(tmp_path, case):
    raw, says = NPZ_FAULTS[case]
    write_mesh(tmp_path, model(), 1)
    (tmp_path / STEP / "shard_0" / "7.npz").write_bytes(raw)
    with pytest.raises(CheckpointError, match=rf"7\.npz.*{says}"):
        open_checkpoint(tmp_path)


def names_6b():
    """The arrays of one of eight shards of GPT-J-6B in their order, by hand."""
    yield from ((4096,), (6300, 4096))
    for _ in range(28):
        yield from ((4096, 512), (4096, 512), (4096, 512), (512, 4096))
        yield from ((2048,), (4096, 2048), (4096,), (2048, 4096), (4096,), (4096,))
    yield from ((6300,), (4096, 6300), (4096,), (4096,))


def write_holes(path, arrays):
    """An archive of arrays of zeros that take no room on disk, each given by its shape and dtype."""
    directory, at = b"", 0
    with path.open("wb") as file:
        for i, (shape, descr) in enumerate(arrays):
            name, header = f"arr_{i}.npy".encode(), mesh_writer.npy_header(descr, shape)
            n_bytes = len(header) + np.dtype(descr).itemsize * int(np.prod(shape))
            sizes = (n_bytes, n_bytes, len(name), 0)
            file.seek(at)
            file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, *sizes) + name + header)
            directory += struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, *sizes, 0, 0, 0, 0, at) + name
            at += 30 + len(name) + n_bytes
        file.seek(at)
        file.write(directory)
        counts = (len(arrays), len(arrays), len(directory), at)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *counts, 0))


def test_opening_6b_parameters_costs_nothing(tmp_path, quick, small):
    """Twelve gigabytes of holes in 128 sparse files: shapes are checked and nothing is read but vectors."""
    leaves = [(shape, "<V2") for shape in names_6b()] + [((), "<i4")]
    for k in range(8):
        (tmp_path / STEP / f"shard_{k}").mkdir(parents=True)
        for j, piece in enumerate(mesh_writer.pieces_of(leaves)):
            write_holes(tmp_path / STEP / f"shard_{k}" / f"{j}.npz", piece)
    (tmp_path / "params.json").write_text(json.dumps(params_json(ModelConfig())))
    with quick():
        checkpoint = open_checkpoint(tmp_path)
    with small():
        open_checkpoint(tmp_path)
    assert checkpoint.config == ModelConfig() and len(checkpoint.tensors) == 8 * 287
    assert sum(leaf.size for _, leaf in checkpoint.params.items()) == 6_050_882_784
    stored = sum(np.prod(info.shape, dtype=int) for info in checkpoint.tensors if info.name != "step")
    assert stored == 6_053_381_344  # the published number counts what every shard has a copy of


def mapped_bytes(directory):
    """How much of the files of a directory is in memory by maps; the counts in /proc/self/status lag behind."""
    maps = Path("/proc/self/smaps")
    if not maps.exists():
        pytest.skip("only Linux tells")
    found = re.findall(rf"{directory}/.*\n(?:\w+: .*\n)*?Rss: +(\d+) kB", maps.read_text())
    return 1024 * sum(map(int, found))


def test_release_gives_the_pages_back(tmp_path):
    config = replace(CONFIG, d_model=512, d_ff=2048, n_vocab=4096)
    write_mesh(tmp_path, model("f32", config=config), 4, config=config)
    wide = open_checkpoint(tmp_path).params.w_head
    release(wide)  # what opening brought in by the way
    before = mapped_bytes(tmp_path)
    wide.rows(0, 4096)
    assert mapped_bytes(tmp_path) - before >= wide.nbytes == 1 << 23
    release(wide)
    assert mapped_bytes(tmp_path) - before < 1e6
