"""Training of GPT-J's kin: gradients in kernels, steps to the bit, and names and layouts of files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

import refgpt
from refgpt import tracing, training
from refgpt._common.errors import RefgptError
from refgpt.checkpoints.families import FAMILIES
from refgpt.checkpoints.families.names import named_tensors
from refgpt.kernels import force_isa, list_kernels
from refgpt.numbers.leaves import widen
from refgpt.spec import gradients
from refgpt.training.parameters import Parameters
from tests.goldens import FAMILY_GRADIENTS
from tests.helpers.families import VARIANTS
from tests.helpers.tiny import random_params

KIN = {name: config for name, config in VARIANTS.items() if config.model_type != "gptj"}
#: One of each, with everything that a block may have.
FEW = {name: KIN[name] for name in ("gpt2", "gpt_neo, local first", "gpt_neox", "gpt_neox, one after the other")}
BACKENDS = ("c", "numpy")
# float32 against float64, end to end: a wrong row, mask or factor shows in the first digits.
CLOSE = 1e-4


def model_of(config, backend, seed=3, **options):
    """A model with weights near 1, so that every gradient is seen."""
    model = refgpt.new_model(config, backend=backend, **options)
    model.engine.adopt(random_params(config, seed))
    return model


def batch_of(n, config, length=9, seed=0):
    stream = np.random.RandomState(seed)
    ids = stream.randint(0, config.n_vocab, (n, length))
    labels = np.where(stream.random_sample(ids.shape) < 0.3, -100, ids)
    prefix_len = 0 if "local" in getattr(config, "attention_layers", ()) else 3
    return training.Batch(ids, labels, np.full(n, prefix_len), length - np.arange(n) % 3)


def oracle(params, config, batch):
    """By the names of files, in float64."""
    n_targets = sum(int((batch.labels[i, 1:n] != -100).sum()) for i, n in enumerate(batch.lens.tolist()))
    parts = [
        gradients.gradients(params, config, batch.ids[i, :n], batch.labels[i, :n], int(batch.prefix_lens[i]), n_targets)
        for i, n in enumerate(batch.lens.tolist())
    ]
    tree = params.map(lambda name, _: sum(found[name] for _, found in parts))
    names = FAMILIES[config.model_type].HUGGING_FACE.names
    tensors = named_tensors(tree, names, config)
    return sum(loss for loss, _ in parts), {name: widen(leaf, np.float64) for name, leaf in tensors.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", KIN)
def test_a_batch_has_the_specs_gradients_by_the_names_of_files(name, backend):
    config = KIN[name]
    model, batch = model_of(config, backend), batch_of(3, config)
    loss, found = training.gradients(model, batch)
    want_loss, want = oracle(random_params(config, 3), config, batch)
    assert abs(loss - want_loss) <= CLOSE * want_loss
    assert list(found) == list(want)
    for key, gradient in found.items():
        assert gradient.dtype == np.float32 and gradient.shape == want[key].shape
        assert np.abs(gradient - want[key]).max() <= CLOSE * max(np.abs(want[key]).max(), 1e-2), key
    again_loss, again = training.gradients(model, batch, recompute=True)
    assert again_loss == loss and all((again[key] == found[key]).all() for key in found)


@pytest.mark.parametrize("path", sorted(FAMILY_GRADIENTS.glob("*.npz")), ids=lambda path: path.stem)
def test_every_activation_has_the_gradient_that_autograd_computes(path):
    with np.load(path) as file:
        held = dict(file)
    about = json.loads(str(held["about"]))
    model = model_of(VARIANTS[about["variant"]], "c", about["seed"])
    found = model.trace(held["ids"].tolist(), about["prefix_len"], gradients=True, labels=held["labels"].tolist())
    assert {f"tap {name}" for name in found} == {name for name in held if name.startswith("tap ")}
    for name, gradient in found.items():
        want = held[f"tap {name}"]
        assert np.abs(gradient - want).max() <= CLOSE * np.abs(want).max(), name


@pytest.mark.parametrize("name", FEW)
def test_weights_have_the_same_bits_on_every_instruction_set_and_in_any_micro_batches(name):
    config, runs = FEW[name], []
    isas = sorted({kernel.isa for kernel in list_kernels() if kernel.obstacle is None})
    whole = batch_of(3, config)
    single = [
        training.Batch(whole.ids[i : i + 1, :n], whole.labels[i : i + 1, :n], whole.prefix_lens[i : i + 1])
        for i, n in enumerate(whole.lens.tolist())
    ]
    for isa, threads, batches in [*((isa, 1, [whole]) for isa in isas), (isas[0], 3, single)]:
        with force_isa(isa):
            model = model_of(config, "c", threads=threads)
            trainer = training.Trainer(model, training.AdamW(weight_decay=0.1))
            steps = [trainer.step(batches, 1e-2) for _ in range(2)]
            runs.append((steps, {n: np.array(widen(leaf)) for n, leaf in model.engine.kept().items()}))
    assert len(runs) > 2
    for steps, weights in runs[1:]:
        assert steps == runs[0][0] and all((weights[n] == runs[0][1][n]).all() for n in weights)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FEW)
def test_it_learns_pauses_and_is_written_for_hugging_face(tmp_path, name, backend):
    config = FEW[name]
    parameters = Parameters(refgpt.new_model(config))
    matrices = [parameters.name(n) for n, w in parameters.leaves.items() if n.startswith("blocks.") and w.ndim == 2]
    muon = training.Muon({key.partition("[")[0] for key in matrices})
    model, batch = model_of(config, backend), batch_of(2, config)
    trainer = training.Trainer(model, training.AdamW(weight_decay=0.1), muon=muon)
    first = [trainer.step([batch], 1e-2).loss for _ in range(5)]
    trainer.save(tmp_path / "state")
    rest = [trainer.step([batch], 1e-2) for _ in range(3)]
    resumed = training.Trainer.resume(tmp_path / "state", model_of(config, backend, seed=8))
    assert [resumed.step([batch], 1e-2) for _ in range(3)] == rest and rest[-1].loss < 0.9 * first[0]
    trainer.write(tmp_path / "out")
    written = refgpt.load(tmp_path / "out", backend=backend)
    assert (written.logits([3, 4, 5]) == model.logits([3, 4, 5])).all()
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    _, found = training.gradients(model, batch)
    assert {key: g.shape for key, g in found.items()}.items() <= {key: w.shape for key, w in tensors.items()}.items()


def test_embeddings_do_not_decay_and_a_tensor_of_three_parts_can_be_named():
    config = KIN["gpt2"]
    tensor = "transformer.h.0.attn.c_attn.weight"
    for decay, want in ((None, None), ([tensor], {"blocks.0.wq", "blocks.0.wk", "blocks.0.wv"})):
        models = [model_of(config, "numpy") for _ in range(2)]
        for model, share in zip(models, (0.5, 0.0), strict=True):
            training.Trainer(model, training.AdamW(weight_decay=share, decay=decay)).step([batch_of(1, config)], 1e-2)
        one, other = (dict(model.engine.kept().items()) for model in models)
        moved = {name for name in one if (one[name] != other[name]).any()}
        assert moved == (want or {n for n, w in one.items() if w.ndim == 2 and n not in ("wte", "wpe")})
    with pytest.raises(RefgptError, match="decay: there are no such weights"):
        training.Trainer(model_of(config, "numpy"), training.AdamW(decay=["h.0.attn.c_attn.weight"]))


@pytest.mark.parametrize("name", FEW)
def test_blocks_computed_again_have_the_same_bits(name):
    model, batch = model_of(FEW[name], "c"), batch_of(2, FEW[name])
    loss, found = training.gradients(model, batch)
    again, recomputed = training.gradients(model, batch, recompute=True)
    assert again == loss and all(found[key].tobytes() == recomputed[key].tobytes() for key in found)


def test_attribution_works_for_every_family():
    for config in FEW.values():
        found = tracing.record_gradients(model_of(config, "c"), [3, 4, 5], names="embed")
        assert np.abs(found["embed"]).max() > 0
