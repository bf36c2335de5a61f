"""Interventions: each does what it says, to the right places, and alike in both engines."""

from __future__ import annotations

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import RefgptError
from refgpt.runtime import Runtime
from refgpt.spec import tap_names
from refgpt.tracing import (
    Replacement,
    mean_ablation,
    patch,
    patch_from,
    record,
    zero_ablation,
    zero_heads,
    zero_neurons,
)
from tests.helpers.tiny import random_params
from tests.helpers.tracing_models import (
    CLOSE,
    CONFIG,
    ENGINES,
    IDS,
    ORACLE,
    OTHER,
    PARAMS,
    RUNTIME,
    assert_within_bounds,
)

NAMES = tap_names(CONFIG)
N = len(IDS)
DONOR = record(ORACLE, OTHER, 2)

#: What is patched, by which activations that changes first.
CASES = {
    "a function": ({"blocks.1.mlp_out": lambda x: -2 * x}, {"blocks.1.mlp_out"}),
    "in place": ({"blocks.0.ln": lambda x: np.negative(x, out=x)}, {"blocks.0.ln"}),
    "float64 of a function": ({"blocks.0.v": lambda x: x.astype(np.float64) * 3}, {"blocks.0.v"}),
    "an array": ({"blocks.0.attn_out": DONOR["blocks.0.attn_out"]}, {"blocks.0.attn_out"}),
    "a pattern of names": ({"blocks.*.attn_out": lambda x: x * 0.5}, {"blocks.0.attn_out", "blocks.1.attn_out"}),
    "one after the other": ([zero_heads(1, [0]), {"blocks.1.z": lambda z: z + 1}], {"blocks.1.z"}),
    "heads": (zero_heads(0, [1, -1]), {"blocks.0.z"}),
    "a head": (zero_heads(1, 2), {"blocks.1.z"}),
    "neurons": (zero_neurons(1, slice(10, 60)), {"blocks.1.mlp_post"}),
    "zeros": (zero_ablation(["blocks.0.mlp_out", "blocks.1.attn_out"]), {"blocks.0.mlp_out", "blocks.1.attn_out"}),
    "pattern of a head": (patch_from(DONOR, "blocks.1.pattern", heads=3), {"blocks.1.pattern"}),
    "a row of queries": (patch_from(DONOR, "blocks.0.pattern", positions=-1, heads=0), {"blocks.0.pattern"}),
    "keys": (patch_from(DONOR, "blocks.0.k_rot", positions=[0, 2], heads=[0, 1]), {"blocks.0.k_rot"}),
    "a state": (patch_from(DONOR, "blocks.0.resid_post", positions=4), {"blocks.0.resid_post"}),
    "embeddings": (patch_from(DONOR, "embed", positions=slice(3)), {"embed"}),
    "means": (mean_ablation(DONOR, "blocks.*.mlp_out"), {"blocks.0.mlp_out", "blocks.1.mlp_out"}),
    "means of some": (mean_ablation(DONOR, "blocks.0.z", positions=[5, 6], heads=2), {"blocks.0.z"}),
    "the end": (zero_ablation("ln_final", positions=0), {"ln_final"}),
    "the answer": (zero_ablation("logits"), {"logits"}),
}


@pytest.fixture(params=ENGINES)
def engine(request):
    return ENGINES[request.param]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("prefix_len", [0, 4])
def test_the_engines_agree_after_every_patch(case, prefix_len):
    patches, patched = CASES[case]
    assert_within_bounds(RUNTIME, PARAMS, IDS, prefix_len, patches, patched)
    ours, spec = (record(one, IDS, prefix_len, patch=patches) for one in (RUNTIME, ORACLE))
    for name in NAMES:
        assert np.abs(ours[name] - spec[name]).max() <= CLOSE * max(1, np.abs(spec[name]).max()), name
    clean = record(ORACLE, IDS, prefix_len)
    changed = [name for name in NAMES if np.abs(spec[name] - clean[name]).max() > 1e-3]
    assert patched <= set(changed) and changed[0] == min(patched, key=NAMES.index)
    assert (ours["logits"] == patch(RUNTIME, IDS, patches, prefix_len)).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_activation_can_be_patched_in_either_engine(name):
    patches = patch_from(DONOR, name)
    assert_within_bounds(RUNTIME, PARAMS, IDS, 2, patches, {name})
    ours, spec = (patch(one, IDS, patches, 2) for one in (RUNTIME, ORACLE))
    assert np.abs(ours - spec).max() <= CLOSE
    assert np.abs(spec - ORACLE.logits(IDS, 2)).max() > 1e-3


