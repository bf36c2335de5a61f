"""``refgpt finetune --workers``: from texts to an adapter, by several processes."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import refgpt
from refgpt.cli import main
from refgpt.cli.finetune_options import add_finetune_arguments, settings_of
from refgpt.training.run import RunSettings
from tests.helpers.finetune_files import PAIRS, write_lines, write_small_model

ROOT = Path(__file__).parents[2]
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason='needs the extra "ray"')


@pytest.fixture
def files(tmp_path):
    write_small_model(tmp_path / "model")
    write_lines(tmp_path / "train.jsonl", PAIRS)
    return tmp_path


def command(files, *options):
    place = ["-m", files / "model", "--data", files / "train.jsonl", "-o", files / "out"]
    asked = ["--lr", 1e-2, "--workers", 2, "--sync", "every:2", "--compress", "int8", *options]
    return [sys.executable, "-m", "refgpt", "finetune", *map(str, [*place, *asked])]


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def metrics(files):
    path = files / "out" / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@needs_ray
def test_a_training_is_killed_goes_on_and_ends_with_an_adapter(files):
    asked = command(files, "--iters", 40, "--valid", files / "train.jsonl", "--eval-every", 20, "--save-every", 4)
    with open(files / "log", "w") as log:
        process = subprocess.Popen(asked, stdout=log, stderr=log, env=environment(), start_new_session=True)
        for _ in range(2400):
            if len(metrics(files)) > 4 or process.poll() is not None:
                break
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert not (files / "out" / "adapter_model.safetensors").exists(), (files / "log").read_text()
    got = subprocess.run(asked, capture_output=True, text=True, env=environment())
    assert got.returncode == 0, got.stderr
    assert "going on after step" in got.stderr and "adapter of" in got.stdout
    rounds = [line["round"] for line in metrics(files) if "loss" in line]
    assert rounds == list(range(1, 21))
    lines = [line for line in metrics(files) if "valid_loss" in line]
    assert lines[-1]["step"] == 40 and lines[-1]["valid_loss"] < lines[0]["valid_loss"]
    plain, adapted = (refgpt.load(files / "model", **a) for a in ({}, {"adapter": files / "out"}))
    assert (plain.logits([3, 9, 4]) != adapted.logits([3, 9, 4])).any()
    again = subprocess.run(asked, capture_output=True, text=True, env=environment())
    assert again.returncode == 0 and "finished already" in again.stdout
    other = subprocess.run([*asked, "--compress", "int4"], capture_output=True, text=True, env=environment())
    assert other.returncode == 1 and "compress" in other.stderr


def test_a_missing_ray_is_one_clear_error(files, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    got = run(*command(files)[3:])
    assert got.code == 1 and 'pip install "refgpt[ray]"' in got.err and not (files / "out").exists()


@pytest.mark.parametrize(
    "option",
    [
        ["--address", "auto"],
        ["--trim", "1"],
        ["--outer-lr", "1"],
        ["--sync", "every:9"],
        ["--compress", "int8"],
        ["--outer", "nesterov"],
        ["--error-decay", "0.9"],
        ["--average-variance"],
        ["--deadline", "9"],
        ["--workers", "0"],
    ],
    ids=str,
)
def test_options_of_workers_need_workers(files, capsys, option):
    asked = command(files)[3:]
    with pytest.raises(SystemExit):
        main([*asked[: asked.index("--workers")], *option])
    assert "--workers" in capsys.readouterr().err


@pytest.mark.parametrize("asked", [[], ["--average-variance"]], ids=str)
def test_workers_know_over_how_many_they_are_averaged(asked):
    parser = argparse.ArgumentParser()
    add_finetune_arguments(parser)
    given = parser.parse_args(["--data", "texts", "-o", "out", "--workers", "3", *asked])
    assert RunSettings(**settings_of(given)).averaged_over == (3 if asked else 1)


def test_a_momentum_without_its_optimiser_is_refused(files, capsys):
    with pytest.raises(SystemExit):
        main([*command(files)[3:], "--outer-momentum", "0.5"])
    assert "--outer nesterov" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "named"),
    [
        (["--sync", "often"], "sync"),
        (["--sync", "random:0"], "sync"),
        (["--sync", "every:-1"], "sync"),
        (["--compress", "zip"], "compress"),
        (["--compress", "topk:2,bits:99"], "compress"),
        (["--quorum", "2"], "quorum"),
        (["--deadline", "nan"], "deadline"),
    ],
    ids=str,
)
def test_methods_that_make_no_sense_are_refused_before_the_model_is_loaded(files, run, option, named, monkeypatch):
    monkeypatch.setattr("refgpt.cli.finetune.load_after", lambda *_: pytest.fail("the model is loaded"))
    got = run(*command(files)[3:], *option)
    assert got.code == 1 and f"{named}:" in got.err and not (files / "out").exists()
