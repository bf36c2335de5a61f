"""The logit lens and the norms of the residual stream, against models cut short and sums by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import RefgptError
from refgpt.generation.sampling import log_softmax
from refgpt.runtime import Runtime
from refgpt.spec import forward
from refgpt.tracing import logit_lens, memory, record, residual_norms
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.tracing_models import CLOSE, CONFIG, ENGINES, IDS, PARAMS, RUNTIME, Spelling, as_model


@pytest.fixture(params=ENGINES)
def engine(request):
    return ENGINES[request.param]


def test_each_depth_is_the_model_cut_short_there(engine):
    lens = logit_lens(engine, IDS, 2)
    assert lens.shape == (CONFIG.n_layer + 1, len(IDS), CONFIG.n_vocab)
    assert np.abs(lens[2] - forward(PARAMS, CONFIG, IDS, 2)).max() <= CLOSE
    shallow = dataclasses.replace(PARAMS, blocks=PARAMS.blocks[:1])
    assert np.abs(lens[1] - forward(shallow, tiny_config(n_layer=1), IDS, 2)).max() <= CLOSE
    x = PARAMS.wte[IDS].astype(np.float64)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + CONFIG.ln_eps)
    none = (x * PARAMS.ln_w + PARAMS.ln_b) @ PARAMS.w_head.T + PARAMS.b_head
    assert np.abs(lens[0] - none).max() <= CLOSE


def test_some_positions_and_texts(engine):
    lens = logit_lens(engine, IDS)
    # The same rows; NumPy may sum a matrix of fewer rows in another order.
    assert np.abs(logit_lens(engine, IDS, positions=[-1, 0]) - lens[:, [-1, 0]]).max() <= CLOSE
    assert (logit_lens(as_model(engine, Spelling()), "hd") == logit_lens(engine, [7, 3])).all()


@pytest.mark.parametrize("dtype", ["f16", "q8", "q4"])
def test_packed_heads_are_read_as_the_engine_keeps_them(dtype):
    engine = Runtime(PARAMS, CONFIG, dtype=dtype, threads=1)
    lens = logit_lens(engine, IDS)
    # Quantised kernels also round the rows that meet the head, to 8 bits: a two-hundredth of the largest at most.
    room = CLOSE if dtype == "f16" else 0.05
    assert np.abs(lens[-1] - engine.logits(IDS)).max() <= room * np.abs(lens[-1]).max()


def test_a_head_of_several_slices(monkeypatch):
    config = tiny_config(n_vocab=300)
    engine = Runtime(random_params(config, 4), config, threads=1)
    monkeypatch.setattr("refgpt.numbers.leaves.SLICE", 64)  # of 64 rows, then
    assert np.abs(logit_lens(engine, IDS)[-1] - engine.logits(IDS)).max() <= CLOSE


def test_a_lens_that_would_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 3 * 7 * 61 * 4 - 1)
    with pytest.raises(RefgptError, match=r"got 5\.12 kB \(3 x 7 rows of 61 logits\)"):
        logit_lens(RUNTIME, IDS)


def test_norms_are_lengths_of_rows(engine):
    norms = residual_norms(engine, IDS, 3)
    trace = record(engine, IDS, 3)
    for depth, name in enumerate(["embed", "blocks.0.resid_post", "blocks.1.resid_post"]):
        by_hand = [sum(float(x) ** 2 for x in row) ** 0.5 for row in trace[name]]
        assert np.abs(norms[depth] - by_hand).max() <= 1e-12 * max(by_hand)


def test_the_default_model_finds_its_words_on_the_way():
    model = refgpt.load()
    ids = model.tokenizer.encode("Once upon a time there was a king who had a beautiful daughter, and she said,")
    lens = logit_lens(model, ids)
    assert lens.shape == (7, len(ids), 4096)
    nats = [-log_softmax(depth)[np.arange(len(ids) - 1), ids[1:]].mean() for depth in lens]
    assert nats[0] - 2 > nats[3] > nats[6] + 0.5 and nats[6] < 5
