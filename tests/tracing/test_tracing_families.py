"""Looking inside works on every variant of every family, in both engines."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec import tap_names
from refgpt.spec.families import taps_of
from refgpt.tracing import (
    causal_trace,
    compare,
    head_scores,
    logit_attribution,
    logit_lens,
    patch_from,
    record,
    residual_norms,
    zero_ablation,
    zero_heads,
)
from tests.helpers.families import VARIANTS
from tests.helpers.tiny import random_params
from tests.helpers.tracing_models import CLOSE, IDS, OTHER, assert_within_bounds

each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_engine = pytest.mark.parametrize("kind", ["spec", "runtime"])


@cache
def params_of(variant):
    return random_params(VARIANTS[variant], 9)


@cache
def engine_of(variant, kind):
    config, params = VARIANTS[variant], params_of(variant)
    return SpecEngine(params, config, np.float64) if kind == "spec" else Runtime(params, config, threads=1)


@each_variant
@each_engine
def test_the_terms_of_a_logit_sum_to_it(variant, kind):
    engine = engine_of(variant, kind)
    found = logit_attribution(engine, IDS, position=-2)
    # float64 leaves some hundred roundings, float32 shows its own: a writer that is left out shows in the first digits.
    assert abs(found.total - found.logit) < (1e-11 if kind == "spec" else 1e-3)
    biased = [getattr(p, "bo", None) is not None for p in params_of(variant).blocks]
    assert (found.attn_biases != 0).tolist() == biased


@each_variant
@each_engine
def test_the_lens_ends_in_the_models_own_logits(variant, kind):
    engine = engine_of(variant, kind)
    depths, logits = logit_lens(engine, IDS), engine.logits(IDS)
    assert depths.shape == (engine.config.n_layer + 1, *logits.shape)
    assert np.abs(depths[-1] - logits).max() < (1e-11 if kind == "spec" else CLOSE * 10)
    assert residual_norms(engine, IDS).shape == (engine.config.n_layer + 1, len(IDS))


@each_variant
def test_a_patch_of_any_activation_leaves_the_others_within_their_bounds(variant):
    engine, params = engine_of(variant, "runtime"), params_of(variant)
    donor = record(engine, OTHER)
    for name in tap_names(engine.config):
        assert_within_bounds(engine, params, IDS, patch=patch_from(donor, name, positions=-1), patched={name})


@each_variant
def test_both_engines_agree_on_ablations_and_scores(variant):
    spec, runtime = engine_of(variant, "spec"), engine_of(variant, "runtime")
    for change in (zero_heads(0, [1]), zero_ablation("blocks.1.mlp_post"), zero_ablation("blocks.0.ln*")):
        ours, theirs = (record(engine, IDS, names="logits", patch=change)["logits"] for engine in (runtime, spec))
        assert np.abs(ours - theirs).max() < CLOSE * max(1, theirs.std())
        assert not np.array_equal(theirs, spec.logits(IDS))
    ours, theirs = head_scores(runtime, IDS), head_scores(spec, IDS)
    assert np.abs(ours.entropy - theirs.entropy).max() < CLOSE
    assert compare(runtime, runtime, IDS).kl.max() < 1e-12


@each_variant
def test_a_restored_stream_restores_the_answer(variant):
    engine = engine_of(variant, "spec")
    part = "resid_mid" if "resid_mid" in taps_of(engine.config).block else "attn_out"
    for name in ("resid_post", part):
        traced = causal_trace(engine, IDS, [*OTHER[:-1], 1], answer=3, other=5, part=name)
        assert traced.restored.shape == (engine.config.n_layer, len(IDS))
    whole = causal_trace(engine, IDS, [*OTHER[:-1], 1], answer=3, other=5, positions=-1)
    assert whole.restored[-1, 0] == pytest.approx(whole.clean)
