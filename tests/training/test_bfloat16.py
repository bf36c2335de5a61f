"""Training with products in bfloat16: it keeps the promises of float32, and its weights stay in float32."""

from __future__ import annotations

import numpy as np
import pytest

import refgpt
from refgpt import kernels, training
from refgpt._common.errors import CheckpointError
from refgpt.checkpoints.families.gptj import HUGGING_FACE
from refgpt.kernels import force_isa, list_kernels
from refgpt.numbers.leaves import widen
from refgpt.spec import gradients
from tests.helpers.training_models import CONFIG, PARAMS, batch_of, model_in, one_by_one

BATCHES = [batch_of(3, length=40, seed=seed, prefix_len=seed % 3) for seed in range(3)]
#: By name: what the weights are kept in, and whether they have an adapter.
KINDS = {
    "full": ("f32", False),
    "full, bf16": ("bf16", False),
    "lora": ("f32", True),
    "lora, bf16": ("bf16", True),
    "lora, q8": ("q8", True),
    "lora, q4": ("q4", True),
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def model_of(tmp_path, kind, compute="bf16", **options):
    dtype, adapter = KINDS[kind]
    model = model_in(tmp_path, dtype=dtype, compute=compute, **options)
    if adapter:
        training.new_adapter(model, rank=3, alpha=6, targets="q,v,fc_out", seed=1)
    return model


def weights(model):
    return {name: np.array(widen(leaf)) for name, leaf in model.engine.kept().items()}


def trained(tmp_path, kind, split=lambda batch: [batch], **options):
    """The steps and the bits of a short training."""
    model = model_of(tmp_path, kind, **options)
    trainer = training.Trainer(model, training.AdamW(weight_decay=0.1))
    steps = [trainer.step(split(batch), 1e-2) for batch in BATCHES]
    return steps, {name: w.tobytes() for name, w in (trainer.weights | weights(model)).items()}


@each_kind
def test_weights_have_the_same_bits_on_every_instruction_set_number_of_threads_and_split(tmp_path, kind):
    isas = sorted({kernel.isa for kernel in list_kernels() if kernel.obstacle is None})
    want = trained(tmp_path, kind, threads=1)
    for isa in isas:
        with force_isa(isa):
            assert trained(tmp_path, kind, threads=1) == want, isa
    assert trained(tmp_path, kind, threads=3) == want
    assert trained(tmp_path, kind, one_by_one, threads=2) == want
    assert trained(tmp_path, kind, compute="f32")[1] != want[1]


@each_kind
def test_a_pause_and_recomputation_change_no_bit(tmp_path, kind):
    whole, parts = (training.Trainer(model_of(tmp_path, kind)) for _ in range(2))
    steps = [whole.step(batch, 1e-2) for batch in BATCHES]
    assert parts.step(BATCHES[0], 1e-2) == steps[0]
    parts.save(tmp_path / "state")
    with pytest.raises(CheckpointError, match=r"another compute; got f32; wanted bf16; load .*--compute bf16"):
        training.Trainer.resume(tmp_path / "state", model_of(tmp_path, kind, "f32"))
    resumed = training.Trainer.resume(tmp_path / "state", model_of(tmp_path, kind), recompute=True)
    assert [resumed.step(batch, 1e-2) for batch in BATCHES[1:]] == steps[1:]
    assert all((w == whole.weights[name]).all() for name, w in resumed.weights.items())


def relative(found, want):
    """The length of the difference of all gradients, as one vector, over theirs."""
    off = sum(float(np.square(found[name] - want[name]).sum()) for name in want)
    return np.sqrt(off / sum(float(np.square(w).sum()) for w in want.values()))


def test_gradients_are_near_those_of_the_specs_twin(tmp_path):
    """Rounding to bfloat16 is not continuous: where float32 and float64 differ, a number may be rounded up in one and
    down in the other, so the two agree less than two floats do. Both are about as far from unrounded gradients."""
    batch = batch_of(1, length=40)
    text = batch.ids[0], batch.labels[0]
    loss, found = training.gradients(model_in(tmp_path, dtype="f32", compute="bf16"), batch)
    results = {
        compute: gradients.gradients(PARAMS, CONFIG, *text, compute=compute, dtype=np.float64)
        for compute in ("f32", "bf16")
    }
    (exact_loss, exact), (twin_loss, twin) = (
        (loss, {HUGGING_FACE.names(name): w for name, w in grads.items()}) for loss, grads in results.values()
    )
    rounding = relative(twin, exact)
    assert 1e-3 < rounding < 2e-2
    assert relative(found, twin) < rounding / 2 and relative(found, exact) < 1.5 * rounding
    assert abs(loss - twin_loss) < abs(exact_loss - twin_loss) / 2 + 1e-4 * twin_loss


def test_what_is_trained_is_float32(tmp_path):
    """Weights that are rounded only to be multiplied are exact in the trainer, and are written as they are."""
    model = model_of(tmp_path, "full")
    trainer = training.Trainer(model)
    stored = {HUGGING_FACE.names(name): widen(leaf) for name, leaf in PARAMS.items()}
    assert all((w == stored[name]).all() for name, w in trainer.weights.items())
    name = HUGGING_FACE.names("blocks.0.w_in")
    for _ in range(3):  # steps that bfloat16 would lose
        before = trainer.weights[name].copy()
        trainer.step(BATCHES[0], 1e-6)
        off = np.abs(trainer.weights[name] - before)
        assert 0 < off.max() < np.abs(before).max() * 2.0**-9
    trainer.write(tmp_path / "out")
    read = refgpt.load(tmp_path / "out")
    assert (widen(dict(read.params().items())["blocks.0.w_in"]) == trainer.weights[name]).all()
    again = training.Trainer(model)  # a second one goes on from there
    assert (again.weights[name] == trainer.weights[name]).all()


@pytest.mark.parametrize("kind", ["full", "lora, q4"])
def test_the_loss_goes_down_as_in_float32(tmp_path, kind):
    losses = {}
    for compute in ("f32", "bf16"):
        trainer = training.Trainer(model_of(tmp_path, kind, compute))
        losses[compute] = [trainer.step(BATCHES[0], 1e-2).loss for _ in range(12)]
    f32, bf16 = losses["f32"], losses["bf16"]
    assert bf16[-1] < 0.8 * bf16[0] and bf16 != f32
    assert max(abs(one - other) for one, other in zip(f32, bf16, strict=True)) < 0.02 * f32[0]


@pytest.mark.parametrize("dtype", ["q8", "q4", "q3"])
def test_the_forward_pass_over_quantised_weights_is_that_of_float32(tmp_path, dtype):
    one, other = (model_in(tmp_path, dtype=dtype, compute=compute) for compute in ("f32", "bf16"))
    assert (one.logits([3, 4, 5]) == other.logits([3, 4, 5])).all()
    assert one.engine.identity() == other.engine.identity()
    (loss, found), (same, rounded) = (training.gradients(model, BATCHES[0]) for model in (one, other))
    assert loss == same and 0 < relative(rounded, found) < 2e-2


@pytest.mark.parametrize(("kind", "wanted"), [("full", "bf16"), ("full, bf16", "bf16"), ("lora, q4", "f32")])
def test_gradients_of_matrices_round_their_factors_and_those_of_adapters_do_not(tmp_path, monkeypatch, kind, wanted):
    asked, backward = [], kernels.linear_weight_backward

    def watched(*arrays, compute="f32", **how):
        asked.append(compute)
        return backward(*arrays, compute=compute, **how)

    monkeypatch.setattr(kernels, "linear_weight_backward", watched)
    training.gradients(model_of(tmp_path, kind), BATCHES[0])
    assert set(asked) == {wanted}


def test_training_does_not_change_the_exact_weights_of_an_engine_that_shares_them(tmp_path):
    model = model_of(tmp_path, "full")
    trainer = training.Trainer(model)
    trainer.step(BATCHES[0], 1e-2)
    other = model.engine.share()
    before = {name: np.array(leaf) for name, leaf in other.masters().items()}
    trainer.step(BATCHES[1], 1e-2)
    assert all((leaf == before[name]).all() for name, leaf in other.masters().items())
    assert any((leaf != before[name]).any() for name, leaf in model.engine.masters().items())
