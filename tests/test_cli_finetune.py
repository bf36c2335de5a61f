"""The commands that train: finetune and merge, and --adapter."""

from __future__ import annotations

import json

import pytest
from safetensors.numpy import load_file

import refgpt
from refgpt.cli import build_parser, loading
from refgpt.cli.finetune_options import ALIASES, settings_of
from refgpt.training.run import RunSettings
from tests.helpers.finetune_files import PAIRS, write_lines, write_small_model
from tests.helpers.terminal import shown_on_terminal

IDS = [3, 9, 41, 7]


@pytest.fixture
def files(tmp_path):
    write_small_model(tmp_path / "model")
    write_lines(tmp_path / "train.jsonl", [*PAIRS, {"prompt": 3}])
    return tmp_path


def finetune(run, files, *options, out="out"):
    place = ("-m", files / "model", "--data", files / "train.jsonl", "-o", files / out)
    return run("finetune", *place, "--iters", 3, "--lr", 1e-2, *options)


@pytest.mark.parametrize("dtype", ["f32", "f16", "q8", "q4", "q3"])
def test_an_adapter_is_trained_beside_a_base_of_any_dtype(run, files, dtype):
    got = finetune(run, files, "--dtype", dtype, "--valid", files / "train.jsonl", "--rank", 4, "--alpha", 6)
    assert got.code == 0, got.err
    assert "5 texts" in got.err and "malformed: 1 (line 6" in got.err and "step 3 of 3: loss" in got.err
    assert got.out.startswith(f"{files / 'out'}: adapter of ") and "valid loss" in got.out
    told = json.loads((files / "out" / "adapter_config.json").read_text())
    assert (told["r"], told["lora_alpha"], told["target_modules"]) == (4, 6, ["q_proj", "v_proj"])
    plain, adapted = (refgpt.load(files / "model", dtype=dtype, **a) for a in ({}, {"adapter": files / "out"}))
    assert (plain.logits(IDS) != adapted.logits(IDS)).any()
    assert (files / "out" / "loss.png").read_bytes()[:4] == b"\x89PNG"
    again = finetune(run, files, "--dtype", dtype, "--valid", files / "train.jsonl", "--rank", 4, "--alpha", 6)
    assert again.code == 0 and "finished already" in again.out


def test_all_weights_are_trained_and_the_mask_is_recorded(run, files):
    got = finetune(run, files, "--full", "--mask", "prefix", "--grad-checkpoint")
    assert got.code == 0, got.err
    written = refgpt.load(files / "out")
    assert written.mask == "prefix"
    assert load_file(files / "out" / "model.safetensors")["transformer.h.1.attn.bias"].all()
    assert (written.logits(IDS) != refgpt.load(files / "model").logits(IDS)).any()
    assert run("generate", "-m", files / "out", "Say", "-n", 3, "--seed", 1).code == 0


def test_an_adapter_of_the_prefix_mask_says_so(run, files):
    assert finetune(run, files, "--mask", "prefix").code == 0
    adapted = refgpt.load(files / "model", adapter=files / "out")
    assert adapted.mask == "prefix" and "adapter" in adapted.mask_source
    assert refgpt.load(files / "model", adapter=files / "out", mask="causal").mask == "causal"
    got = run("merge", "-m", files / "model", files / "out", "-o", files / "merged")
    assert got.code == 0 and refgpt.load(files / "merged").mask == "prefix"
    assert run("merge", files / "model", files / "out", "-o", files / "causal", "--mask", "causal").code == 0
    assert refgpt.load(files / "causal").mask == "causal"