def test_float16_weights_and_cache_after_a_patched_pattern():
    kept = PARAMS.kept_as("f16")
    engine = Runtime(PARAMS, CONFIG, dtype="f16", threads=2, kv_dtype="f16")
    for name in ("blocks.0.pattern", "blocks.1.v", "blocks.1.k_rot"):
        assert_within_bounds(engine, kept, IDS, 0, patch_from(DONOR, name), {name})


@pytest.mark.parametrize("kv_dtype", ["f16", "q8"])
def test_a_patched_pattern_mixes_what_the_cache_holds(kv_dtype):
    engine = Runtime(PARAMS, CONFIG, threads=1, kv_dtype=kv_dtype)
    clean, again = (
        record(engine, IDS, names="blocks.0.z", patch=patches)["blocks.0.z"]
        for patches in (None, {"blocks.0.pattern": np.copy})
    )
    assert 0 < np.abs(clean - again).max() <= 1e-6  # values that are not rounded to float16 are off by 1e-4


def test_patching_what_was_recorded_changes_nothing(engine):
    for name, value in record(engine, IDS).items():
        assert np.abs(patch(engine, IDS, {name: value}) - engine.logits(IDS)).max() <= CLOSE


def test_patching_one_activation_moves_what_depends_on_it(engine):
    other = record(engine, OTHER)
    whole = patch(engine, IDS, patch_from(other, "blocks.1.resid_post"))
    assert np.abs(whole - other["logits"]).max() <= CLOSE
    z = record(engine, IDS)["blocks.0.z"]
    z[4] = 0
    moved = np.abs(patch(engine, IDS, {"blocks.0.z": z}) - engine.logits(IDS)).max(axis=-1)
    assert (moved[:4] == 0).all() and (moved[4:] > 1e-3).all()


def test_only_the_places_named_are_replaced(engine):
    clean, name = record(engine, IDS), "blocks.1.z"
    got = record(engine, IDS, names=name, patch=patch_from(DONOR, name, positions=[1, -1], heads=[0, 3]))[name]
    places = np.zeros(got.shape, bool)
    for t in (1, 6):
        for h in (0, 3):
            places[t, h] = True
    assert np.abs(got - DONOR[name])[places].max() <= 1e-6 and (got == clean[name])[~places].all()
    neurons = record(engine, IDS, names="blocks.0.mlp_post", patch=zero_neurons(0, [5, -2]))["blocks.0.mlp_post"]
    assert [f for f in range(80) if (neurons[:, f] == 0).all()] == [5, 78]
    pattern = record(
        engine, IDS, names="blocks.0.pattern", patch=zero_ablation("blocks.0.pattern", positions=3, heads=1)
    )["blocks.0.pattern"]
    silent = np.argwhere(pattern.sum(axis=-1) == 0)
    assert silent.tolist() == [[1, 3]]


def test_a_head_that_is_knocked_out_writes_nothing(engine):
    """Its share of what attention writes, by hand: its columns of the output matrix."""
    clean = record(engine, IDS)
    without = record(engine, IDS, patch=zero_heads(0, 2))
    share = clean["blocks.0.z"][:, 2] @ PARAMS.blocks[0].wo[:, 16:24].T
    assert np.abs(clean["blocks.0.attn_out"] - without["blocks.0.attn_out"] - share).max() <= 1e-5
    assert np.abs(share).max() > 0.1


def test_a_mean_is_over_all_rows_of_all_references(engine):
    texts = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10, 11]]
    traces = [record(engine, text, names=["blocks.0.mlp_out", "blocks.0.z"]) for text in texts]
    mean = np.concatenate([trace["blocks.0.mlp_out"] for trace in traces]).mean(axis=0)
    patches = mean_ablation(traces)
    assert list(patches) == ["blocks.0.z", "blocks.0.mlp_out"]
    got = record(engine, IDS, names="blocks.0.mlp_out", patch=patches)["blocks.0.mlp_out"]
    assert got.shape == (N, 32) and np.abs(got - mean).max() <= 1e-6


