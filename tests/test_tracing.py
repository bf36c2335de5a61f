"""Recording, patching, the logit lens, and a comparison that names the activation where an engine goes wrong."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from tiny import random_params, tiny_config

from refgpt.engine import SpecEngine
from refgpt.errors import RefgptError
from refgpt.runtime import Runtime
from refgpt.spec import forward, tap_names
from refgpt.tracing import compare, logit_lens, patch, record

CONFIG = tiny_config()
PARAMS = random_params(CONFIG, seed=9)
IDS = [7, 3, 60, 0, 3, 12, 33]
ORACLE = SpecEngine(PARAMS, CONFIG, np.float64)
ENGINES = {"spec": ORACLE, "runtime": Runtime(PARAMS, CONFIG, threads=1)}
# End to end, against a wrong mask, row, layer or patch, which show in the first digits; rounding is for ``compare``.
CLOSE = 1e-4


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


@pytest.fixture(params=ENGINES)
def engine(request):
    return ENGINES[request.param]


def test_record_takes_all_or_what_is_named(engine):
    assert list(record(engine, IDS)) == tap_names(CONFIG)
    two = record(engine, IDS, 3, ["blocks.1.pattern", "embed"])
    assert list(two) == ["embed", "blocks.1.pattern"]
    assert (two["blocks.1.pattern"][:, :3, :3] > 0).all()


def test_patching_what_was_recorded_changes_nothing(engine):
    for name, value in record(engine, IDS).items():
        assert np.abs(patch(engine, IDS, {name: value}) - engine.logits(IDS)).max() <= CLOSE


def test_patching_one_activation_moves_what_depends_on_it(engine):
    other = record(engine, [1, 2, 3, 4, 5, 6, 33])
    whole = patch(engine, IDS, {"blocks.1.resid_post": other["blocks.1.resid_post"]})
    assert np.abs(whole - other["logits"]).max() <= CLOSE
    z = record(engine, IDS)["blocks.0.z"]
    z[4] = 0
    moved = np.abs(patch(engine, IDS, {"blocks.0.z": z}) - engine.logits(IDS)).max(axis=-1)
    assert (moved[:4] == 0).all() and (moved[4:] > 1e-3).all()


def test_names_and_shapes_are_checked(engine):
    with pytest.raises(RefgptError, match=r"no such activation; got blocks\.2\.q"):
        record(engine, IDS, names=["blocks.2.q"])
    with pytest.raises(RefgptError, match="no such activation; got q"):
        patch(engine, IDS, {"q": np.zeros(3)})
    with pytest.raises(RefgptError, match=r"blocks\.0\.q: a tap must return an array of the shape"):
        patch(engine, IDS, {"blocks.0.q": np.zeros(3)})


def test_the_lens_ends_with_the_models_own_logits(engine):
    lens = logit_lens(engine, PARAMS, IDS, 2)
    assert lens.shape == (CONFIG.n_layer + 1, len(IDS), CONFIG.n_vocab)
    assert np.abs(lens[-1] - forward(PARAMS, CONFIG, IDS, 2)).max() <= CLOSE
    shallow = type(PARAMS)(**{**vars(PARAMS), "blocks": PARAMS.blocks[:1]})
    after_one = forward(shallow, tiny_config(n_layer=1), IDS, 2)
    assert np.abs(lens[1] - after_one).max() <= CLOSE


@pytest.mark.parametrize("prefix_len", [0, 4, len(IDS)])
def test_a_good_engine_is_within_every_bound(prefix_len):
    for good in (Rounded(), ENGINES["runtime"]):
        report = compare(good, PARAMS, IDS, prefix_len)
        assert [tap.name for tap in report.taps] == tap_names(CONFIG)
        assert report.first_broken is None and report.same_argmax == 1
        assert 0 < report.logit_error < CLOSE
        assert all(tap.ok and tap.cosine > 1 - 1e-9 for tap in report.taps)
        assert report.taps[0].error == 0


def test_the_runtime_with_float16_weights_and_cache():
    kept = PARAMS.kept_as("f16")
    engine = Runtime(PARAMS, CONFIG, dtype="f16", threads=1, kv_dtype="f16")
    assert compare(engine, kept, IDS, 3).first_broken is None
    assert compare(engine, PARAMS, IDS, 3).first_broken.name == "embed"
    assert compare(claiming(engine, kv_dtype="f32"), kept, IDS, 3).first_broken.name == "blocks.0.pattern"


def test_an_engine_that_states_the_order_of_its_sums_is_held_to_it():
    stated, any_order = (compare(engine, PARAMS, IDS) for engine in
                         (ENGINES["runtime"], claiming(ENGINES["runtime"], sum_chunk=None)))  # fmt: skip
    tighter = {a.name.rpartition(".")[2] for a, b in zip(stated.taps, any_order.taps, strict=True) if a.bound < b.bound}
    assert tighter == {"mlp_out"}  # the one sum of this model that is longer than a chunk


def nudge(value):
    """Each number moved by a thousandth of the largest."""
    return value + np.float32(1e-3) * np.abs(value).max()


@pytest.mark.parametrize("name", tap_names(CONFIG))
def test_a_fault_is_caught_where_it_is_and_nowhere_else(name):
    report = compare(Rounded(spoiler(name, nudge)), PARAMS, IDS, 2)
    assert [tap.name for tap in report.taps if not tap.ok] == [name]
    assert report.first_broken.name == name
    assert f"first divergence: {name}" in list(report.lines())


@pytest.mark.parametrize(
    "change", [np.negative, np.zeros_like, lambda value: value * np.nan, lambda value: value[::-1]]
)
def test_wrong_signs_zeros_nan_and_swapped_rows_are_caught(change):
    report = compare(Rounded(spoiler("blocks.1.mlp_out", change)), PARAMS, IDS)
    assert report.first_broken.name == "blocks.1.mlp_out"


def test_a_mask_that_leaks_is_caught():
    class Leaks(Rounded):
        def logits(self, ids, prefix_len=0, tap=None):
            return super().logits(ids, prefix_len + 1, tap)

    assert compare(Leaks(), PARAMS, IDS, 2).first_broken.name == "blocks.0.pattern"


def test_the_table_has_a_line_for_each_activation():
    lines = list(compare(Rounded(spoiler("ln_final", nudge)), PARAMS, IDS).lines())
    assert [line.split()[0] for line in lines[1:-2]] == tap_names(CONFIG)
    assert [line.split()[-1] for line in lines[1:-2]].count("BROKEN") == 1
