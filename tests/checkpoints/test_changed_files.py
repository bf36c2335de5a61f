"""Mapped files that somebody writes to while they are in use: an error where it can be one, never wrong numbers."""

import os
import shutil

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import CheckpointError
from refgpt._load import start
from refgpt._open import open_model
from refgpt.checkpoints import files_of, in_memory, open_checkpoint
from refgpt.conversion import convert
from refgpt.numbers.encoded import Encoded
from tests.helpers.model_files import write_model
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config()
PARAMS = random_params(CONFIG, seed=2, dtype="f16")
IDS = [3, 1, 4, 1, 5]


@pytest.fixture
def packed(tmp_path):
    source = write_model(tmp_path / "source", CONFIG, PARAMS)
    convert(*open_model(source), tmp_path / "packed", dtype="q8")
    return tmp_path / "packed"


def cut(file):
    os.truncate(file, 4096)


def grown(file):
    with file.open("ab") as end:
        end.write(b"more")


def rewritten(file):
    """The same size, and a time that no clock needs to have reached."""
    raw, found = file.read_bytes(), file.stat()
    with file.open("r+b") as same:
        same.write(raw)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns + 1))


CHANGES = [cut, grown, rewritten]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_a_model_whose_file_was_changed_refuses_every_pass(packed, backend, change):
    model = refgpt.load(packed, backend=backend)
    session = model.engine.session(1, 8)
    session.prefill(0, IDS)
    change(packed / "packed.safetensors")
    for run in (
        lambda: model.logits(IDS),
        lambda: model.generate(IDS, max_new_tokens=2),
        lambda: session.decode([0], [1]),
        lambda: session.prefill(0, IDS),
        lambda: session.extend(0, [1, 2]),
        lambda: model.engine.session(1, 8).prefill(0, IDS),
        lambda: model.params(),
    ):
        if backend == "c" or run.__code__.co_names[-1] != "params":
            with pytest.raises(CheckpointError, match=r"packed\.safetensors: the file was changed"):
                run()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["source", "packed"])
@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_a_file_that_was_changed_between_opening_and_loading(packed, backend, name, change):
    checkpoint, tokenizer = open_model(packed.parent / name)
    change(next(packed.parent.glob(f"{name}/*.safetensors")))
    with pytest.raises(CheckpointError, match="the file was changed"):
        start(checkpoint, tokenizer, backend, verify=False)
    with pytest.raises(CheckpointError, match="the file was changed"):
        start(checkpoint, tokenizer, backend)


@pytest.mark.parametrize("to", ["refgpt", "hf", "gguf"])
@pytest.mark.parametrize("name", ["source", "packed"])
def test_a_file_that_was_changed_before_it_is_converted(packed, tmp_path, name, to):
    checkpoint, tokenizer = open_model(packed.parent / name)
    cut(next(packed.parent.glob(f"{name}/*.safetensors")))
    with pytest.raises(CheckpointError, match="the file was changed"):
        convert(checkpoint, tokenizer, tmp_path / "out", to)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*"))


def replaced(file):
    shutil.copy(file, file.with_name("new"))
    cut(file.with_name("new"))
    file.with_name("new").rename(file)


@pytest.mark.parametrize("change", [replaced, lambda file: file.unlink()], ids=["replaced", "removed"])
@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_a_file_that_was_replaced_or_removed_is_no_harm(packed, backend, change):
    model = refgpt.load(packed, backend=backend)
    want = model.logits(IDS)
    change(packed / "packed.safetensors")
    assert np.array_equal(model.logits(IDS), want)


def test_the_file_is_known_from_any_directory(packed, monkeypatch, tmp_path):
    monkeypatch.chdir(packed.parent)
    model = refgpt.load("packed")
    monkeypatch.chdir(tmp_path.parent)
    cut(packed / "packed.safetensors")
    with pytest.raises(CheckpointError, match="the file was changed"):
        model.logits(IDS)


@pytest.mark.parametrize("name", ["source", "packed"])
@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_a_copy_needs_no_file(packed, backend, name):
    path = packed.parent / name
    want = refgpt.load(path, backend=backend).logits(IDS)
    model = refgpt.load(path, backend=backend, copy=True)
    cut(next(path.glob("*.safetensors")))
    assert np.array_equal(model.logits(IDS), want)
    assert files_of(leaf for _, leaf in model.engine.kept().items()) == ()


def test_every_kind_of_leaf_can_be_copied(packed, tmp_path):
    convert(*open_model(packed), tmp_path / "out", "gguf")
    from tests.helpers import mesh_writer

    mesh = mesh_writer.model("bf16")
    mesh_writer.write_params_json(tmp_path)
    (tmp_path / "x.tar.zst").write_bytes(mesh_writer.compressed(mesh_writer.tar(mesh_writer.files(mesh, 2)[0])))
    for path in (packed, tmp_path / "out", tmp_path / "x.tar.zst", tmp_path / "source"):
        for name, leaf in open_checkpoint(path).params.items():
            copied = in_memory(leaf)
            assert files_of([copied]) == () and type(copied) is type(leaf), name
            rows = [one.rows(0, one.shape[0]) if isinstance(one, Encoded) else one for one in (leaf, copied)]
            assert rows[0].tobytes() == rows[1].tobytes(), name