def test_an_adapter_is_used_merged_and_trained_on(run, files, monkeypatch):
    assert finetune(run, files, "--targets", "all", "--dropout", 0.1, "--optimizer", "muon").code == 0
    place = ("-m", files / "model", "--adapter", files / "out", "--dtype", "f32")
    model = refgpt.load(files / "model", adapter=files / "out", dtype="f32")
    got = run("generate", *place, "Say toad!", "-n", 8, "--temperature", 0, "--repetition-penalty", 1)
    assert got.out == model.generate("Say toad!", max_new_tokens=8, temperature=0).text + "\n"
    assert run("verify", *place).code == 0
    assert run("merge", files / "model", files / "out", "-o", files / "merged", "--dtype", "f16").code == 0
    assert {leaf.dtype.name for _, leaf in refgpt.load(files / "merged").checkpoint.params.items()} >= {"float16"}
    more = finetune(run, files, "--adapter", files / "out", out="more")
    assert more.code == 0
    first = float(more.out.partition("loss ")[2].partition(" ")[0])
    assert first < float(finetune(run, files, out="anew").out.partition("loss ")[2].partition(" ")[0])
    for name in ("load", "start"):
        monkeypatch.setattr(loading, name, lambda *_, **__: pytest.fail("the weights were loaded first"))
    (files / "out" / "adapter_config.json").unlink()
    got = run("generate", *place, "Say")
    assert got.code == 1 and "adapter_config.json: there is no such file" in got.err


def test_mistakes_are_found_before_the_weights_are_read(run, files, monkeypatch):
    monkeypatch.setattr(loading, "start", lambda *_, **__: pytest.fail("the weights were loaded first"))
    (files / "bad.jsonl").write_text("{\n")
    for options, fault in (
        (("--data", files / "nowhere.jsonl"), "nowhere.jsonl: there is no such file"),
        (("--data", files / "bad.jsonl"), "bad.jsonl: holds nothing that can be learned from"),
        (("--strict",), "train.jsonl, line 6: has not the keys of one form"),
        (("--max-seq-length", 9999), "--max-seq-length: cannot be used; got 9999; wanted a whole number from 2 to 64"),
        (("--batch-size", 0), "--batch-size: cannot be used; got 0"),
        (("--clip", -1), "--clip: cannot be used; got -1.0; wanted a number above 0"),
        (("--dropout", 1), "--dropout: cannot be used; got 1.0; wanted a number from 0, below 1"),
        (("-o", files / "model"), "not empty"),
        (("--tokenizer", "none"), "the data is text, and this model has no tokenizer"),
    ):
        got = finetune(run, files, *options)
        assert got.code == 1 and fault in got.err, got.err
    for given in (("x",), ("-m", "x", "y", "z")):
        with pytest.raises(SystemExit):
            run("merge", *given, "-o", files / "merged")
    for options in (("--full", "--rank", 3), ("--adapter", "x", "--targets", "q"), ("--optimizer", "sgd")):
        with pytest.raises(SystemExit):
            finetune(run, files, *options)
    assert not (files / "out").exists()


def test_weights_of_few_bits_are_not_trained_themselves(run, files):
    got = finetune(run, files, "--full", "--dtype", "q8")
    assert got.code == 1 and "cannot be trained" in got.err and "--dtype f32" in got.err
    assert not (files / "out").exists()
    assert finetune(run, files, "--full", "--dtype", "f32").code == 0


def test_the_names_of_other_programs_are_understood():
    parser = build_parser()
    needed = ["finetune", "--data", "x", "-o", "y"]
    plain = parser.parse_args(needed)
    assert RunSettings(**settings_of(plain)) == RunSettings(lr=1e-4)
    assert settings_of(parser.parse_args([*needed, "--full"]))["lr"] == 1e-5
    for name, others in ALIASES.items():
        for other in others:
            for spelling in (other, f"--{other[2:].replace('-', '_')}"):
                value = {"--schedule": "linear"}.get(name, "3")
                want = vars(parser.parse_args([*needed, name, value]))
                assert vars(parser.parse_args([*needed, spelling, value])) == want
                assert plain is not want
    for spelling in ("--recompute", "--grad-checkpoint", "--gradient_checkpointing"):
        assert settings_of(parser.parse_args([*needed, spelling]))["recompute"]
    assert parser.parse_args([*needed, "--learning_rate", "3", "--grad-acc", "2"]).accumulate == 2


def test_a_terminal_sees_a_bar(run, files, monkeypatch):
    shown = shown_on_terminal(monkeypatch, lambda: finetune(run, files, "--valid", files / "train.jsonl"))
    assert "training" in shown and "3/3" in shown and "tokens/s" in shown and "step 0: valid loss" in shown
