"""Adapters of GPT-J's kin: modules that hold one matrix, three of them, or a turned one, as PEFT sees them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import refgpt
from refgpt import training
from refgpt._common.errors import RefgptError
from refgpt.checkpoints.adapters import read_adapter
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.leaves import widen
from refgpt.training.gradients import summed_gradients
from refgpt.training.parameters import Parameters
from tests.goldens import ADAPTERS
from tests.helpers.families import VARIANTS
from tests.training.test_family_training import BACKENDS, FEW, batch_of, model_of

IDS = [3, 9, 41, 0, 7, 7, 12]
# Both compute in float32, end to end: a wrong matrix, row or scale shows in the first digits.
CLOSE = 1e-4
#: By variant, what PEFT calls the matrices.
PEFT_TARGETS = {"gpt2": "c_attn,c_fc", "gpt_neo, local first": "v_proj", "gpt_neox": "query_key_value"}


def on_disk(tmp_path, config):
    """The model of the goldens, as files of Hugging Face."""
    training.Trainer(model_of(config, "numpy")).write(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("targets", ["q,v", "all"])
@pytest.mark.parametrize("name", FEW)
def test_it_learns_is_written_read_and_merged(tmp_path, name, targets, backend):
    config = FEW[name]
    path, batch = on_disk(tmp_path, config), batch_of(2, config)
    model = training.new_adapter(refgpt.load(path, backend=backend), rank=2, alpha=3, targets=targets)
    trainer = training.Trainer(model)
    losses = [trainer.step([batch], 2e-2).loss for _ in range(6)]
    assert losses[-1] < losses[0] - 0.1
    trainer.write(tmp_path / "adapter")
    again = refgpt.load(path, backend=backend, adapter=tmp_path / "adapter")
    assert np.abs(again.logits(IDS) - model.logits(IDS)).max() <= CLOSE
    refgpt.merge_adapter(path, tmp_path / "adapter", tmp_path / "merged")
    merged = refgpt.load(tmp_path / "merged", backend=backend)
    assert np.abs(merged.logits(IDS) - model.logits(IDS)).max() <= CLOSE
    more = training.Trainer(again).step([batch], 0.0)
    assert abs(more.loss - trainer.step([batch], 0.0).loss) <= CLOSE


@pytest.mark.parametrize("name", PEFT_TARGETS)
def test_an_adapter_that_was_read_is_written_as_it_was(tmp_path, name):
    """Three parts that read by one A are one pair of the same rank again."""
    path = on_disk(tmp_path, VARIANTS[name])
    model = refgpt.load(path, backend="numpy", adapter=ADAPTERS / "families" / name.partition(",")[0])
    training.Trainer(model).write(tmp_path / "again")
    found = [
        load_file(directory / "adapter_model.safetensors")
        for directory in (ADAPTERS / "families" / name.partition(",")[0], tmp_path / "again")
    ]
    assert found[0].keys() == found[1].keys()
    assert all((found[0][key] == found[1][key]).all() for key in found[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", PEFT_TARGETS)
def test_logits_are_pefts(tmp_path, name, backend):
    """Of an adapter that PEFT wrote, and of one that was written here and read by PEFT."""
    path = on_disk(tmp_path, VARIANTS[name])
    plain = refgpt.load(path, backend=backend).logits(IDS)
    with np.load(ADAPTERS / "families" / "logits.npz") as file:
        held = dict(file)
    for kind in (name.partition(",")[0], f"{name.partition(',')[0]}_refgpt"):
        found = refgpt.load(path, backend=backend, adapter=ADAPTERS / "families" / kind).logits(IDS)
        assert np.abs(held[kind] - plain).max() > 0.1
        assert np.abs(found - held[kind]).max() <= CLOSE * max(1, np.abs(held[kind]).max())


def test_names_that_stand_for_other_modules_too_are_not_used(tmp_path):
    """GPT-2 has two c_proj in each block: an adapter of one of them must not be taken for one of both."""
    config = VARIANTS["gpt2"]
    model = training.new_adapter(model_of(config, "numpy"), targets="o")
    training.Trainer(model).write(tmp_path / "adapter")
    told = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert told["target_modules"] == ["transformer.h.0.attn.c_proj", "transformer.h.1.attn.c_proj"]
    assert told["fan_in_fan_out"] is True
    assert read_adapter(tmp_path / "adapter", config).keys() == {"blocks.0.wo", "blocks.1.wo"}


@pytest.mark.parametrize("name", FEW)
def test_gradients_are_those_of_the_sum(name):
    config = FEW[name]
    model, plain, batch = model_of(config, "c"), model_of(config, "c"), batch_of(2, config)
    training.new_adapter(model, rank=2, targets="k,fc_out")
    for _, leaf in model.engine.kept().items():
        if isinstance(leaf, Adapted):
            leaf.b[...] = np.random.RandomState(1).standard_normal(leaf.b.shape) / 4
    model.engine.adopt(model.engine.kept())
    plain.engine.adopt(model.engine.kept().map(lambda _, leaf: np.float32(widen(leaf, np.float64))))
    found, whole = (summed_gradients(one, Parameters(one), [batch])[1] for one in (model, plain))
    pairs, names = Parameters(model).adapted, Parameters(plain)
    assert len(found) == 2 * len(pairs) == 4 * config.n_layer
    for i, (leaf, pair) in enumerate(pairs.items()):
        of_a, of_b = list(found.values())[2 * i : 2 * i + 2]
        gradient = whole[names.name(leaf)]
        for got, want in ((of_a, pair.scale * pair.b.T @ gradient), (of_b, pair.scale * gradient @ pair.a.T)):
            assert np.abs(got - want).max() <= CLOSE * np.abs(want).max(), leaf


def test_targets_of_other_families_are_refused():
    with pytest.raises(RefgptError, match="targets"):
        training.new_adapter(model_of(VARIANTS["gpt2"], "numpy"), targets="query_key_value")
    model = training.new_adapter(model_of(VARIANTS["gpt_neox"], "numpy"), targets="query_key_value,dense")
    names = {n.rpartition(".")[2] for n, leaf in model.engine.kept().items() if isinstance(leaf, Adapted)}
    assert names == {"wq", "wk", "wv", "wo"}


@pytest.mark.parametrize("dtype", ["f16", "q8", "q4"])
@pytest.mark.parametrize("name", FEW)
def test_the_base_may_be_kept_in_few_bits(tmp_path, name, dtype):
    config = FEW[name]
    path, batch = on_disk(tmp_path, config), batch_of(2, config)
    model = training.new_adapter(refgpt.load(path, dtype=dtype), rank=2, targets="q,v")
    found = training.gradients(model, batch)[1]
    want = training.gradients(training.new_adapter(refgpt.load(path, backend="numpy"), rank=2, targets="q,v"), batch)[1]
    for key, gradient in found.items():  # alike, not equal: of 4 bits some digit is left
        close = {"f16": 0.02, "q8": 0.2, "q4": 1.0}[dtype]
        assert np.abs(gradient - want[key]).max() <= close * np.abs(want[key]).max(), key
    trainer = training.Trainer(model)
    losses = [trainer.step([batch], 2e-2).loss for _ in range(4)]
    assert losses[-1] < losses[0]
