"""``refgpt convert`` to Hugging Face's layout and to GGUF: round trips, manifests, what a run that fails leaves."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import CheckpointError, TokenizerError
from refgpt._open import open_model
from refgpt.checkpoints import open_checkpoint
from refgpt.conversion import TARGETS, convert
from refgpt.numbers.leaves import widen
from tests.helpers import mesh_writer
from tests.helpers.ggml_writers import PARAMS, QUANTISED, decoded, ggml_bytes
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.work import HANGS

IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def refgpt_convert(*arguments):
    command = [sys.executable, "-m", "refgpt", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=HANGS)


def through(source, out, to, dtype=None):
    convert(*open_model(source), out, to, dtype)
    return out


def bits_of(path):
    return {name: (leaf.dtype, leaf.shape, leaf.tobytes()) for name, leaf in open_checkpoint(path).params.items()}


@pytest.mark.parametrize("dtype", [None, "f32", "f16"])
@pytest.mark.parametrize("stored", ["f32", "f16", "bf16"])
def test_mesh_to_hf_to_gguf_to_hf_keeps_every_bit(tmp_path, stored, dtype):
    (tmp_path / "mesh").mkdir()
    whole = mesh_writer.write_mesh(tmp_path / "mesh", mesh_writer.model(stored), 4)
    first = through(tmp_path / "mesh", tmp_path / "first", "hf", dtype)
    gguf = through(first, tmp_path / "gguf", "gguf", dtype)
    last = through(gguf, tmp_path / "last", "hf", dtype)
    assert bits_of(first) == bits_of(last)
    for name, leaf in open_checkpoint(first).params.items():
        want = widen(dict(whole.items())[name])
        narrow = dtype == "f16" and leaf.ndim == 2
        assert (widen(leaf) == (want.astype("<f2") if narrow else want)).all(), name
    assert open_checkpoint(last).config == open_checkpoint(tmp_path / "mesh").config
    logits = [refgpt.load(path, dtype=dtype).logits(IDS).tobytes() for path in (tmp_path / "mesh", first, gguf, last)]
    assert len(set(logits)) == 1


def test_dtypes_are_understood_by_their_other_names(tmp_path):
    source = write_model(tmp_path / "source", tiny_config(), random_params(tiny_config(), 1))
    for given, name in (("bfloat16", "bf16"), (np.float16, "f16")):
        one = through(source, tmp_path / f"{name} other", "hf", given)
        other = through(source, tmp_path / name, "hf", name)
        assert bits_of(one) == bits_of(other) != bits_of(source)


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize("name", ["gpt-jt-x", "gpt-j-x"])
@pytest.mark.parametrize("to", TARGETS)
def test_no_name_of_a_directory_changes_the_mask(tmp_path, to, name, mask):
    """A copy of a copy too, whose config.json tells what was so before."""
    config = tiny_config()
    source = write_model(tmp_path / "source", config, random_params(config, 1))
    other = "prefix" if mask == "causal" else "causal"
    convert(*open_model(source, other), tmp_path / "first", "hf")
    convert(*open_model(tmp_path / "first", mask), tmp_path / name, to)
    assert open_checkpoint(tmp_path / "first").mask == other
    assert open_checkpoint(tmp_path / name).mask == mask


@pytest.mark.parametrize("encoding", ["f16", *QUANTISED])
def test_ggml_to_gguf_to_packed_to_hf(tmp_path, encoding):
    (tmp_path / "m.bin").write_bytes(ggml_bytes(encoding=encoding))
    gguf = through(tmp_path / "m.bin", tmp_path / "gguf", "gguf")
    packed = through(gguf, tmp_path / "packed", "refgpt")
    last = through(packed, tmp_path / "hf", "hf")
    for name, leaf in open_checkpoint(last).params.items():
        assert widen(leaf).tobytes() == widen(dict(decoded(PARAMS, encoding).items())[name]).tobytes(), name
    logits = {refgpt.load(path, dtype="f32").logits(IDS).tobytes() for path in (tmp_path / "m.bin", gguf, packed, last)}
    assert len(logits) == 1


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_the_manifest(tmp_path, to):
    config = tiny_config()
    source = write_tokenizer(write_model(tmp_path / "source", config, random_params(config, 1)))
    out = through(source, tmp_path / "out", to)
    lines = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert lines.keys() == {path.name for path in out.iterdir()} - {"SHA256SUMS"}
    assert all(hashlib.sha256((out / name).read_bytes()).hexdigest() == found for name, found in lines.items())
    again = through(source, tmp_path / "again", to)
    assert (again / "SHA256SUMS").read_text() == (out / "SHA256SUMS").read_text()


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("dtype", [None, "f16"])
@pytest.mark.parametrize("encoding", ["f32", "q4_0"])
def test_the_size_is_known_before(tmp_path, to, dtype, encoding):
    (tmp_path / "m.bin").write_bytes(ggml_bytes(encoding=encoding))
    said = TARGETS[to].n_bytes(open_checkpoint(tmp_path / "m.bin"), dtype)
    out = through(tmp_path / "m.bin", tmp_path / "out", to, dtype)
    weights = max(path.stat().st_size for path in out.iterdir())
    assert said <= weights < said + 20_000


def test_the_command(tmp_path):
    config = tiny_config()
    source = write_tokenizer(write_model(tmp_path / "source", config, random_params(config, 1)))
    run = refgpt_convert(source, tmp_path / "out", "--to", "gguf", "--dtype", "bf16")
    assert run.returncode == 0 and str(tmp_path / "out") in run.stdout and not run.stderr
    assert {info.dtype for info in open_checkpoint(tmp_path / "out").tensors} == {"bf16", "f32"}
    run = refgpt_convert(source, tmp_path / "out", "--to", "hf")
    assert run.returncode == 1 and "not empty" in run.stderr
    run = refgpt_convert(source, tmp_path / "other", "--to", "hf", "--dtype", "q4")
    assert run.returncode == 1 and "dtype" in run.stderr and not (tmp_path / "other").exists()


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_an_error_leaves_nothing(tmp_path, to):
    config = tiny_config()
    params = random_params(config, 1).map(lambda _, leaf: leaf.copy())
    params.w_head[-1, -1] = np.nan
    source = write_model(tmp_path / "source", config, params)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight.*NaN"):
        through(source, tmp_path / "out", to)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tokenizer_of_more_ids_than_rows_is_refused_for_gguf(tmp_path):
    config = tiny_config()
    source = write_tokenizer(write_model(tmp_path / "source", config, random_params(config, 1)))
    added = {f"<|x{i}|>": n for i, n in enumerate(range(open_model(source)[1].n_vocab, config.n_vocab))}
    (source / "added_tokens.json").write_text(json.dumps(added))
    assert open_model(through(source, tmp_path / "fits", "gguf"))[1].n_vocab == config.n_vocab
    (source / "added_tokens.json").write_text(json.dumps(added | {"<|one more|>": config.n_vocab}))
    with pytest.raises(
        TokenizerError, match=rf"no row.*got {config.n_vocab + 1} ids; wanted at most {config.n_vocab};"
    ):
        through(source, tmp_path / "out", "gguf")
    assert not (tmp_path / "out").exists()
    assert open_model(through(source, tmp_path / "hf", "hf"))[1].n_vocab == config.n_vocab + 1


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 there")
@pytest.mark.parametrize("to", TARGETS)
def test_a_directory_whose_name_is_no_text(tmp_path, to):
    config = tiny_config()
    source = write_model(tmp_path / os.fsdecode(b"GPT-JT \xff\xfe"), config, random_params(config, 1))
    out = through(source, tmp_path / os.fsdecode(b"out\xfd"), to)
    found = dict(open_checkpoint(out).params.items())
    for name, leaf in open_checkpoint(source).params.items():
        assert widen(found[name]).tobytes() == widen(leaf).tobytes(), name
    assert open_checkpoint(out).mask == "prefix"


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_a_killed_run_leaves_no_destination(tmp_path, to):
    config = tiny_config(n_layer=4, d_model=1024, d_ff=4096, n_head=4, n_vocab=20_000)
    write_model(tmp_path / "source", config, random_params(config, 1, "f16"))
    command = [sys.executable, "-m", "refgpt", "convert", tmp_path / "source", tmp_path / "out", "--to", to]
    process = subprocess.Popen([*command, "--dtype", "f32"])
    while process.poll() is None and not written(tmp_path):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert refgpt_convert(*command[4:], "--dtype", "f32").returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_that_is_asked_to_end_leaves_nothing(tmp_path, number):
    """It asks itself, once weights have begun to appear."""
    config = tiny_config()
    write_model(tmp_path / "source", config, random_params(config, 1, "f16"))
    program = (
        "import os, sys\n"
        "from refgpt import cli\n"
        "from refgpt.conversion import packed\n"
        "packed.checksum = lambda _: os.kill(os.getpid(), int(sys.argv[1]))\n"
        "sys.exit(cli.main(['convert', *sys.argv[2:]]))\n"
    )
    command = [sys.executable, "-c", program, str(int(number)), str(tmp_path / "source"), str(tmp_path / "out")]
    assert subprocess.run(command, timeout=HANGS).returncode == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def written(directory: Path) -> bool:
    """Whether weights have begun to appear in what is not the destination yet."""
    found = [path for path in directory.glob(".*/*") if path.suffix in (".gguf", ".safetensors")]
    return any(path.stat().st_size > 1 << 20 for path in found)
