"""A whole training: planned, kept, stopped at any moment, and resumed to the bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import refgpt
from refgpt import training
from refgpt._common.errors import CheckpointError, RefgptError
from refgpt.generation.chat_templates import TEMPLATES
from refgpt.training.data import read_texts
from refgpt.training.evaluating import mean_loss
from refgpt.training.examples import Encoder, batch_of
from refgpt.training.run import Run, RunSettings, new_trainer
from refgpt.training.state import read_state
from tests.helpers.finetune_files import CONFIG, PAIRS, write_lines, write_small_model
from tests.helpers.model_files import write_model
from tests.helpers.tiny import random_params
from tests.helpers.work import HANGS

SETTINGS = RunSettings(iters=7, batch_size=2, lr=1e-2, eval_every=3, save_every=2, dropout=0.2)
WEIGHTS = "adapter_model.safetensors"


def load(tmp_path, adapter=True, **options):
    path = tmp_path / "model"
    model = refgpt.load(path if path.exists() else write_small_model(path), **options)
    if adapter:
        training.new_adapter(model, rank=2, targets="q,v", seed=0)
    return model


def data_of(tmp_path, model, records=PAIRS):
    path = write_lines(tmp_path / "train.jsonl", records)
    texts = read_texts(path, Encoder(model.config, model.tokenizer, TEMPLATES["base"]), 60)
    return {"train": texts, "valid": texts}


def run_in(tmp_path, name="out", settings=SETTINGS, **options):
    model = load(tmp_path, **options)
    return Run(model, data_of(tmp_path, model), tmp_path / name, settings)


def lines(directory):
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")} for line in found]


def test_a_run_is_the_steps_of_a_trainer(tmp_path):
    settings = replace(SETTINGS, accumulation=2, schedule="linear", warmup=2, floor=0.1, weight_decay=0.1)
    with run_in(tmp_path, settings=settings) as run:
        events = list(run)
    assert [event.step for event in events if "loss" in event.values] == list(range(1, 8))
    evaluated = [event.step for event in events if "valid_loss" in event.values]
    assert evaluated == [0, 3, 6, 7]
    assert events[-1].values["valid_loss"] < events[0].values["valid_loss"] - 0.1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        WEIGHTS,
        "finetune.json",
        "metrics.jsonl",
    ]
    model = load(tmp_path)
    trainer = training.Trainer(model, training.AdamW(weight_decay=0.1), dropout=0.2)
    examples = data_of(tmp_path, model)["train"].examples
    rates = training.schedule("linear", 1e-2, 2, 7, 0.1)
    seen = [event.values for event in events if "loss" in event.values]
    assert [one["texts"] for one in seen[:4]] == [4, 1, 4, 1] and seen[0]["epoch"] == 1 and seen[2]["epoch"] == 2
    for i, rate in enumerate(rates):
        order = np.random.RandomState([0, i // 2]).permutation(5)
        step = trainer.step([batch_of([examples[n] for n in (order[:4] if i % 2 == 0 else order[4:])])], rate)
        assert (step.loss, step.norm, rate) == (seen[i]["loss"], seen[i]["norm"], seen[i]["lr"])
    again = refgpt.load(tmp_path / "model", adapter=tmp_path / "out")
    assert (again.logits([3, 4, 5]) == model.logits([3, 4, 5])).all()
    assert mean_loss(again, examples)[0] == events[-1].values["valid_loss"]


def test_all_weights_are_written_as_a_model(tmp_path):
    settings = replace(
        SETTINGS, dropout=0.0, optimiser="muon", muon_lr_scale=3.0, pack=True, row_length=60, epochs=3, iters=None
    )
    with run_in(tmp_path, settings=settings, adapter=False, mask="prefix") as run:
        list(run)
        assert run.finished and run.n_steps == run.n_done
    written = refgpt.load(tmp_path / "out")
    assert written.mask == "prefix" and written.tokenizer is not None
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensors[f"transformer.h.{i}.attn.bias"].all() for i in range(2))
    assert (written.logits([3, 4, 5]) == run.model.logits([3, 4, 5])).all()


def test_what_was_stopped_goes_on_to_the_bit(tmp_path):
    with run_in(tmp_path, "whole") as run:
        list(run)
    for stop, recompute in (
        (1, False),
        (3, True),
        (5, False),
        (8, True),
    ):
        with run_in(tmp_path, settings=replace(SETTINGS, recompute=recompute)) as run:
            events = iter(run)
            for _ in range(stop):
                if next(events, None) is None:
                    break
            events.close()
    with run_in(tmp_path) as run:
        assert 0 < run.n_done < 7
        list(run)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert lines(tmp_path / "out") == lines(tmp_path / "whole")
    with run_in(tmp_path) as run:
        assert run.finished and list(run) == []


COMMAND = ["finetune", "--iters", "30", "--batch-size", "2", "--lr", "1e-2", "--save-every", "4", "--eval-every", "7"]


def begin(tmp_path, out):
    place = ["-m", tmp_path / "model", "--data", tmp_path / "data", "-o", out, "--dropout", "0.1", "--rank", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(refgpt.__file__).parents[1])}
    command = [sys.executable, "-m", "refgpt", *map(str, [*COMMAND, *place])]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_what_was_killed_at_any_moment_goes_on_to_the_bit(tmp_path):
    write_small_model(tmp_path / "model")
    (tmp_path / "data").mkdir()
    for split in ("train", "valid", "test"):
        write_lines(tmp_path / "data" / f"{split}.jsonl", PAIRS)
    whole = begin(tmp_path, tmp_path / "whole")
    told, _ = whole.communicate(timeout=HANGS)
    assert whole.returncode == 0, told
    chance, out, metrics = random.Random(os.getpid()), tmp_path / "out", tmp_path / "out" / "metrics.jsonl"
    for n_lines in sorted(chance.sample(range(3, 34), 2)):
        process = begin(tmp_path, out)
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") >= n_lines:
                time.sleep(chance.random() / 100)
                break
        process.kill()
        process.communicate()
    last = begin(tmp_path, out)
    told, _ = last.communicate(timeout=HANGS)
    assert last.returncode == 0, told
    assert (out / WEIGHTS).read_bytes() == (tmp_path / "whole" / WEIGHTS).read_bytes()
    assert lines(out) == lines(tmp_path / "whole")
    kept = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in out.iterdir()} == kept and "state" not in kept


def test_a_result_that_was_half_in_place_is_written_again(tmp_path, monkeypatch):
    replace_file, moved = Path.replace, []

    def once(self, target):
        if self.parent.name == ".result":
            moved.append(self)
            if len(moved) == 2:
                raise KeyboardInterrupt
        return replace_file(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", once)
        with run_in(tmp_path) as run, pytest.raises(KeyboardInterrupt):
            list(run)
    assert not (tmp_path / "out" / "adapter_config.json").exists()  # so that nothing takes it for an adapter
    with run_in(tmp_path) as run:
        assert not run.finished and run.n_done == 7
        assert list(run) == []
    assert refgpt.load(tmp_path / "model", adapter=tmp_path / "out") is not None
    assert not (tmp_path / "out" / ".result").exists()


def test_a_run_that_was_killed_at_once_is_no_hindrance(tmp_path):
    (tmp_path / "out").mkdir()
    for name in (".running", "finetune.json.partial"):
        (tmp_path / "out" / name).write_text("{")
    with run_in(tmp_path) as run:
        next(iter(run))


def test_settings_reach_the_optimiser(tmp_path):
    settings = replace(SETTINGS, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2, averaged_over=3, dropout=0.0)
    wanted = training.AdamW((0.8, 0.9), 1e-6, 0.2, averaged_over=3)
    assert new_trainer(load(tmp_path), settings).optimiser == wanted


def test_other_settings_or_data_are_another_run(tmp_path):
    with run_in(tmp_path) as run:
        assert [event.values.keys() & {"loss"} for event in islice(run, 2)] == [set(), {"loss"}]
    told = (tmp_path / "out" / "finetune.json").read_text()
    assert "muon_lr_scale" not in told and "averaged_over" not in told  # nor in those of older versions
    with pytest.raises(CheckpointError, match=r"settings or data; got another averaged_over, batch_size, lr, muon"):
        run_in(tmp_path, settings=replace(SETTINGS, lr=2e-2, batch_size=3, muon_lr_scale=2.0, averaged_over=2))
    model = load(tmp_path)
    with pytest.raises(CheckpointError, match=r"got another train, valid"):
        Run(model, data_of(tmp_path, model, PAIRS[1:]), tmp_path / "out", SETTINGS)
    write_model(tmp_path / "model", CONFIG, random_params(CONFIG, 6))
    with pytest.raises(CheckpointError, match=r"got another base"):
        run_in(tmp_path)


def test_runs_of_older_versions_resume_without_the_fingerprint_of_their_base(tmp_path):
    with run_in(tmp_path) as run:
        list(islice(run, 4))
    path = tmp_path / "out" / "finetune.json"
    told = json.loads(path.read_text())
    assert len(told["about"].pop("base")) == 64
    path.write_text(json.dumps(told))
    with run_in(tmp_path) as run:
        assert run.n_done == 2


def test_a_run_that_never_made_a_step_binds_nobody(tmp_path):
    model = load(tmp_path, adapter=False, dtype="q8")
    with pytest.raises(RefgptError, match="cannot be trained"):
        Run(model, data_of(tmp_path, model), tmp_path / "out", replace(SETTINGS, dropout=0.0))
    assert not (tmp_path / "out").exists()
    with run_in(tmp_path) as run:
        next(iter(run))  # the first evaluation
    with run_in(tmp_path, settings=replace(SETTINGS, lr=2e-2)) as run:
        assert [event.step for event in islice(run, 2)] == [0, 1]
    assert [line["step"] for line in lines(tmp_path / "out")] == [0, 1]
    assert json.loads((tmp_path / "out" / "finetune.json").read_text())["settings"]["lr"] == 2e-2


def test_a_state_of_more_steps_is_of_another_training(tmp_path, monkeypatch):
    with run_in(tmp_path) as run:
        list(islice(run, 4))
    monkeypatch.setattr(Run, "_n_saved", lambda self: self.n_steps + 1)
    with pytest.raises(CheckpointError, match=r"state: holds more steps than this training has; got 8; wanted 7"):
        run_in(tmp_path)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("refgpt.training.run.mean_loss", lambda *_: (float("nan"), 3))
    with run_in(tmp_path) as run, pytest.raises(RefgptError, match=r"train.jsonl: the loss is not a number; got nan"):
        next(iter(run))
    assert run.metrics() == []


def test_lines_of_metrics_without_a_step_are_cut(tmp_path):
    with run_in(tmp_path) as run:
        list(islice(run, 4))
    with (tmp_path / "out" / "metrics.jsonl").open("a") as file:
        file.write('{"step": "x"}\n')
    with run_in(tmp_path) as run:
        assert [line["step"] for line in run.metrics()] == [0, 1, 2]


def test_more_steps_than_a_training_has_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr("refgpt.training.run.MOST_STEPS", 100)
    with pytest.raises(RefgptError, match=r"epochs: are too many steps; got 99999"):
        run_in(tmp_path, settings=replace(SETTINGS, iters=None, epochs=99_999))


def test_two_runs_do_not_share_an_output(tmp_path):
    with run_in(tmp_path), pytest.raises(CheckpointError, match="another process is training there"):
        run_in(tmp_path)
    with run_in(tmp_path) as run:
        next(iter(run))


def test_outputs_that_are_taken_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    for name, fault in (("file", "no directory"), ("full", "not empty"), ("no/where", "no such directory")):
        with pytest.raises(CheckpointError, match=fault):
            run_in(tmp_path, name)
    assert (tmp_path / "full" / "thesis.txt").exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"settings": 3}'])
def test_settings_that_are_damaged_are_refused(tmp_path, damage):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "finetune.json").write_text(damage)
    with pytest.raises(CheckpointError, match=r"finetune\.json|other settings"):
        run_in(tmp_path)


@pytest.mark.parametrize(
    "settings",
    [
        {"iters": 0},
        {"iters": 10**12},
        {"epochs": 0},
        {"epochs": 10**12},
        {"clip": 0},
        {"dropout": 1},
        {"pack": "yes"},
        {"batch_size": 0},
        {"row_length": 1},
        {"warmup": -1},
        {"seed": -1},
        {"optimiser": "sgd"},
        {"schedule": "step"},
        {"lr": -1},
        {"floor": 2},
        {"betas": (1, 1)},
        {"momentum": 1},
        {"muon_lr_scale": -1},
        {"averaged_over": 0},
        {"eval_every": 0},
        {"save_every": 0},
    ],
)
def test_settings_that_make_no_sense_are_named(settings):
    with pytest.raises(RefgptError, match=f"^{next(iter(settings))}"):
        RunSettings(**settings)


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_dropout_leaves_out_other_columns_of_each_text_and_its_gradient_is_exact(tmp_path, backend):
    model = load(tmp_path, backend=backend)
    kept = {name: leaf for name, leaf in model.engine.kept().items() if hasattr(leaf, "a")}
    for n, leaf in enumerate(kept.values()):
        leaf.b[...] = np.random.RandomState(n).standard_normal(leaf.b.shape) / 4
    model.engine.adopt(model.engine.kept())
    examples = data_of(tmp_path, model)["train"].examples[:2]
    n_targets, before, want, losses = [one.n_targets for one in examples], model.logits([3, 4, 5]), {}, []
    for text, example in enumerate(examples):
        other, stream = load(tmp_path, backend=backend), np.random.RandomState([3, 0, text])
        others, masks = dict(other.engine.kept().items()), []
        for name, leaf in kept.items():
            mask = np.where(stream.random_sample(leaf.shape[1]) >= 0.5, np.float32(2), np.float32(0))
            masks += [mask, np.ones(leaf.b.shape[1], np.float32)]
            others[name].a[...], others[name].b[...] = leaf.a * mask, leaf.b
        other.engine.adopt(other.engine.kept())
        loss, found = training.gradients(other, batch_of([example]))
        losses.append(loss * n_targets[text] / sum(n_targets))
        for (name, gradient), mask in zip(found.items(), masks, strict=True):
            want[name] = want.get(name, 0) + gradient * mask * n_targets[text] / sum(n_targets)
    trainer = training.Trainer(model, clip=None, dropout=0.5, seed=3)
    step = trainer.step([batch_of(examples)], 0.0)
    assert (model.logits([3, 4, 5]) == before).all()  # the adapter is whole again
    assert abs(step.loss - sum(losses)) <= 1e-6 * step.loss
    trainer.save(tmp_path / "state")
    for name, moments in read_state(tmp_path / "state").moments.items():
        assert np.abs(moments["mean"] - 0.1 * want[name]).max() <= 1e-6 * np.abs(want[name]).max() > 0
    with pytest.raises(RefgptError, match="dropout: only the inputs of adapters"):
        training.Trainer(load(tmp_path, adapter=False), dropout=0.1)
