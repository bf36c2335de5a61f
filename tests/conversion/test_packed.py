"""The packed format: the bits of a model quantised while it is loaded, and nothing that was altered."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import refgpt
from refgpt._common.errors import CheckpointError, RefgptError
from refgpt._open import open_model
from refgpt.checkpoints import open_checkpoint, verify_checksums
from refgpt.cli import main
from refgpt.conversion import TARGETS, convert
from refgpt.kernels import store
from refgpt.numbers.checksums import digests, digests_and_finite
from refgpt.numbers.leaves import widen
from refgpt.numbers.mapped import MappedFile, release
from refgpt.numbers.packing import pack_params
from refgpt.numbers.panels import Panels
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.writers import config_json, state_dict, write_safetensors

CONFIG = tiny_config(d_model=48, n_head=3, d_rotary=10, d_ff=100, n_vocab=71)
IDS = [1, 30, 7, 7, 2, 36, 0]
DTYPES = [dtype for dtype in TARGETS["refgpt"].DTYPES if dtype]
STORED = ["f32", "f16", "bf16"]


@pytest.fixture(scope="module", params=STORED)
def source(request, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    (directory / "source").mkdir()
    write_safetensors(directory / "source" / "model.safetensors", state_dict(random_params(CONFIG, 1, request.param)))
    (directory / "source" / "config.json").write_text(json.dumps(config_json(CONFIG)))
    return write_tokenizer(directory / "source")


def converted(source: Path, out: Path, dtype: str | None = None, **options) -> Path:
    checkpoint, tokenizer = open_model(source)
    convert(checkpoint, tokenizer, out, dtype=dtype, **options)
    return out


@pytest.fixture(scope="module", params=["q4", "q3"])
def packed(tmp_path_factory, request) -> Path:
    """A small model with a tokenizer, in a directory with the name of its dtype."""
    directory = tmp_path_factory.mktemp("packed")
    write_model(directory / "source", CONFIG, random_params(CONFIG, 1, "f16"))
    return converted(write_tokenizer(directory / "source"), directory / request.param, request.param)


@pytest.fixture
def damaged(packed, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(packed, tmp_path / "copy"))


# ---- what is written is what a load would make ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_a_converted_model_has_the_bits_of_one_packed_while_it_is_loaded(source, tmp_path, dtype):
    out = converted(source, tmp_path / "out", dtype)
    got, want = refgpt.load(out), refgpt.load(source, dtype=dtype)
    assert got.logits(IDS).tobytes() == want.logits(IDS).tobytes()
    assert got.generate("Hi", seed=3, max_new_tokens=9).text == want.generate("Hi", seed=3, max_new_tokens=9).text
    assert got.verify(IDS).first_broken is None
    plain, quantised = refgpt.load(out, backend="numpy"), refgpt.load(source, backend="numpy", dtype=dtype)
    assert plain.logits(IDS).tobytes() == quantised.logits(IDS).tobytes()
    version = 2 if dtype == "q3" else 1
    assert plain.dtype is None and plain.checkpoint.format == f"refgpt packed, version {version}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_matrices_are_used_where_they_lie_in_the_file(source, tmp_path, dtype):
    checkpoint, _ = open_model(converted(source, tmp_path / "out", dtype))
    leaves = pack_params(checkpoint.params, None, store).items()
    for name, leaf in leaves:
        if leaf.ndim == 1:
            continue
        data = leaf.data if isinstance(leaf, Panels) else leaf
        assert not data.flags.writeable, name
        assert data.ctypes.data % 4096 == 0, name
        base = data
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, MappedFile), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_dtype_can_be_asked_of_a_converted_model(packed, dtype):
    model = refgpt.load(packed, dtype=dtype)
    kept = refgpt.load(packed).params()
    if dtype == "f32":
        for (_, got), (_, want) in zip(model.params().items(), kept.items(), strict=True):
            assert np.array_equal(widen(got), widen(want))
    assert model.verify(IDS).first_broken is None
    assert model.engine.params.blocks[0].w_in.kind == dtype


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_converted_model_can_be_converted_again(packed, tmp_path, to):
    out = converted(packed, tmp_path / "out", to=to)
    want = refgpt.load(packed, dtype="f32")
    assert np.array_equal(refgpt.load(out, dtype="f32").logits(IDS), want.logits(IDS))
    again = converted(packed, tmp_path / "again")
    assert (again / "packed.safetensors").read_bytes() == (packed / "packed.safetensors").read_bytes()


def test_the_same_model_gives_the_same_bytes(source, tmp_path):
    outs = [converted(source, tmp_path / name, "q8") for name in ("a", "b")]
    names = [sorted(path.name for path in out.iterdir()) for out in outs]
    assert names[0] == names[1]
    assert all((outs[0] / name).read_bytes() == (outs[1] / name).read_bytes() for name in names[0])


def test_a_matrix_of_many_slices_and_pieces(tmp_path, monkeypatch):
    from refgpt.numbers import leaves

    config = tiny_config(d_model=96, n_head=2, d_rotary=8, d_ff=2000, n_vocab=1500)
    source = write_model(tmp_path / "source", config, random_params(config, 2))
    want = refgpt.load(source, dtype="q8").logits(IDS)
    monkeypatch.setattr(leaves, "SLICE", 96 * 64)
    done = []
    out = converted(source, tmp_path / "out", "q8", progress=lambda *counts: done.append(counts))
    assert max(path.stat().st_size for path in out.iterdir()) > 15 * 65536
    assert np.array_equal(refgpt.load(out).logits(IDS), want)
    assert done == sorted(done) and len(done) > 100
    assert {total for _, total in done} == {done[-1][0]}


@pytest.mark.parametrize("prefix", [True, False, None])
def test_the_mask_is_kept(tmp_path, prefix):
    source = write_model(tmp_path / "source", CONFIG, random_params(CONFIG, 1), prefix=prefix)
    before, after = (open_checkpoint(path) for path in (source, converted(source, tmp_path / "out", "q4")))
    assert (after.mask, after.mask_source) == (before.mask, before.mask_source)
    assert open_checkpoint(tmp_path / "out", mask="prefix").mask == "prefix"


def test_the_tokenizer_goes_along(packed):
    model = refgpt.load(packed)
    assert model.tokenizer.decode(model.tokenizer.encode("Once upon")) == "Once upon"


def test_vectors_in_float64_are_rounded(tmp_path):
    params = random_params(CONFIG, 1).map(lambda name, leaf: leaf.astype(np.float64))
    source = write_model(tmp_path / "source", CONFIG, params)
    out = converted(source, tmp_path / "out")
    assert {info.dtype for info in open_checkpoint(out).tensors} == {"f32"}
    assert np.array_equal(refgpt.load(out).logits(IDS), refgpt.load(source).logits(IDS))


@pytest.mark.parametrize(
    ("number", "dtype", "match"), [(np.nan, "q4", "NaN"), (1e9, "q8", "cannot"), (1e6, "f16", "cannot")]
)
def test_a_weight_that_cannot_be_written_leaves_nothing(tmp_path, number, dtype, match):
    params = random_params(CONFIG, 1)
    params.blocks[1].w_out[3, 99] = number
    source = write_model(tmp_path / "source", CONFIG, params)
    with pytest.raises(CheckpointError, match=rf"h\.1\.mlp\.fc_out\.weight.*{match}"):
        converted(source, tmp_path / "out", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("to", "dtype"), [("onnx", None), ("hf", "q4"), ("gguf", "q3"), ("refgpt", "f64"), ("refgpt", 4)]
)
def test_what_is_not_written_is_refused(packed, tmp_path, to, dtype):
    checkpoint, tokenizer = open_model(packed)
    with pytest.raises(CheckpointError, match="cannot be used"):
        convert(checkpoint, tokenizer, tmp_path / "out", to, dtype)
    assert list(tmp_path.iterdir()) == []


# ---- the file -------------------------------------------------------------------------------------------------------


def header_of(file: Path) -> tuple[dict, int]:
    raw = file.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + n]), 8 + n


def test_the_file_is_what_its_description_says(packed):
    file = packed / "packed.safetensors"
    header, start = header_of(file)
    assert start % 4096 == 0 and file.stat().st_size % 4096 == 0
    metadata = header.pop("__metadata__")
    leaves = json.loads(metadata["leaves"])
    assert list(leaves) == list(header) == [name for name, _ in random_params(CONFIG, 1).items()]
    tensors = safetensors.numpy.load_file(file)
    for name, leaf in leaves.items():
        assert header[name]["data_offsets"][0] % 4096 == 0
        raw = tensors[name]
        assert raw.dtype == np.uint8 and len(raw) % 4096 == 0
        kind = "f32" if len(leaf["shape"]) == 1 else "q8" if name == "wte" else packed.name
        assert (leaf["kind"], leaf["layout"]) == (kind, "rows" if kind == "f32" else "panels")
        piece_digests = digests(raw.view(np.uint32))
        assert leaf["checksum"] == hashlib.sha256(piece_digests.astype("<u8").tobytes()).hexdigest()
    manifest = json.loads((packed / "manifest.json").read_text())
    version = {"q4": 1, "q3": 2}[packed.name]
    assert (manifest["format"], manifest["version"], metadata["version"]) == ("refgpt packed", version, str(version))
    assert manifest["files"].keys() | {"manifest.json"} == {path.name for path in packed.iterdir()}
    assert manifest["files"]["packed.safetensors"]["sha256"] == hashlib.sha256(file.read_bytes()[:start]).hexdigest()


def test_it_is_opened_without_the_readers_of_other_formats(packed):
    code = "import sys, refgpt.checkpoints as c; c.open_checkpoint(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, packed], capture_output=True, text=True, check=True)
    found = {name for name in done.stdout.split() if name.startswith("refgpt.checkpoints.layouts.")}
    assert found == {"refgpt.checkpoints.layouts.packed"}


def test_info_tells_what_is_inside(packed, capsys):
    assert main(["info", str(packed)]) == 0
    shown = capsys.readouterr().out
    assert packed.name in shown and "packed.safetensors" in shown


# ---- what was altered -----------------------------------------------------------------------------------------------


def refused(directory: Path, match: str, **options) -> None:
    for backend in ("c", "numpy"):
        with pytest.raises(RefgptError, match=match):
            refgpt.load(directory, backend=backend, **options)


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("place", np.linspace(0, 1, 41))
def test_a_byte_that_was_altered_is_found_wherever_it_is(damaged, place, bit):
    file = damaged / "packed.safetensors"
    raw = bytearray(file.read_bytes())
    raw[round(place * (len(raw) - 1))] ^= 1 << bit
    file.write_bytes(raw)
    with pytest.raises(CheckpointError) as fault:
        refgpt.load(damaged)
    assert "not the one that was written" in str(fault.value) or "not those that were written" in str(fault.value)
    assert "packed.safetensors" in str(fault.value)


def test_the_altered_tensor_is_named(damaged):
    file = damaged / "packed.safetensors"
    header, start = header_of(file)
    raw = bytearray(file.read_bytes())
    raw[start + header["blocks.1.w_in"]["data_offsets"][0] + 5] ^= 1
    file.write_bytes(raw)
    refused(damaged, r"packed\.safetensors, tensor 'blocks\.1\.w_in': the bytes are not those that were written")
    refgpt.load(damaged, verify=False)
    with pytest.raises(CheckpointError, match="not those that were written"):
        converted(damaged, damaged.parent / "out", "q8")
    with pytest.raises(CheckpointError, match="not those that were written"):
        verify_checksums(open_checkpoint(damaged), digests_and_finite)
    assert not (damaged.parent / "out").exists()


@pytest.mark.parametrize("name", ["config.json", "vocab.json", "merges.txt"])
def test_a_small_file_that_was_altered_is_named(damaged, name):
    path = damaged / name
    path.write_bytes(path.read_bytes().replace(b"2", b"3", 1).replace(b"g", b"h", 1))
    refused(damaged, rf"{name}: the file is not the one that was written")
    path.write_bytes(path.read_bytes() + b" ")
    refused(damaged, rf"{name}: there is data after its end")
    path.unlink()
    refused(damaged, rf"{name}: a file that the manifest lists is missing")


@pytest.mark.parametrize("cut", [1, 4096, 100_000])
def test_a_file_cut_short_or_too_long_is_refused(damaged, cut):
    file = damaged / "packed.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    refused(damaged, r"packed\.safetensors: the file is cut short")
    file.write_bytes(whole + bytes(cut))
    refused(damaged, r"packed\.safetensors: there is data after its end")
    file.write_bytes(b"")
    refused(damaged, r"packed\.safetensors: the file is cut short")


def test_a_directory_without_its_manifest_is_not_whole(damaged):
    (damaged / "manifest.json").unlink()
    refused(damaged, r"there is no manifest\.json.*convert the original model again")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"version": 3}, r"version of the packed format that is not read; got 3; wanted 1 or 2; update refgpt"),
        ({"version": "1"}, "no manifest of a packed model"),
        ({"format": "other"}, "no manifest of a packed model"),
        ({"files": {}}, "lists no files"),
        ({"files": []}, "lists no files"),
        ({"files": {"config.json": 1, "packed.safetensors": 1}}, "makes no sense"),
        ({"files": {"config.json": {"bytes": 1, "sha256": ""}, "packed.safetensors": {}}}, "data after its end"),
    ],
)
def test_a_manifest_that_makes_no_sense(damaged, change, match):
    path = damaged / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(damaged, match)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("../outside", "makes no sense"),
        ("/etc/passwd", "makes no sense"),
        ("./x", "makes no sense"),
        ("..", "is not a file"),
    ],
)
def test_a_manifest_cannot_reach_out_of_its_directory(damaged, name, match):
    (damaged.parent / "outside").write_text("1")
    path = damaged / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": ""}
    path.write_text(json.dumps(manifest))
    refused(damaged, match)


def rewrite(directory: Path, change) -> None:
    """Change the header and make the manifest agree, as somebody with bad intentions would."""
    file = directory / "packed.safetensors"
    header, start = header_of(file)
    leaves = json.loads(header["__metadata__"]["leaves"])
    change(header, leaves)
    if header.get("__metadata__"):
        header["__metadata__"]["leaves"] = json.dumps(leaves) if isinstance(leaves, dict) else leaves
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % 4096)
    head = struct.pack("<Q", len(text)) + text
    raw = head + file.read_bytes()[start:]
    file.write_bytes(raw)
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["packed.safetensors"] = {"bytes": len(raw), "sha256": hashlib.sha256(head).hexdigest()}
    path.write_text(json.dumps(manifest))


def set_leaf(**values):
    return lambda header, leaves: leaves["blocks.0.wq"].update(values)


def swap(header, leaves):
    header["blocks.0.wq"], header["w_head"] = header["w_head"], header["blocks.0.wq"]


HOSTILE = {
    "nothing": (lambda header, leaves: None, None),
    "no metadata": (lambda header, leaves: header.pop("__metadata__"), "header makes no sense"),
    "metadata that is no object": (lambda header, leaves: header.update(__metadata__=None), "header makes no sense"),
    "a leaf less": (lambda header, leaves: leaves.pop("w_head"), "w_head"),
    "a leaf more": (lambda header, leaves: leaves.update(x={}), "do not fit the configuration"),
    "a tensor less": (lambda header, leaves: header.pop("b_head"), "belongs? to none|missing|after the last tensor"),
    "a larger shape": (set_leaf(shape=[48, 4800]), "not read"),
    "a shape of floats": (set_leaf(shape=[48.5, 48]), "not read"),
    "another kind": (set_leaf(kind="f32"), "another size"),
    "an unknown kind": (set_leaf(kind="q2"), "not read"),
    "a kind that is a list": (set_leaf(kind=["q4"]), "not read"),
    "another layout": (set_leaf(layout="rows"), "not read"),
    "a checksum that is no text": (set_leaf(checksum=4), "not read"),
    "another checksum": (set_leaf(checksum="0" * 64), "not those that were written"),
    "an entry that is no object": (lambda header, leaves: leaves.update(w_head=3), "makes no sense"),
    "swapped tensors": (swap, "not those that were written"),
    "another dtype": (lambda header, leaves: header["b_head"].update(dtype="I8"), "another size"),
    "an offset beyond the end": (lambda header, leaves: header["b_head"].update(data_offsets=[0, 1 << 60]), "offsets"),
    "a checksum of many letters": (set_leaf(checksum="0" * 65), "not read"),
    "a tensor more": (
        lambda header, leaves: header.update(more={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}),
        "no leaves; got more",
    ),
    "a mask of no text": (lambda header, leaves: header["__metadata__"].update(mask="\ud800"), "mask in the header"),
    "no mask": (lambda header, leaves: header["__metadata__"].pop("mask"), "mask in the header"),
    "an empty mask": (lambda header, leaves: header["__metadata__"].update(mask=None), "mask in the header"),
    "another mask": (lambda header, leaves: header["__metadata__"].update(mask="none"), "mask in the header"),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_a_header_with_bad_intentions(damaged, fault):
    change, match = HOSTILE[fault]
    rewrite(damaged, change)
    if match is None:
        refgpt.load(damaged)
    else:
        refused(damaged, match)


def test_leaves_that_are_no_characters_are_refused(damaged):
    rewrite(damaged, lambda header, leaves: None)
    file = damaged / "packed.safetensors"
    header, _ = header_of(file)
    raw = file.read_bytes()
    at = raw.index(b"blocks.0.wq")
    assert at < len(json.dumps(header)) + 8
    damaged_name = raw[:at] + b"\\ud800" + raw[at + 6 :]
    file.write_bytes(damaged_name)
    head = damaged_name[: 8 + int.from_bytes(raw[:8], "little")]
    path = damaged / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["packed.safetensors"]["sha256"] = hashlib.sha256(head).hexdigest()
    path.write_text(json.dumps(manifest))
    refused(damaged, "UTF-8|do not fit|overlaps|belong to none|missing")


def test_a_header_of_any_length_is_refused(damaged):
    file = damaged / "packed.safetensors"
    whole = file.read_bytes()
    for n in (0, 1, len(whole), 1 << 62, (1 << 64) - 1):
        file.write_bytes(struct.pack("<Q", n) + whole[8:])
        refused(damaged, "header is not the one that was written")


def test_pages_come_back_after_they_are_released(packed):
    checkpoint = open_checkpoint(packed)
    before = checkpoint.params.w_head.rows(0, 5)
    release(checkpoint.params.w_head)
    assert np.array_equal(checkpoint.params.w_head.rows(0, 5), before)


# ---- the command ----------------------------------------------------------------------------------------------------


def test_the_command_converts(packed, tmp_path, capsys):
    source = packed.parent / "source"
    assert main(["convert", str(source), str(tmp_path / "out"), "--dtype", packed.name]) == 0
    assert "out: " in capsys.readouterr().out
    assert (tmp_path / "out" / "packed.safetensors").read_bytes() == (packed / "packed.safetensors").read_bytes()
    assert main(["convert", str(source), str(tmp_path / "hf"), "--to", "hf", "--dtype", "f32"]) == 0
    assert refgpt.load(tmp_path / "hf").checkpoint.params.wte.dtype == np.float32


def test_the_command_refuses_a_destination_that_is_taken(packed, tmp_path, capsys):
    (tmp_path / "kept").write_text("1")
    assert main(["convert", str(packed), str(tmp_path)]) == 1
    assert "not empty" in capsys.readouterr().err
    assert main(["convert", str(packed), str(tmp_path / "out"), "--to", "hf", "--dtype", "q4"]) == 1
    assert "dtype: cannot be used" in capsys.readouterr().err
