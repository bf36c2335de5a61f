"""Training: what a step does, that micro-batches and pauses do not change a bit, and what is written."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

import refgpt
from refgpt import training
from refgpt._common.errors import CheckpointError, RefgptError
from refgpt.kernels import force_isa, list_kernels
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.leaves import widen
from refgpt.runtime.gradients import activations
from refgpt.training.gradients import sum_of_squares
from refgpt.training.state import STATE, read_state
from tests.helpers.tiny import random_params
from tests.helpers.training_models import BACKENDS, CONFIG, PARAMS, batch_of, model_in, one_by_one

BATCHES = [batch_of(3, seed=seed, prefix_len=seed % 3) for seed in range(4)]
MUON = training.Muon(["transformer.h.0.attn.q_proj.weight", "transformer.h.1.mlp.fc_in.weight"], lr_scale=5.0)
#: By name: what a trainer is made with, and whether its model has an adapter.
KINDS = {
    "full": ({"optimiser": training.AdamW(weight_decay=0.1)}, False),
    "muon": ({"optimiser": training.AdamW(weight_decay=0.1), "muon": MUON, "clip": None}, False),
    "lora": ({"clip": 0.1}, True),
}
WITH_DROPOUT = {**KINDS, "dropout": ({"dropout": 0.3, "seed": 5}, True)}


def start(tmp_path, kind, backend="numpy", **options):
    settings, adapter = WITH_DROPOUT[kind]
    model = model_in(tmp_path, backend=backend, **options)
    if adapter:
        training.new_adapter(model, rank=3, alpha=6, targets="q,v,fc_out", seed=1)
    return model, training.Trainer(model, **settings)


def weights(model):
    leaves = dict(model.engine.kept().items())
    return {name: np.array(widen(leaf)) for name, leaf in leaves.items()}


def same(one, other):
    return all((one[name] == other[name]).all() for name in one)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_its_gradients_and_an_update(tmp_path, kind):
    (model, one), (_, other) = start(tmp_path, kind), start(tmp_path, kind)
    for batch in BATCHES[:2]:
        _, gradients = training.gradients(model, batch)
        assert one.update(gradients, 1e-2) == other.step(batch, 1e-2).norm
    assert one.n_steps == 2 and same(one.weights, other.weights)


def test_gradients_that_do_not_fit_are_refused_and_nothing_changes(tmp_path):
    model, trainer = start(tmp_path, "full")
    before = {name: w.copy() for name, w in trainer.weights.items()}
    _, gradients = training.gradients(model, BATCHES[0])
    first = next(iter(gradients))
    wrong = [{}, {**gradients, "more": np.zeros(2)}, {**gradients, first: np.zeros((1, 1))}]
    for given in wrong:
        with pytest.raises(RefgptError, match="gradients: are missing, unknown or of another shape"):
            trainer.update(given, 1e-2)
    with pytest.raises(RefgptError, match="the gradient is not a number"):
        trainer.update({**gradients, first: np.full_like(gradients[first], np.nan)}, 1e-2)
    assert trainer.n_steps == 0 and same(before, trainer.weights)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_goes_down_and_the_model_goes_on_with_what_was_trained(tmp_path, kind, backend):
    model, trainer = start(tmp_path, kind, backend)
    before = model.logits([3, 4, 5])
    losses = [trainer.step([BATCHES[0]], 1e-2).loss for _ in range(12)]
    assert losses[-1] < 0.8 * losses[0]
    loss, _ = training.gradients(model, BATCHES[0])
    assert loss == trainer.step([BATCHES[0]], 0.0).loss  # of the model as it is by now, with every backend
    assert np.abs(model.logits([3, 4, 5]) - before).max() > 1e-3
    if backend == "c":
        assert model.verify([3, 4, 5, 6], 2).first_broken is None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", WITH_DROPOUT)
def test_micro_batches_are_one_batch_to_the_bit(tmp_path, kind, backend):
    runs = []
    for split in (lambda batch: [batch], one_by_one):
        model, trainer = start(tmp_path, kind, backend)
        steps = [trainer.step(split(batch), 1e-2) for batch in BATCHES]
        runs.append((steps, weights(model)))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])


@pytest.mark.parametrize(
    ("kind", "dtype"), [*((kind, None) for kind in KINDS), ("lora", "q8"), ("lora", "q4"), ("lora", "q3")]
)
def test_weights_have_the_same_bits_on_every_instruction_set_and_number_of_threads(tmp_path, kind, dtype):
    isas = sorted({kernel.isa for kernel in list_kernels() if kernel.obstacle is None})
    runs = []
    for isa, threads in [*((isa, 1) for isa in isas), (isas[0], 3)]:
        with force_isa(isa):
            model, trainer = start(tmp_path, kind, "c", dtype=dtype, threads=threads)
            steps = [trainer.step([batch], 1e-2) for batch in BATCHES[:2]]
            runs.append((steps, weights(model)))
    assert len(runs) > 2
    assert all(steps == runs[0][0] and same(found, runs[0][1]) for steps, found in runs)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputation_changes_no_bit(tmp_path, kind):
    runs = []
    for recompute in (False, True):
        model, trainer = start(tmp_path, kind, "c")
        trainer.recompute = recompute
        runs.append(([trainer.step([batch], 1e-2) for batch in BATCHES[:2]], weights(model)))
    assert runs[0][0] == runs[1][0] and same(runs[0][1], runs[1][1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", WITH_DROPOUT)
def test_a_pause_changes_no_bit(tmp_path, kind, backend):
    model, trainer = start(tmp_path, kind, backend)
    for batch in BATCHES[:2]:
        trainer.step([batch], 1e-2)
    trainer.save(tmp_path / "state")
    steps = [trainer.step([batch], 1e-2) for batch in BATCHES[2:]]
    again, _ = start(tmp_path, kind, backend)
    resumed = training.Trainer.resume(tmp_path / "state", again)
    assert resumed.n_steps == 2
    assert [resumed.step([batch], 1e-2) for batch in BATCHES[2:]] == steps
    assert same(weights(model), weights(again))
    resumed.save(tmp_path / "state")  # takes the place of the earlier one
    assert [path.name for path in (tmp_path / "state").iterdir()] == [STATE]


def test_a_pause_keeps_all_settings_of_the_optimiser(tmp_path):
    asked = training.AdamW((0.8, 0.9), 1e-6, 0.2, decay=("transformer.h.0.attn.q_proj.weight",), averaged_over=3)
    assert all(getattr(asked, field.name) != field.default for field in fields(asked))
    model = model_in(tmp_path)
    training.Trainer(model, asked).save(tmp_path / "state")
    assert training.Trainer.resume(tmp_path / "state", model).optimiser == asked


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_is_written_for_hugging_face(tmp_path, backend):
    model, trainer = start(tmp_path, "full", backend)
    trainer.step([BATCHES[0]], 1e-2)
    trainer.write(tmp_path / "out")
    written = refgpt.load(tmp_path / "out", backend=backend)
    assert {leaf.dtype for _, leaf in written.checkpoint.params.items()} == {np.dtype(np.float32)}
    assert same(weights(model), weights(written))
    with pytest.raises(CheckpointError, match="not empty"):
        trainer.write(tmp_path / "out")


def test_halves_are_trained_as_singles(tmp_path):
    params = random_params(CONFIG, 5, "f16")
    for backend in BACKENDS:
        model = model_in(tmp_path, params, backend=backend)
        trainer = training.Trainer(model)
        for _ in range(3):  # far below what float16 could hold beside a weight near 1
            trainer.step([BATCHES[0]], 1e-5)
        moved = weights(model)["ln_w"] - widen(params.ln_w)
        assert (np.abs(moved) > 0).all() and (np.abs(moved) < 4e-5).all()


def test_steps_are_what_they_say(tmp_path):
    model, trainer = start(tmp_path, "full")
    loss, found = training.gradients(model, BATCHES[0])
    norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in found.values()))
    step = trainer.step([BATCHES[0]], 1e-3)
    assert step.loss == loss and abs(step.norm - norm) <= 1e-12 * norm
    # Of the first step of Adam every number moves by the learning rate, against its gradient, and decay comes first.
    clipped = {name: g / step.norm for name, g in found.items()}
    for name, decays in (("transformer.h.0.attn.q_proj.weight", 0.1), ("transformer.wte.weight", 0.0)):
        before = PARAMS.blocks[0].wq if "q_proj" in name else PARAMS.wte
        after = model.params().blocks[0].wq if "q_proj" in name else model.params().wte
        want = before * (1 - 1e-3 * decays) - 1e-3 * np.sign(found[name])
        seen = np.abs(clipped[name]) > 1e-5  # beside which eps is nothing
        assert seen.any() and np.abs(after - want)[seen].max() <= 1e-6


@pytest.mark.parametrize("clip", [None, 0.25, 1e6])
def test_a_gradient_that_is_too_long_is_shortened(tmp_path, clip):
    model = model_in(tmp_path, backend="numpy")
    _, found = training.gradients(model, BATCHES[0])
    trainer = training.Trainer(model, clip=clip)
    norm = trainer.step([BATCHES[0]], 1e-3).norm
    trainer.save(tmp_path / "state")
    share = min(1, (clip or np.inf) / norm)
    assert (share < 0.5) == (clip == 0.25)
    for name, moments in read_state(tmp_path / "state").moments.items():
        want = 0.1 * share * found[name]  # the first moment after one step
        assert np.abs(moments["mean"] - want).max() <= 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("shape", [(3,), (40_000,), (123, 1001), (70_001, 2)])
def test_the_length_of_a_gradient_is_a_sum_in_numpys_order(shape):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    assert sum_of_squares(x) == np.square(x, dtype=np.float64).sum()
    assert sum_of_squares(x.T) == np.square(x.T, dtype=np.float64).sum()


def test_what_decays_can_be_said(tmp_path):
    model = model_in(tmp_path, backend="numpy")
    trainer = training.Trainer(model, training.AdamW(weight_decay=0.5, decay=["transformer.ln_f.weight"]))
    plain = model_in(tmp_path, backend="numpy")
    without = training.Trainer(plain)
    for one in (trainer, without):
        one.step([BATCHES[0]], 1e-2)
    decayed, other = weights(model), weights(plain)
    assert [name for name in decayed if (decayed[name] != other[name]).any()] == ["ln_w"]


def test_a_gradient_that_is_no_number_changes_nothing(tmp_path):
    model, trainer = start(tmp_path, "full")
    model.engine.params.blocks[0].ln_w[0] = np.nan
    before = weights(model)
    with pytest.raises(RefgptError, match="not a number"):
        trainer.step([BATCHES[0]], 1e-2)
    assert trainer.n_steps == 0
    assert all(np.array_equal(before[name], after, equal_nan=True) for name, after in weights(model).items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loss_that_is_no_number_changes_nothing(tmp_path, backend):
    """Its gradient may be finite: what the model expects, less what came."""
    params = PARAMS.map(lambda name, leaf: np.float32([-3e38, 3e38] + [0] * 59) if name == "b_head" else leaf)
    trainer = training.Trainer(model_in(tmp_path, params, backend=backend))
    with np.errstate(over="ignore"), pytest.raises(RefgptError, match=r"the loss is not a number.*got inf"):
        trainer.step(training.Batch([[2, 0]], [[2, 0]]), 1e-2)
    assert trainer.n_steps == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "eps", "lr"), [("full", 0, 1e-3), ("lora", 0, 1e-3), ("full", 1e-8, 1e38)])
@pytest.mark.filterwarnings("error")
def test_a_step_to_weights_that_are_no_numbers_is_an_error(tmp_path, kind, eps, lr, backend):
    model, _ = start(tmp_path, kind, backend)
    trainer = training.Trainer(model, training.AdamW(eps=eps))
    with pytest.raises(RefgptError, match=r"the step made weights infinite or NaN; got step 1 with a learning rate"):
        trainer.step([training.Batch([[3, 4]], [[3, 4]])], lr)


def test_more_than_fits_into_memory_is_refused_before_it_is_copied(tmp_path, monkeypatch):
    model = model_in(tmp_path)
    monkeypatch.setattr("refgpt._common.memory.obtainable_memory", lambda: 16 * CONFIG.n_params - 1)
    with pytest.raises(RefgptError, match=r"optimiser's averages take more memory.*new_adapter"):
        training.Trainer(model)
    monkeypatch.setattr("refgpt._common.memory.obtainable_memory", lambda: 16 * CONFIG.n_params)
    training.Trainer(model)


@pytest.mark.parametrize("backend", BACKENDS)
def test_quantised_weights_are_trained_by_adapters_only(tmp_path, backend):
    model = model_in(tmp_path, backend=backend, dtype="q8")
    with pytest.raises(RefgptError, match=r"cannot be trained.*new_adapter"):
        training.Trainer(model)
    base = model.engine.kept()
    trainer = training.Trainer(training.new_adapter(model))
    losses = [trainer.step([BATCHES[0]], 1e-2).loss for _ in range(6)]
    assert losses[-1] < losses[0]
    for name, leaf in model.engine.kept().items():
        assert (leaf.base if isinstance(leaf, Adapted) else leaf) is dict(base.items())[name]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"optimiser": "adam"}, "optimiser"),
        ({"clip": 0}, "clip"),
        ({"optimiser": training.AdamW(decay=["lm_tail.weight"])}, r"decay: .*lm_tail"),
        ({"muon": training.Muon(["transformer.ln_f.weight"])}, "muon: is no matrix"),
        ({"muon": training.Muon(["nowhere"])}, "muon: there are no such weights"),
    ],
)
def test_settings_that_cannot_be_used_are_named(tmp_path, settings, fault):
    with pytest.raises(RefgptError, match=fault):
        training.Trainer(model_in(tmp_path, backend="numpy"), **settings)


def test_steps_that_cannot_be_made_are_refused(tmp_path):
    _, trainer = start(tmp_path, "full")
    for batches, lr in (([BATCHES[0]], -1), ([BATCHES[0]], np.nan), (["text"], 1e-3), ([], 1e-3)):
        with pytest.raises(RefgptError):
            trainer.step(batches, lr)
    assert trainer.n_steps == 0


def test_states_that_are_not_this_models_are_refused(tmp_path):
    _, trainer = start(tmp_path, "full")
    trainer.step([BATCHES[0]], 1e-3)
    trainer.save(tmp_path / "state")
    model, _ = start(tmp_path, "lora")
    with pytest.raises(CheckpointError, match="another model, or another adapter"):
        training.Trainer.resume(tmp_path / "state", model)
    with pytest.raises(CheckpointError):
        training.Trainer.resume(tmp_path / "nowhere", model)
    with pytest.raises(CheckpointError, match="another precision"):
        training.Trainer.resume(tmp_path / "state", model_in(tmp_path, backend="numpy", dtype="f64"))
    whole = (tmp_path / "state" / STATE).read_bytes()
    for kind in (b"mean:", b"square:"):  # of another name, they are another weight's
        (tmp_path / "state" / STATE).write_bytes(
            whole.replace(kind + b"transformer.ln_f.b", kind + b"transformer.ln_g.b")
        )
        with pytest.raises(CheckpointError, match=r"is damaged.*ln_f.bias"):
            training.Trainer.resume(tmp_path / "state", model_in(tmp_path, backend="numpy"))
    for damaged in (whole[:-8], whole[:40], b"", whole.replace(b'\\"n_steps\\"', b'\\"m_steps\\"')):
        (tmp_path / "state" / STATE).write_bytes(damaged)
        with pytest.raises(CheckpointError):
            training.Trainer.resume(tmp_path / "state", model_in(tmp_path, backend="numpy"))


def test_a_save_that_fails_leaves_the_earlier_one(tmp_path, monkeypatch):
    _, trainer = start(tmp_path, "full")
    trainer.save(tmp_path / "state")
    before = (tmp_path / "state" / STATE).read_bytes()
    trainer.step([BATCHES[0]], 1e-3)
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match="No space left"):
        trainer.save(tmp_path / "state")
    assert [path.name for path in (tmp_path / "state").iterdir()] == [STATE]
    assert (tmp_path / "state" / STATE).read_bytes() == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_training_a_base_does_not_change_models_that_share_its_weights(tmp_path, backend):
    """Nor does it if they share weights that have been trained before, which a step changes in place."""
    _, adapted = start(tmp_path, "lora", backend)
    adapted.step([BATCHES[0]], 1e-2)
    adapted.write(tmp_path / "adapter")
    base, trainer = start(tmp_path, "full", backend)
    trainer.step([BATCHES[0]], 1e-2)
    one = base.with_adapter(tmp_path / "adapter")
    several = base.with_adapters({"a": tmp_path / "adapter"})
    others = [lambda: one.logits([3, 4, 5]), lambda: several.logits([3, 4, 5])]
    before = [logits() for logits in others]
    own = base.logits([3, 4, 5])
    trainer.step([BATCHES[1]], 1e-2)
    assert (base.logits([3, 4, 5]) != own).any()
    assert all((logits() == was).all() for logits, was in zip(others, before, strict=True))


def test_memory_that_steps_share_changes_no_bit(tmp_path, monkeypatch):
    """Passes have more or fewer texts, longer and shorter ones, and use the memory of earlier gradients too."""
    monkeypatch.setattr(activations, "MOST_ROWS", 20)
    batches = [batch_of(5, seed=1), batch_of(2, 40, seed=2), batch_of(6, 12, seed=3), batch_of(5, seed=1)]
    (_, lasting), (model, trainer) = start(tmp_path, "full", "c"), start(tmp_path, "full", "c")
    for batch in batches:
        trainer.save(tmp_path / "state")
        trainer = training.Trainer.resume(tmp_path / "state", model)  # with memory of its own
        assert lasting.step(batch, 1e-2) == trainer.step(batch, 1e-2)
    assert same(lasting.weights, trainer.weights)
