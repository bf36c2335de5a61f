"""Models that have learned nothing yet."""

from __future__ import annotations

import numpy as np
import pytest

import refgpt
from refgpt import training
from refgpt._common.errors import RefgptError
from tests.helpers.families import VARIANTS
from tests.helpers.finetune_files import CONFIG, write_small_model

IDS = [3, 4, 5, 6]


@pytest.mark.parametrize("backend", ["c", "numpy"])
@pytest.mark.parametrize("name", VARIANTS)
def test_it_knows_nothing_and_depends_on_the_seed_alone(name, backend):
    config = VARIANTS[name]
    one, same, other = (refgpt.new_model(config, seed, backend) for seed in (1, 1, 2))
    assert (one.logits(IDS) == same.logits(IDS)).all() and (one.logits(IDS) != other.logits(IDS)).any()
    odds = one.logits(IDS).astype(np.float64)
    surprise = np.log(np.exp(odds).sum(axis=1)) - odds[:, 0]
    assert np.abs(surprise - np.log(config.n_vocab)).max() < 1
    for leaf_name, leaf in one.checkpoint.params.items():
        kind = leaf_name.rpartition(".")[2]
        deviation = 0.02 / (np.sqrt(2 * config.n_layer) if kind in ("wo", "w_out") else 1)
        if leaf.ndim == 2:
            assert 0.8 * deviation < leaf.std() < 1.2 * deviation, leaf_name
        else:
            assert (leaf == (1 if kind in ("ln_w", "ln1_w", "ln2_w") else 0)).all(), leaf_name


def test_it_is_trained_and_written_with_its_tokenizer(tmp_path):
    path = write_small_model(tmp_path / "other")
    model = refgpt.new_model(CONFIG, tokenizer=path, mask="prefix")
    ids = model.tokenizer.encode("toad")
    trainer = training.Trainer(model)
    losses = [trainer.step([training.Batch([ids], [ids])], 1e-2).loss for _ in range(20)]
    assert losses[-1] < losses[0] / 2
    trainer.write(tmp_path / "out")
    written = refgpt.load(tmp_path / "out")
    assert written.mask == "prefix" and written.tokenizer.encode("toad") == ids
    assert (written.logits(ids) == model.logits(ids)).all()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"config": "gpt-j"}, "config: cannot be used"),
        ({"seed": -1}, "seed"),
        ({"mask": "auto"}, "mask"),
        ({"backend": "torch"}, "backend"),
        ({"threads": 0}, "threads"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments, fault):
    with pytest.raises(RefgptError, match=f"^{fault}"):
        refgpt.new_model(**{"config": CONFIG} | arguments)
