"""``refgpt info`` on every layout: what the files are, and what they would take."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import refgpt
from refgpt import ModelConfig, cli
from refgpt._common import control_groups, memory
from refgpt.checkpoints import TensorInfo
from refgpt.cli import info as info_command
from refgpt.cli.printing import print_line
from tests.helpers import ctranslate2_writer, ggml_writers, mesh_writer
from tests.helpers.cli_models import CONFIG, write_both_ways, write_tiny
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params


@pytest.fixture
def info(capsys):
    """A function: the facts of ``refgpt info`` by name, and the lines about tensors."""

    def run(path, *options):
        assert cli.main(["info", str(path), *options]) == 0
        facts, _, tensors = capsys.readouterr().out.partition("\n\n")
        return dict(re.findall(r"^(\w+) +(.+)$", facts, re.MULTILINE)) | {"all": facts}, tensors.splitlines()

    return run


def test_a_hugging_face_directory(run, tmp_path):
    path, prefix_path = write_tiny(tmp_path), write_both_ways(tmp_path)
    got = run("info", path)
    assert got.code == 0 and got.err == ""
    facts = dict(re.findall(r"^(\w+) +(.+)$", got.out, re.MULTILINE))
    assert facts["family"] == "gptj" and facts["shape"] == str(CONFIG)
    assert facts["parameters"] == f"{CONFIG.n_params:,}"
    assert facts["tensors"] == "25: 25 f16"
    assert facts["mask"].startswith("causal (")
    assert facts["tokenizer"] == "byte-level BPE, 61 ids, from vocab.json, merges.txt"
    half, whole = f"{2 * CONFIG.n_params / 1000:.3g} kB", f"{4 * CONFIG.n_params / 1000:.3g} kB"
    assert facts["memory"] == f"weights {half} as stored, {whole} in f32, {half} in f16"
    assert "(64 tokens) 49.2 kB in f32, 24.6 kB in f16, 14.3 kB in q8" in got.out
    assert re.search(r"^transformer\.h\.\*\.attn\.q_proj\.weight +f16 +2 x \[32, 32\] +4\.1 kB$", got.out, re.MULTILINE)
    assert "transformer.h.1.attn.q_proj.weight" in run("info", path, "--tensors").out
    other = run("info", prefix_path).out
    source = refgpt.load(prefix_path, backend="numpy").mask_source
    assert f"prefix ({source})" in other and "none: the model takes and returns token ids" in other


def test_info_of_nothing(run, tmp_path):
    got = run("info", tmp_path)
    assert (got.code, got.out) == (1, "") and str(tmp_path) in got.err


def test_a_mesh_directory(tmp_path, info):
    mesh_writer.write_mesh(tmp_path, mesh_writer.model("bf16"), 4, optimiser=True)
    facts, tensors = info(tmp_path)
    assert facts["format"] == (
        "Mesh Transformer JAX, 4 shards of step_383500, and the optimiser's state, which is not read"
    )
    n = mesh_writer.CONFIG.n_params
    assert facts["parameters"] == f"{n:,}" and facts["tensors"] == "108: 104 bf16, 4 int32"
    assert re.fullmatch(
        r"24 \([\d.]+ kB\), shard_0/10\.npz to shard_3/15\.npz", facts["files"]
    )  # those with parameters
    assert any(re.fullmatch(r"layer_\*/~/linear_4/w +bf16  8 x \[32, 32\]  16\.4 kB", line) for line in tensors)
    each = info(tmp_path, "--tensors")[1]
    assert any(re.fullmatch(r"layer_1/~/linear_4/w +bf16  4 x \[32, 32\]  8\.19 kB", line) for line in each)


def test_a_mesh_archive(tmp_path, info):
    found, _ = mesh_writer.files(mesh_writer.model("f16"), 2)
    mesh_writer.write_params_json(tmp_path)
    (tmp_path / "slim.tar.zst").write_bytes(mesh_writer.compressed(mesh_writer.tar(found)))
    facts, _ = info(tmp_path / "slim.tar.zst")
    assert facts["format"] == "Mesh Transformer JAX, 2 shards"
    assert re.fullmatch(r"slim\.tar\.zst \([\d.]+ kB\)", facts["files"])


def test_a_directory_of_ctranslate2(tmp_path, info):
    raw = ctranslate2_writer.model_bin(ctranslate2_writer.variables(int8=True))
    facts, tensors = info(ctranslate2_writer.write_ctranslate2(tmp_path, raw))
    assert facts["format"] == "CTranslate2, version 6, TransformerDecoderSpec revision 8"
    assert facts["tensors"] == "31: 21 f32, 10 int8"
    assert any(
        re.fullmatch(r"decoder/layer_\*/ffn/linear_0/weight_scale +f32   2 x \[80\]  640 B", line) for line in tensors
    )


def test_a_tokenizer_in_a_directory(tmp_path, info):
    path = write_model(tmp_path, mesh_writer.CONFIG, random_params(mesh_writer.CONFIG, 1))
    assert info(path)[0]["tokenizer"].startswith("none: ")
    write_tokenizer(path)
    assert info(path)[0]["tokenizer"] == "byte-level BPE, 61 ids, from vocab.json, merges.txt"
    (path / "added_tokens.json").write_text('{"<|more|>": 61}')
    assert info(path)[0]["tokenizer"] == "byte-level BPE, 62 ids, from vocab.json, merges.txt, added_tokens.json"


def test_a_tokenizer_in_the_file_of_weights(tmp_path, info):
    path = ggml_writers.write(tmp_path / "gpt-j.bin", ggml_writers.ggml_bytes())
    facts, _ = info(path)
    assert facts["format"] == "ggml"
    assert facts["tokenizer"] == "greedy, 37 ids, from the vocabulary in gpt-j.bin (no merges)"


def test_why_the_published_count_differs(tmp_path, info, monkeypatch):
    config = mesh_writer.CONFIG
    write_model(tmp_path, config, random_params(config, 1))
    assert info(tmp_path)[0]["parameters"] == f"{config.n_params:,}"
    assert ModelConfig().n_params in info_command.PUBLISHED
    monkeypatch.setitem(info_command.PUBLISHED, config.n_params, info_command.PUBLISHED[ModelConfig().n_params])
    assert info(tmp_path)[0]["parameters"].startswith(f"{config.n_params:,} (published as 6,053,381,344: ")


def test_the_difference_is_what_seven_more_devices_hold():
    config = replace(ModelConfig())
    vectors = (2 * config.n_layer + 2 + config.n_layer) * config.d_model  # LayerNorms and biases of fc_out
    assert config.n_params + 7 * vectors + 8 * config.d_model == 6_053_381_344


def test_memory_present(tmp_path, info, monkeypatch):
    write_model(tmp_path, mesh_writer.CONFIG, random_params(mesh_writer.CONFIG, 1))
    meminfo = tmp_path / "meminfo"
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(control_groups, "PROCESS", tmp_path)  # no group is told of there
    meminfo.write_text("MemTotal:       24640312 kB\nMemFree: 1 kB\nMemAvailable:   17400000 kB\n")
    assert "\n            present 25.2 GB, 17.8 GB of it available" in info(tmp_path)[0]["all"]
    (tmp_path / "cgroup").write_text("0::/job\n")
    (tmp_path / "mountinfo").write_text(f"31 1 0:1 / {tmp_path} rw - cgroup2 none rw\n")
    (tmp_path / "job").mkdir()
    for name, number in {"max": 8_000_000_000, "current": 3_000_000_000}.items():
        (tmp_path / "job" / f"memory.{name}").write_text(f"{number}\n")
    assert "\n            present 8 GB, 5 GB of it available" in info(tmp_path)[0]["all"]
    (tmp_path / "cgroup").unlink()
    meminfo.unlink()
    assert re.search(r"\n {12}present [\d.]+ GB$", info(tmp_path)[0]["all"])
    monkeypatch.delattr(memory.os, "sysconf")
    assert "\n            present" not in info(tmp_path)[0]["all"]


def test_a_very_long_name_makes_no_line_long(capsys):
    tensors = [TensorInfo("x" * 10**6, "f16", (1,), 2, Path("a")), TensorInfo("y", "f16", (1,), 2, Path("a"))]
    assert all(len(line) < 300 for line in info_command._tensor_lines(tensors, each=True))
    print_line("x" * 10**6)
    assert len(capsys.readouterr().out) < 5000
