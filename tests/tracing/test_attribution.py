"""Direct logit attribution: the terms sum to the logit, and each is its writer's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import GenerationError
from refgpt.numbers.leaves import widen
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec.bounds.ops import U
from refgpt.tracing import logit_attribution, record
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.tracing_models import CLOSE, CONFIG, ENGINES, IDS, ORACLE, PARAMS, RUNTIME, Spelling, as_model

#: Unit roundoffs of what the engines compute in.
ROUNDOFF = {"spec": 2.0**-53, "runtime": U}


def tolerance(engine, params, ids, token, roundoff, position=-1, prefix_len=0):
    """How far the sum of the terms may be from the engine's logit.

    Both are sums of the same products, of what a writer writes with the weights of LayerNorm and head. In size, with
    the mean of each writer beside it, they sum to ``terms``. On its way a product is rounded in sums over ``c``: by the
    engine for the writer, mean, variance and head, here for the direction's mean, its way through the output matrix,
    the scale and the head's share, eight at most. There are two sums over the writers, two a block, and single steps.
    Both scales are of the same stream, and off by so many roundings of its mean square beside its variance.
    """
    config = engine.config
    last = f"blocks.{config.n_layer - 1}.resid_post"
    names = ["embed", "blocks.*.z", "blocks.*.mlp_out", last]
    trace = record(engine, ids, prefix_len, names, position)
    size = {name: np.abs(x[0].astype(np.float64)) for name, x in trace.items()}
    stream = trace[last][0].astype(np.float64)
    sizes = size["embed"] + sum(
        size[f"blocks.{i}.z"].reshape(-1) @ np.abs(widen(p.wo, np.float64)).T + size[f"blocks.{i}.mlp_out"]
        for i, p in enumerate(params.blocks)
    )
    square = stream.var() + config.ln_eps
    unembed, ln_w, ln_b = (np.abs(widen(w, np.float64)) for w in (params.w_head[[token]][0], params.ln_w, params.ln_b))
    terms = unembed * ln_w @ (sizes + sizes.mean()) / np.sqrt(square) + unembed @ ln_b + abs(params.b_head[token])
    n = 8 * config.d_model + 4 * config.n_layer + 20
    return n * roundoff * terms * (1 + (stream * stream).mean() / square)


@pytest.mark.parametrize("kind", ENGINES)
@pytest.mark.parametrize("token", [None, 0, 60])
@pytest.mark.parametrize(("position", "prefix_len"), [(-1, 0), (2, 0), (0, 5)])
def test_the_terms_sum_to_the_logit(kind, token, position, prefix_len):
    engine = ENGINES[kind]
    found = logit_attribution(engine, IDS, token, position=position, prefix_len=prefix_len)
    row = engine.logits(IDS, prefix_len)[position]
    assert found.token == (row.argmax() if token is None else token)
    assert found.logit == row[found.token]
    bound = tolerance(engine, PARAMS, IDS, found.token, ROUNDOFF[kind], position, prefix_len)
    assert abs(found.total - found.logit) <= bound <= (1e-11 if kind == "spec" else 5e-3)
    assert found.heads.shape == (2, 4) and found.mlps.shape == (2,)
    assert (found.layers == found.heads.sum(1) + found.mlps).all()
    exact = logit_attribution(ORACLE, IDS, found.token, position=position, prefix_len=prefix_len)
    assert np.abs(found.heads - exact.heads).max() <= CLOSE >= np.abs(found.mlps - exact.mlps).max()


def test_a_term_is_the_writers_vector_through_the_frozen_layernorm():
    """By the LayerNorm and the head themselves, for a writer's vector alone with the scale of the whole stream."""
    trace = {name: x[-1] for name, x in record(ORACLE, IDS).items()}
    scale = np.sqrt(trace["blocks.1.resid_post"].var() + CONFIG.ln_eps)

    def term(vector, token):
        normed = (vector - vector.mean()) / scale * PARAMS.ln_w
        return normed @ PARAMS.w_head[token]

    found = logit_attribution(ORACLE, IDS, 5)
    assert abs(found.embed - term(trace["embed"], 5)) <= 1e-12
    for i, p in enumerate(PARAMS.blocks):
        assert abs(found.mlps[i] - term(trace[f"blocks.{i}.mlp_out"], 5)) <= 1e-12
        for h in range(4):
            written = p.wo.astype(np.float64)[:, 8 * h : 8 * h + 8] @ trace[f"blocks.{i}.z"][h]
            assert abs(found.heads[i, h] - term(written, 5)) <= 1e-12
    assert abs(found.bias - (PARAMS.w_head[5].astype(np.float64) @ PARAMS.ln_b + PARAMS.b_head[5])) <= 1e-12


def test_a_difference_of_logits_is_a_difference_of_attributions():
    one, other, both = (logit_attribution(RUNTIME, IDS, *tokens) for tokens in ((3,), (8,), (3, 8)))
    assert np.abs(one.heads - other.heads - both.heads).max() <= 1e-12
    for name in ("embed", "bias", "total", "logit"):
        assert abs(getattr(one, name) - getattr(other, name) - getattr(both, name)) <= 1e-12
    assert (both.token, both.against) == (3, 8)


def test_a_silent_writer_has_no_term():
    silent = dataclasses.replace(PARAMS.blocks[1], wo=np.where(np.arange(32) // 8 == 2, 0, PARAMS.blocks[1].wo))
    params = dataclasses.replace(PARAMS, blocks=(PARAMS.blocks[0], silent))
    heads = logit_attribution(SpecEngine(params, CONFIG, np.float64), IDS).heads
    assert [(i, h) for i, h in np.argwhere(heads == 0)] == [(1, 2)]


def test_matrices_in_several_slices_and_other_shapes(monkeypatch):
    config = tiny_config(n_head=3, d_model=96, d_ff=50, n_layer=3)
    params = random_params(config, 5)
    engine = SpecEngine(params, config, np.float64)
    monkeypatch.setattr("refgpt.numbers.leaves.SLICE", 64)  # of 64 rows, then
    found = logit_attribution(engine, IDS, 4)
    assert found.heads.shape == (3, 3)
    assert abs(found.total - found.logit) <= tolerance(engine, params, IDS, 4, 2.0**-53)


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_the_default_model(backend):
    model = refgpt.load(backend=backend)
    found = logit_attribution(model, "Once upon a time there was a king who had a")
    assert abs(found.total - found.logit) <= 1e-5 * abs(found.logit)


def test_quantised_weights_are_those_of_the_engine():
    engine = Runtime(PARAMS, CONFIG, dtype="q8", threads=1)
    found, exact = logit_attribution(engine, IDS, 7), logit_attribution(SpecEngine(engine.kept(), CONFIG), IDS, 7)
    assert np.abs(found.heads - exact.heads).max() <= 0.05 and abs(found.total - found.logit) <= 0.1


def test_text_is_encoded():
    model = as_model(ORACLE, Spelling())
    assert logit_attribution(model, "hd", 1).total == logit_attribution(ORACLE, [7, 3], 1).total


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"token": 61}, "token: cannot be used; got 61"),
        ({"against": -1}, "against: cannot be used; got -1"),
        ({"position": 7}, "position: cannot be used; got 7"),
        ({"position": [0, 1]}, "position: cannot be used"),
    ],
)
def test_mistakes_are_named(arguments, said):
    with pytest.raises(GenerationError, match=said):
        logit_attribution(RUNTIME, IDS, **arguments)
