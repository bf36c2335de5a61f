"""Holding an engine to the spec: a comparison that names the activation where an engine goes wrong."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec import tap_names
from refgpt.tracing import verify
from tests.helpers.tracing_models import CLOSE, CONFIG, IDS, PARAMS, RUNTIME


class Rounded(SpecEngine):
    """As good as float32 gets: every activation is the float64 one, rounded once; ``spoil`` adds a fault."""

    def __init__(self, spoil=lambda name, value: value):
        super().__init__(PARAMS, CONFIG, np.float64)
        self.spoil = spoil

    def logits(self, ids, prefix_len=0, tap=lambda name, value: value):
        def rounded(name, value):
            return tap(name, self.spoil(name, value.astype(np.float32)))

        return super().logits(ids, prefix_len, rounded)


def claiming(engine, **claims):
    """The engine, saying of itself what is not so."""
    says = {"config": engine.config, "kv_dtype": engine.kv_dtype, "sum_chunk": engine.sum_chunk}
    return SimpleNamespace(**{**says, **claims}, logits=engine.logits)


def spoiler(at, change):
    return lambda name, value: change(value) if name == at else value


@pytest.mark.parametrize("prefix_len", [0, 4, len(IDS)])
def test_a_good_engine_is_within_every_bound(prefix_len):
    for good in (Rounded(), RUNTIME):
        report = verify(good, PARAMS, IDS, prefix_len)
        assert [tap.name for tap in report.taps] == tap_names(CONFIG)
        assert report.first_broken is None and report.same_argmax == 1
        assert 0 < report.logit_error < CLOSE
        assert all(tap.ok and tap.cosine > 1 - 1e-9 for tap in report.taps)
        assert report.taps[0].error == 0


def test_the_runtime_with_float16_weights_and_cache():
    kept = PARAMS.kept_as("f16")
    engine = Runtime(PARAMS, CONFIG, dtype="f16", threads=1, kv_dtype="f16")
    assert verify(engine, kept, IDS, 3).first_broken is None
    assert verify(engine, PARAMS, IDS, 3).first_broken.name == "embed"
    assert verify(claiming(engine, kv_dtype="f32"), kept, IDS, 3).first_broken.name == "blocks.0.pattern"


def test_an_engine_that_states_the_order_of_its_sums_is_held_to_it():
    stated, any_order = (verify(engine, PARAMS, IDS) for engine in (RUNTIME, claiming(RUNTIME, sum_chunk=None)))
    tighter = {a.name.rpartition(".")[2] for a, b in zip(stated.taps, any_order.taps, strict=True) if a.bound < b.bound}
    assert tighter == {"mlp_out"}  # the one sum of this model that is longer than a chunk


def nudge(value):
    """Each number moved by a thousandth of the largest."""
    return value + np.float32(1e-3) * np.abs(value).max()


@pytest.mark.parametrize("name", tap_names(CONFIG))
def test_a_fault_is_caught_where_it_is_and_nowhere_else(name):
    report = verify(Rounded(spoiler(name, nudge)), PARAMS, IDS, 2)
    assert [tap.name for tap in report.taps if not tap.ok] == [name]
    assert report.first_broken.name == name
    assert f"first divergence: {name}" in list(report.lines())


@pytest.mark.parametrize(
    "change", [np.negative, np.zeros_like, lambda value: value * np.nan, lambda value: value[::-1]]
)
def test_wrong_signs_zeros_nan_and_swapped_rows_are_caught(change):
    report = verify(Rounded(spoiler("blocks.1.mlp_out", change)), PARAMS, IDS)
    assert report.first_broken.name == "blocks.1.mlp_out"


def test_a_mask_that_leaks_is_caught():
    class Leaks(Rounded):
        def logits(self, ids, prefix_len=0, tap=None):
            return super().logits(ids, prefix_len + 1, tap)

    assert verify(Leaks(), PARAMS, IDS, 2).first_broken.name == "blocks.0.pattern"


def test_the_table_has_a_line_for_each_activation():
    lines = list(verify(Rounded(spoiler("ln_final", nudge)), PARAMS, IDS).lines())
    assert [line.split()[0] for line in lines[1:-2]] == tap_names(CONFIG)
    assert [line.split()[-1] for line in lines[1:-2]].count("BROKEN") == 1
