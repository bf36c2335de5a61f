"""Holding an engine to the spec: a comparison that names the activation where an engine goes wrong."""

from __future__ import annotations

import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from refgpt._common.errors import RefgptError
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec import tap_names
from refgpt.tracing import memory, verify, verify_bytes
from tests.helpers.tiny import random_params, tiny_config
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
    says = {"config": engine.config, "kv_dtype": engine.kv_dtype, "sum_chunk": engine.sum_chunk, "compute": "f32"}
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


@pytest.mark.parametrize("engine", [RUNTIME, Rounded(spoiler("blocks.0.z", nudge)), Rounded(lambda n, x: x * np.nan)])
def test_no_row_contradicts_itself(engine):
    """Error, bound and share are of one element; what is printed of them agrees with the verdict."""
    report = verify(engine, PARAMS, IDS)
    for tap, line in zip(report.taps, list(report.lines())[1:-2], strict=True):
        if tap.bound > 0 and np.isfinite(tap.ratio):
            assert tap.ratio == pytest.approx(tap.error / tap.bound, rel=1e-12)
            assert tap.ok == (tap.error <= tap.bound)
        assert not tap.max_error < tap.error  # NaN is not less
        _, error, bound, share, largest, *_, verdict = line.split()
        assert float(largest) == pytest.approx(tap.max_error, rel=0.01, nan_ok=True)
        if float(bound) and "nan" not in line:
            assert float(share.rstrip("%")) == pytest.approx(100 * float(error) / float(bound), rel=0.02, abs=0.01)
            assert (float(share.rstrip("%")) <= 100) == (verdict == "ok")


def test_the_largest_error_may_be_that_of_another_element():
    """One with a wide bound: some rows of any real report have it."""
    taps = verify(RUNTIME, PARAMS, IDS).taps
    assert any(tap.max_error > tap.error for tap in taps) and any(tap.max_error > tap.bound for tap in taps)


def test_rows_are_told_as_they_are_known():
    told, names_at_head = [], []

    class Watched(Rounded):
        def kept(self):
            return PARAMS

    def on_tap(tap):
        told.append(tap)
        names_at_head.append(len(told))

    report = verify(Watched(), PARAMS, IDS, on_tap=on_tap)
    assert tuple(told) == report.taps and names_at_head == list(range(1, len(report.taps) + 1))
    with pytest.raises(ZeroDivisionError):  # at the first row, not when all is done
        verify(Watched(), PARAMS, IDS, on_tap=lambda tap: told.clear() or 1 / 0)
    assert told == []


def test_the_bar_counts_blocks(capsys):
    verify(RUNTIME, PARAMS, IDS)
    assert capsys.readouterr().err == ""
    verify(RUNTIME, PARAMS, IDS, progress=True)
    assert f"/{2 * CONFIG.n_layer}" in capsys.readouterr().err


MEDIUM = tiny_config(n_layer=2, n_head=4, d_model=192, d_ff=768, d_rotary=16, n_vocab=600, n_ctx=128)


@pytest.mark.parametrize("n", [4, 128])
def test_its_memory_is_known_beforehand(n):
    """Weights matter most for a short text, activations for a long one."""
    params = random_params(MEDIUM, 1, "f16")
    engine, ids = Runtime(params, MEDIUM), np.arange(n)
    verify(engine, params, ids[:2])  # what is kept from the first call on counts for neither
    tracemalloc.start()
    try:
        verify(engine, params, ids)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= verify_bytes(engine, n) <= 3 * peak


def test_what_cannot_fit_is_refused_before_anything_is_computed(monkeypatch):
    class Idle(Rounded):
        def logits(self, *_, **__):
            raise AssertionError("computes")

    monkeypatch.setattr(memory, "available_memory", lambda: verify_bytes(Idle(), len(IDS)) - 1)
    with pytest.raises(RefgptError, match=r"^verify: this takes more memory than there is.*shorter text"):
        verify(Idle(), PARAMS, IDS)
    monkeypatch.setattr(memory, "available_memory", lambda: verify_bytes(Idle(), len(IDS)))
    assert verify(Rounded(), PARAMS, IDS).first_broken is None
