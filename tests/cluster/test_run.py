"""A training by workers that writes a directory, as far as it needs no Ray."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import refgpt
from refgpt import training
from refgpt._common.errors import CheckpointError, RefgptError
from refgpt.cluster import Rules, parse_sync
from refgpt.cluster.coordinator import Coordinator
from refgpt.cluster.run import ClusterRun, Job, ShardBatches
from refgpt.generation.chat_templates import TEMPLATES
from refgpt.training.data import read_texts
from refgpt.training.examples import Encoder
from refgpt.training.output import STATE_DIRECTORY
from refgpt.training.run import RunSettings
from tests.helpers.finetune_files import PAIRS, write_lines, write_small_model

SETTINGS = RunSettings(iters=8, batch_size=2)


@pytest.fixture
def model(tmp_path):
    model = refgpt.load(write_small_model(tmp_path / "model"))
    training.new_adapter(model, rank=2, targets="q,v", seed=0)
    return model


@pytest.fixture
def texts(tmp_path, model):
    path = write_lines(tmp_path / "train.jsonl", PAIRS)
    return read_texts(path, Encoder(model.config, model.tokenizer, TEMPLATES["base"]), 60)


def test_the_steps_of_a_round_are_the_same_when_it_is_tried_again(model, texts):
    batches = ShardBatches(model, texts.examples, SETTINGS)

    def ids(step):
        return [np.concatenate([np.ravel(one) for one in batch.ids]).tolist() for batch in batches(step)]

    first = [ids(step) for step in range(6)]
    assert [ids(step) for step in range(2, 6)] == first[2:]


def test_the_last_evaluation_is_told_once_though_the_result_could_not_be_written(tmp_path, model, texts, monkeypatch):
    data, sync, rules = {"train": texts, "valid": texts}, parse_sync("every:2"), Rules()

    def train(fails):  # all steps have been made: only the result is missing
        how = {"job": Job({}, None, SETTINGS), "n_workers": 2, "sync": sync, "rules": rules}
        with ClusterRun(model, data, tmp_path / "out", SETTINGS, {}, {}, **how) as run:
            coordinator = Coordinator(run.trainer.weights, rules)
            coordinator.round = 4
            coordinator.save(run.out / STATE_DIRECTORY)
            run.n_done = run.n_steps
            if fails:
                monkeypatch.setattr(run.trainer, "write", fail)
            list(run)
            return [line["step"] for line in run.metrics() if "valid_loss" in line]

    def fail(place):
        raise OSError("no space left")

    monkeypatch.setattr("refgpt.cluster.run.train_on_ray", lambda *a, **k: iter(()))
    monkeypatch.setattr("refgpt.cluster.run.import_ray", lambda: SimpleNamespace(put=list))
    with pytest.raises(OSError, match="no space"):
        train(fails=True)
    assert train(fails=False) == [8]


def test_more_cannot_be_trimmed_than_there_are_workers(tmp_path, model, texts):
    job, sync = Job({}, None, SETTINGS), parse_sync("every:2")
    how = {"job": job, "n_workers": 4, "sync": sync, "rules": Rules(trim=2)}
    with pytest.raises(RefgptError, match=r"trim: .*at most 1 of 4 workers"):
        ClusterRun(model, {"train": texts}, tmp_path / "out", SETTINGS, {}, {}, **how)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"max_ratio": 2.0}, {"trim": 1}], ids=str)
def test_other_rules_are_another_run(tmp_path, model, texts, changes):
    def begin(rules):
        job = Job({}, None, SETTINGS)
        data, sync = {"train": texts}, parse_sync("every:2")
        how = {"job": job, "n_workers": 3, "sync": sync, "rules": rules}
        with ClusterRun(model, data, tmp_path / "out", SETTINGS, {}, {}, **how) as run:
            Coordinator(run.trainer.weights, rules).save(run.out / STATE_DIRECTORY)  # a run that has begun

    begin(Rules())
    begin(Rules())
    with pytest.raises(CheckpointError, match=f"another {next(iter(changes))}"):
        begin(Rules(**changes))