def test_a_patch_does_not_touch_the_callers_arrays(engine):
    given = DONOR["blocks.0.z"].copy()
    patches = [{"blocks.0.z": given}, {"blocks.0.z": lambda z: np.multiply(z, 0, out=z)}]
    assert (record(engine, IDS, names="blocks.0.z", patch=patches)["blocks.0.z"] == 0).all()
    assert (given == DONOR["blocks.0.z"]).all() and given.any()


@pytest.mark.parametrize(
    ("patches", "said"),
    [
        (zero_heads(2, 0), r"patch: there is no such activation; got blocks\.2\.z"),
        (zero_heads(1, 4), r"blocks\.1\.z, heads: cannot be used; got 4; wanted a whole number from -4 to 3"),
        (zero_heads(1, []), r"blocks\.1\.z, heads: selects nothing"),
        (zero_neurons(0, 80), r"blocks\.0\.mlp_post, neurons: cannot be used; got 80"),
        (zero_ablation("embed", heads=0), "embed: this activation has no heads"),
        (zero_ablation("blocks.0.z", neurons=0), r"blocks\.0\.z: this activation has no neurons"),
        (zero_ablation("embed", positions=7), "embed, positions: cannot be used; got 7"),
        (
            patch_from(record(ORACLE, IDS[:-1]), "embed"),
            r"embed: does not fit .*; got an array \[6, 32\]; w",
        ),
        ({"embed": Replacement(np.zeros(31))}, r"embed: does not fit .*; got an array \[31\]"),
        ({"embed": Replacement(np.zeros((1, 32)))}, r"embed: does not fit"),
        ({"embed": "zero"}, "embed: cannot be used as a patch; got str"),
    ],
)
def test_patches_that_do_not_fit_are_named(engine, patches, said):
    with pytest.raises(RefgptError, match=said):
        record(engine, IDS, patch=patches)


@pytest.mark.parametrize(("answer", "got"), [(None, "NoneType"), (np.zeros(3), r"an array \[3\]")])
def test_a_function_that_returns_something_else_is_named(engine, answer, got):
    with pytest.raises(RefgptError, match=rf"blocks\.1\.q: a patch must return an array .*; got {got}"):
        record(engine, IDS, patch={"blocks.1.q": lambda _: answer})


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (
            lambda: mean_ablation(DONOR, "blocks.*.pattern"),
            r"blocks\.0\.pattern: the rows of an attention",
        ),
        (lambda: mean_ablation([]), "reference: there is nothing to take a mean of"),
        (lambda: mean_ablation([DONOR, {}], "embed"), "reference: there is no such activation; got embed"),
        (lambda: mean_ablation([DONOR, {"embed": np.zeros((3, 5))}], "embed"), "embed: the traces are of different mo"),
        (lambda: patch_from({"embed": DONOR["embed"]}, "blocks.0.z"), r"there is no such activation; got blocks\.0\.z"),
    ],
)
def test_what_a_trace_cannot_give_is_named(make, said):
    with pytest.raises(RefgptError, match=said):
        make()


def test_the_default_model_without_its_first_attention_agrees_in_both_backends():
    text, patches = "Once upon a time there was a king.", [zero_ablation("blocks.0.attn_out"), zero_heads(3, [0, 2])]
    ours, spec = (
        refgpt.load(backend=backend).trace(text, names="logits", patch=patches)["logits"] for backend in ("c", "numpy")
    )
    clean = refgpt.load().trace(text, names="logits")["logits"]
    assert np.abs(ours - spec).max() <= CLOSE * spec.std() < 0.1 * np.abs(clean - ours).max()


def test_a_wide_pattern_is_mixed_within_its_bound():
    """More keys than a chunk of a sum holds."""
    from tests.helpers.runtime_models import LONG, PROMPT

    params = random_params(LONG, 11)
    engine = Runtime(params, LONG, threads=2, kv_dtype="f16")
    rolled = {"blocks.0.pattern": lambda pattern: np.roll(pattern, 1, axis=-1)}
    assert_within_bounds(engine, params, PROMPT, 0, rolled, {"blocks.0.pattern"})
