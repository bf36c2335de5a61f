"""Adapters: new ones, those of files in PEFT's format, and models into which one is merged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import refgpt
from refgpt import training
from refgpt._common.errors import CheckpointError, RefgptError
from refgpt.checkpoints.adapters import read_adapter
from refgpt.numbers.adapted import Adapted
from refgpt.numbers.leaves import widen
from refgpt.spec import forward, gradients
from tests.helpers.families import VARIANTS
from tests.helpers.training_models import BACKENDS, CONFIG, PARAMS, batch_of, model_in

IDS = [3, 9, 41, 0, 7, 7, 12]
# float32 against float64, end to end: a missing factor shows in the first digits.
CLOSE = 1e-4
KEY = "base_model.model.transformer.h.0.attn.q_proj.lora_A.weight"


def adapted(tmp_path, backend="numpy", targets="q,v,fc_in", rank=3, **options):
    """A model with an adapter that does something."""
    model = model_in(tmp_path, backend=backend, **options)
    training.new_adapter(model, rank=rank, alpha=5, targets=targets, seed=2)
    stream = np.random.RandomState(1)
    tree = model.engine.kept()
    for _, leaf in tree.items():
        if isinstance(leaf, Adapted):
            leaf.b[...] = 0.3 * (stream.random_sample(leaf.b.shape) - 0.5)
    model.engine.adopt(tree)
    return model


def written(tmp_path, model, name="adapter"):
    training.Trainer(model).write(tmp_path / name)
    return tmp_path / name


def summed(model):
    """The weights with the adapter added, in float64."""
    return PARAMS.map(
        lambda name, leaf: (
            widen(dict(model.engine.kept().items())[name], np.float64)
            if isinstance(dict(model.engine.kept().items())[name], Adapted)
            else leaf
        )
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_new_adapter_changes_nothing_yet(tmp_path, backend):
    model = model_in(tmp_path, backend=backend)
    before = model.logits(IDS)
    assert training.new_adapter(model, rank=4, targets="all") is model
    assert np.abs(model.logits(IDS) - before).max() <= 1e-5
    pairs = [leaf for _, leaf in model.engine.kept().items() if isinstance(leaf, Adapted)]
    assert len(pairs) == 6 * CONFIG.n_layer
    for leaf in pairs:
        most = 1 / np.sqrt(leaf.shape[1])
        assert leaf.scale == 4 and not leaf.b.any() and 0.9 * most < np.abs(leaf.a).max() <= most


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [None, "q8", "q4", "q3"])
def test_what_it_adds_is_not_rounded_to_what_the_base_is_kept_in(tmp_path, backend, dtype):
    plain = model_in(tmp_path, backend=backend, dtype=dtype).logits(IDS)
    model = adapted(tmp_path, backend, dtype=dtype)
    want = forward(model.params(), CONFIG, IDS)
    # In C rows are rounded to 8 bits before weights of 8, 4 and 3 bits: what the adapter adds is larger by far.
    close = CLOSE if dtype is None or backend == "numpy" else 0.1 * np.abs(want - plain).max()
    assert np.abs(model.logits(IDS) - want).max() <= close
    assert np.abs(want - plain).max() > 0.3


def test_decoding_uses_it_too(tmp_path):
    model = adapted(tmp_path, "c")
    session = model.engine.session(1, len(IDS))
    rows = [session.prefill(0, IDS[:3]), *(session.decode([0], [token])[0] for token in IDS[3:])]
    assert (np.stack(rows) == model.logits(IDS)[2:]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_both_factors(tmp_path, backend):
    model, batch = adapted(tmp_path, backend), batch_of(2)
    _, found = training.gradients(model, batch)
    assert len(found) == 2 * 3 * CONFIG.n_layer and next(iter(found)) == KEY
    leaf = model.engine.kept().blocks[1].w_in
    name = "base_model.model.transformer.h.1.mlp.fc_in.lora_{}.weight"
    for side, d in (("A", np.zeros_like(leaf.a, np.float64)), ("B", np.zeros_like(leaf.b, np.float64))):
        d[1, 2] = 1e-4
        moved = []
        for sign in (1, -1):
            a, b = (x + sign * d if side == s else x for s, x in (("A", leaf.a), ("B", leaf.b)))
            w = widen(leaf.base, np.float64) + leaf.scale * (b @ a)
            tree = summed(model).map(lambda n, x, w=w: w if n == "blocks.1.w_in" else x)
            parts = [
                gradients.gradients(tree, CONFIG, batch.ids[i, :n], batch.labels[i, :n], 0, n_targets(batch))[0]
                for i, n in enumerate(batch.lens.tolist())
            ]
            moved.append(sum(parts))
        slope = (moved[0] - moved[1]) / 2e-4
        gradient = found[name.format(side)]
        assert abs(gradient[1, 2] - slope) <= 1e-3 * np.abs(gradient).max()


def n_targets(batch):
    return sum(int((batch.labels[i, 1:n] != -100).sum()) for i, n in enumerate(batch.lens.tolist()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("targets", ["q,v", "all", "fc_out"])
def test_what_is_written_is_read_again(tmp_path, backend, targets):
    model = adapted(tmp_path, backend, targets)
    path = written(tmp_path, model)
    again = refgpt.load(tmp_path / "model", backend=backend, adapter=path)
    assert (again.logits(IDS) == model.logits(IDS)).all()
    told = json.loads((path / "adapter_config.json").read_text())
    assert told["r"] == 3 and told["lora_alpha"] == 5 and told["peft_type"] == "LORA"


@pytest.mark.parametrize("dtype", [None, "f32", "f16"])
def test_a_merged_model_needs_no_adapter(tmp_path, dtype):
    model = adapted(tmp_path, "numpy", dtype="f64")
    refgpt.merge_adapter(tmp_path / "model", written(tmp_path, model), tmp_path / "merged", dtype)
    merged = refgpt.load(tmp_path / "merged", backend="numpy", dtype="f64")
    close = 1e-2 if dtype == "f16" else 1e-5
    assert np.abs(merged.logits(IDS) - model.logits(IDS)).max() <= close
    for name, leaf in merged.checkpoint.params.items():
        assert leaf.dtype == (np.float16 if dtype == "f16" and leaf.ndim == 2 else np.float32), name


def change(path, **told):
    config = json.loads((path / "adapter_config.json").read_text())
    (path / "adapter_config.json").write_text(json.dumps(config | told))


@pytest.mark.parametrize(
    "told",
    [
        {"megatron_core": "megatron.core", "loftq_config": {}, "eva_config": None, "peft_version": "0.18.0"},
        {"target_modules": "(a+)+$", "layer_replication": None},
        {"target_modules": r".*\.(q_proj|v_proj|fc_in)", "exclude_modules": None},
        {"target_modules": "(a|b|ab)*c" * 300},
        {"rank_pattern": {r"attn\.[qv]_proj": 3, r".*\.h\.\d+\.mlp\.fc_in": 3}, "r": 8},
        {"target_modules": ["attn.q_proj", "v_proj", "fc_in"], "layers_to_transform": [0, 1], "layers_pattern": "h"},
        {"rank_pattern": {"q_proj": 3}, "r": 8, "alpha_pattern": {"nothing": 9}, "lora_alpha": 5}
        | {"rank_pattern": {"q_proj": 3, "v_proj": 3, "^transformer.h.0.mlp.fc_in": 3, "h.1.mlp.fc_in": 3}},
    ],
)
def test_settings_that_change_nothing_are_no_hindrance(tmp_path, told):
    model = adapted(tmp_path)
    path = written(tmp_path, model)
    change(path, **told)
    again = refgpt.load(tmp_path / "model", backend="numpy", adapter=path)
    scale = 5 / told.get("r", 3)
    assert {leaf.a.shape[0] for _, leaf in again.engine.kept().items() if isinstance(leaf, Adapted)} == {3}
    assert scale and all(leaf.scale == 5 / 3 for _, leaf in again.engine.kept().items() if isinstance(leaf, Adapted))


def test_scales_follow_the_configuration(tmp_path):
    path = written(tmp_path, adapted(tmp_path))
    change(path, use_rslora=True, alpha_pattern={"v_proj": 12})
    kept = refgpt.load(tmp_path / "model", backend="numpy", adapter=path).engine.kept()
    assert kept.blocks[0].wq.scale == 5 / np.sqrt(3) and kept.blocks[1].wv.scale == 12 / np.sqrt(3)


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "use_dora is set"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set"),
        ({"bias": "all"}, "bias trains biases"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is set"),
        ({"invented": 1}, "invented is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"layers_pattern": "layers"}, "layers_pattern"),
        ({"rank_pattern": {"(a+)+$": 3}}, "rank_pattern"),
        ({"rank_pattern": {"a*a*a*a*a*b": 3}}, "rank_pattern"),
        ({"rank_pattern": {"(q_proj": 3}}, "rank_pattern has a pattern that is none"),
        ({"rank_pattern": {"^q_proj": 4, "fc_in": 5}}, "another shape"),
        ({"target_modules": "[q_proj"}, "target_modules has a pattern that is none"),
        ({"target_modules": r".*\.(q_proj|fc_in)"}, "for other modules"),
        ({"target_modules": r".*\.(q_proj|k_proj|v_proj|fc_in)"}, "pairs are missing"),
        ({"target_modules": "transformer.h.0.attn.q_proj"}, "for other modules"),
        ({"exclude_modules": ["v_proj"]}, "exclude_modules is set"),
        ({"use_qalora": True}, "use_qalora is set"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is set"),
        ({"target_parameters": ["x"]}, "target_parameters is set"),
        ({"rank_pattern": {"q_proj": 4}}, "another shape"),
        ({"r": 0}, "r makes no sense"),
        ({"r": True}, "r makes no sense"),
        ({"lora_alpha": "16"}, "lora_alpha makes no sense"),
        ({"lora_alpha": 1e300}, "lora_alpha makes no sense"),
        ({"use_rslora": "no"}, "use_rslora makes no sense"),
        ({"target_modules": ["q_proj"]}, "for other modules"),
        ({"target_modules": ["q_proj", "k_proj", "v_proj", "fc_in"]}, "pairs are missing"),
        ({"target_modules": {"q_proj": 1}}, "target_modules makes no sense"),
        ({"layers_to_transform": [0]}, "for other modules"),
        ({"layers_to_transform": "0"}, "layers_to_transform makes no sense"),
    ],
)
def test_what_would_be_half_understood_is_refused(tmp_path, told, fault):
    path = written(tmp_path, adapted(tmp_path))
    change(path, **told)
    with pytest.raises(CheckpointError, match=fault):
        refgpt.load(tmp_path / "model", backend="numpy", adapter=path)


def without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda t: without(t, KEY), "the other half of the pair is missing"),
        (lambda t: without(without(t, KEY), KEY.replace("_A", "_B")), "pairs are missing"),
        (lambda t: t | {KEY: t[KEY][:2]}, "another shape"),
        (lambda t: t | {KEY: t[KEY].astype(np.int32)}, "no floating-point numbers; got int32"),
        (lambda t: t | {KEY.removeprefix("base_model.model."): t[KEY]}, "is there twice"),
        (lambda t: t | {KEY: np.full_like(t[KEY], np.nan)}, "NaN"),
        (lambda t: t | {KEY: np.full_like(t[KEY], np.inf)}, "infinit"),
        (lambda t: t | {KEY: t[KEY].T}, "another shape"),
        (lambda t: t | {"base_model.model.lm_head.weight": t[KEY]}, "no place for it"),
        (lambda t: t | {KEY.replace("lora_A.weight", "lora_magnitude_vector"): t[KEY][0]}, "no place for it"),
        (lambda t: t | {KEY.replace("lora_A.weight", "lora_B.bias"): t[KEY][0]}, "no place for it"),
        (lambda t: t | {"base_model.model.transformer.wte.lora_embedding_A": t[KEY]}, "no place for it"),
        (lambda t: t | {"base_model.model.transformer.wte.lora_A.weight": t[KEY]}, "no place for it"),
        (lambda t: t | {KEY.replace("h.0", "h.7"): t[KEY]}, "no place for it"),
        (lambda t: {}, "holds no adapter"),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, damage, fault):
    path = written(tmp_path, adapted(tmp_path))
    tensors = load_file(path / "adapter_model.safetensors")
    save_file({k: np.ascontiguousarray(v) for k, v in damage(tensors).items()}, path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=fault):
        refgpt.load(tmp_path / "model", backend="numpy", adapter=path)


@pytest.mark.parametrize("alpha", [1e-6, 1e6])
def test_the_extreme_alphas_of_a_new_adapter_can_be_read_again(tmp_path, alpha):
    model = training.new_adapter(model_in(tmp_path, backend="numpy"), alpha=alpha, targets="all")
    training.Trainer(model).write(tmp_path / "adapter")
    again = refgpt.load(tmp_path / "model", backend="numpy", adapter=tmp_path / "adapter")
    assert again.engine.kept().blocks[0].wq.scale == alpha / 8
    with pytest.raises(RefgptError, match=r"alpha: cannot be used"):
        training.new_adapter(model_in(tmp_path, backend="numpy"), alpha=2 * alpha if alpha > 1 else alpha / 2)
    with pytest.raises(CheckpointError, match=r"directory: cannot be used; got 3"):
        training.Trainer(model).write(3)


def test_an_adapter_for_another_family_has_no_place(tmp_path):
    path = written(tmp_path, adapted(tmp_path))
    for name in ("gpt2", "gpt_neo", "gpt_neox"):
        with pytest.raises(CheckpointError, match="there is no place for it in this model"):
            read_adapter(path, VARIANTS[name])


def test_an_adapter_that_is_not_there_is_a_missing_file(tmp_path):
    model_in(tmp_path)
    with pytest.raises(FileNotFoundError, match="adapter_config"):
        refgpt.load(tmp_path / "model", adapter=tmp_path / "nowhere")
    path = written(tmp_path, adapted(tmp_path))
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no adapter"):
        refgpt.load(tmp_path / "model", adapter=path)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 1000}, "rank"),
        ({"alpha": 0}, "alpha"),
        ({"targets": "q,x"}, "targets"),
        ({"targets": ""}, "targets"),
        ({"targets": 3}, "targets"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path, settings, fault):
    with pytest.raises(RefgptError, match=f"^{fault}: "):
        training.new_adapter(model_in(tmp_path, backend="numpy"), **settings)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [None, "q8"])
def test_several_adapters_share_one_base(tmp_path, backend, dtype):
    paths = [written(tmp_path, adapted(tmp_path, targets=targets), targets) for targets in ("q,v", "k")]
    base = refgpt.load(tmp_path / "model", backend=backend, dtype=dtype)
    plain = base.logits(IDS)
    models = [base.with_adapter(path) for path in paths]
    for model, path in zip(models, paths, strict=True):
        alone = refgpt.load(tmp_path / "model", backend=backend, dtype=dtype, adapter=path)
        assert (model.logits(IDS) == alone.logits(IDS)).all()
        for (name, leaf), (_, own) in zip(model.engine.kept().items(), base.engine.kept().items(), strict=True):
            assert (leaf.base if isinstance(leaf, Adapted) else leaf) is own, name
    training.Trainer(models[0]).step([batch_of(2)], 1e-2)
    alone = refgpt.load(tmp_path / "model", backend=backend, dtype=dtype, adapter=paths[1])
    assert (models[1].logits(IDS) == alone.logits(IDS)).all() and (base.logits(IDS) == plain).all()
    with pytest.raises(RefgptError, match="an adapter already"):
        models[0].with_adapter(paths[1])


def test_one_adapter_is_enough(tmp_path):
    with pytest.raises(RefgptError, match="an adapter already"):
        training.new_adapter(adapted(tmp_path))
