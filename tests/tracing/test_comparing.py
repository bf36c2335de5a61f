"""Two models on one text: differences by hand, and what float16 and fewer bits do."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import GenerationError, RefgptError
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec import tap_names
from refgpt.tracing import compare, comparing, record
from refgpt.tracing.comparing import _difference
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.tracing_models import CONFIG, ENGINES, IDS, ORACLE, PARAMS, RUNTIME, Spelling, as_model

OTHER = SpecEngine(random_params(CONFIG, 10), CONFIG)


def softmax(row):
    powers = [math.exp(x) for x in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_figure_by_hand(engine):
    a, b = ENGINES[engine], OTHER
    found, (first, second) = compare(a, b, IDS, 3), (record(one, IDS, 3) for one in (a, b))
    assert [tap.name for tap in found.taps] == tap_names(CONFIG)
    for tap in found.taps:
        x, y = ([float(n) for n in trace[tap.name].reshape(-1)] for trace in (first, second))
        off = [p - q for p, q in zip(x, y, strict=True)]
        rms = math.sqrt(math.fsum(d * d for d in off) / len(off))
        assert tap.max_abs == pytest.approx(max(map(abs, off)), rel=1e-12)
        assert tap.rms == pytest.approx(rms, rel=1e-12)
        assert tap.relative == pytest.approx(rms / math.sqrt(math.fsum(p * p for p in x) / len(x)), rel=1e-12)
        lengths = math.sqrt(math.fsum(p * p for p in x) * math.fsum(q * q for q in y))
        assert tap.cosine == pytest.approx(math.fsum(p * q for p, q in zip(x, y, strict=True)) / lengths, abs=1e-12)
    for t, kl in enumerate(found.kl):
        p, q = (softmax([float(x) for x in trace["logits"][t]]) for trace in (first, second))
        assert kl == pytest.approx(sum(pi * math.log(pi / qi) for pi, qi in zip(p, q, strict=True)), rel=1e-9)
    same = [a.argmax() == b.argmax() for a, b in zip(first["logits"], second["logits"], strict=True)]
    assert found.same_argmax == np.mean(same)


def test_a_model_does_not_differ_from_itself():
    found = compare(RUNTIME, RUNTIME, IDS)
    assert all((tap.max_abs, tap.rms, tap.relative) == (0, 0, 0) and abs(tap.cosine - 1) < 1e-12 for tap in found.taps)
    assert (np.abs(found.kl) < 1e-15).all() and found.same_argmax == 1


def test_the_first_is_the_measure():
    forth, back = compare(ORACLE, OTHER, IDS), compare(OTHER, ORACLE, IDS)
    assert np.abs(forth.kl - back.kl).min() > 1e-3
    assert forth.taps[-1].rms == back.taps[-1].rms and forth.taps[-1].relative != back.taps[-1].relative


def test_only_what_is_asked_for(monkeypatch):
    monkeypatch.setattr(comparing, "ROWS_TOGETHER", 3)
    everything, some = compare(ORACLE, OTHER, IDS), compare(ORACLE, OTHER, IDS, names="blocks.*.z")
    assert [tap.name for tap in some.taps] == ["blocks.0.z", "blocks.1.z"]
    assert (some.kl == everything.kl).all() and some.kl.shape == (7,)
    assert {*some.taps} < {*everything.taps}
    assert [tap.name for tap in compare(ORACLE, OTHER, IDS, names=["logits", "embed"]).taps] == ["embed", "logits"]


def test_nothing_beside_nothing_and_beside_something():
    zero, one = np.zeros((2, 3)), np.ones((2, 3))
    assert dataclasses.astuple(_difference("x", zero, zero)) == ("x", 0, 0, 0, 1)
    assert dataclasses.astuple(_difference("x", zero, one)) == ("x", 1, 1, np.inf, 0)
    assert np.isnan(_difference("x", one, one * np.nan).max_abs)


def test_fewer_bits_are_further_away():
    kls, errors = [], []
    for dtype in ("f16", "q8", "q4"):
        found = compare(ORACLE, Runtime(PARAMS, CONFIG, dtype=dtype, threads=1), IDS)
        kls.append(found.kl.mean())
        errors.append([tap.rms for tap in found.taps])
    assert 0 < kls[0] < kls[1] / 10 < kls[2] / 100
    assert (np.diff(errors, axis=0)[:, 2:] > 0).all()  # the embeddings are kept in 8 bits by either


def test_the_default_model_in_four_bits():
    stored, small = refgpt.load(), refgpt.load(dtype="q4")
    found = compare(stored, small, "Once upon a time there was a king who had a daughter.")
    assert 1e-4 < found.kl.mean() < 0.1 and found.taps[0].cosine > 0.9999 > found.taps[-1].cosine > 0.99
    lines = list(found.lines())
    assert [line.split()[0] for line in lines[1:-1]] == tap_names(stored.config)
    assert lines[-1].startswith("next token: KL 0.0")


def test_mistakes_are_named():
    other = tiny_config(d_ff=79)
    with pytest.raises(RefgptError, match=r"compare: the models have different shapes .* d_ff=79 .*; wanted n_l"):
        compare(RUNTIME, SpecEngine(random_params(other, 1), other), IDS)
    with pytest.raises(RefgptError, match="no such activation; got z"):
        compare(RUNTIME, RUNTIME, IDS, names="z")
    with pytest.raises(GenerationError, match="is a text"):
        compare(RUNTIME, as_model(RUNTIME, Spelling()), "hd")
    assert compare(as_model(RUNTIME, Spelling()), ORACLE, "hd").kl.shape == (2,)
