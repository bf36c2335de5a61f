"""Adapters that PEFT wrote, and logits that it computed with them and with one of ours."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

import refgpt
from refgpt import training
from tests.goldens import ADAPTERS
from tests.helpers.training_models import BACKENDS, model_in

IDS = [3, 9, 41, 0, 7, 7, 12]
# Both compute in float32, end to end: a wrong matrix, layer or scale shows in the first digits.
CLOSE = 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["query_value", "patterns", "one_layer", "refgpt"])
def test_logits_are_pefts(tmp_path, name, backend):
    plain = model_in(tmp_path, backend=backend).logits(IDS)
    with np.load(ADAPTERS / "logits.npz") as file:
        want = file[name]
    found = refgpt.load(tmp_path / "model", backend=backend, adapter=ADAPTERS / name).logits(IDS)
    assert np.abs(want - plain).max() > 0.1
    assert np.abs(found - want).max() <= CLOSE


@pytest.mark.parametrize("name", ["patterns", "one_layer"])
def test_what_is_read_is_written_as_the_same(tmp_path, name):
    model_in(tmp_path)
    model = refgpt.load(tmp_path / "model", adapter=ADAPTERS / name)
    training.Trainer(model).write(tmp_path / "again")
    again = refgpt.load(tmp_path / "model", adapter=tmp_path / "again")
    assert np.abs(again.logits(IDS) - model.logits(IDS)).max() <= 1e-6  # a scale is written as alpha: rounded once


def test_a_bin_of_2023_is_read_without_running_it(tmp_path):
    model_in(tmp_path)
    model = refgpt.load(tmp_path / "model", adapter=ADAPTERS / "query_value")
    old = tmp_path / "old"
    shutil.copytree(ADAPTERS / "query_value", old)
    (old / "adapter_model.safetensors").unlink()
    shutil.copy(ADAPTERS / "query_value.bin", old / "adapter_model.bin")
    assert (refgpt.load(tmp_path / "model", adapter=old).logits(IDS) == model.logits(IDS)).all()
