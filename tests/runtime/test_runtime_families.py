"""Every variant of every family in kernels: within the bounds of its spec, the same bits in any company."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

from refgpt import kernels
from refgpt._common.errors import GenerationError
from refgpt.kernels import list_kernels
from refgpt.numbers.panels import Panels
from refgpt.runtime import Runtime
from refgpt.spec import forward, gpt_neo
from refgpt.tracing import verify
from tests.goldens import load_family
from tests.helpers.families import COMMON, VARIANTS
from tests.helpers.runtime_models import fed
from tests.helpers.tiny import random_params
from tests.helpers.tracing_models import assert_within_bounds

each_variant = pytest.mark.parametrize("variant", VARIANTS)
IDS = np.random.default_rng(4).integers(0, 61, 41)
ISAS = sorted({kernel.isa for kernel in list_kernels() if kernel.obstacle is None})


@cache
def runtime(variant: str, dtype: str | None = None, kv_dtype: str = "f32", compute: str = "f32") -> Runtime:
    config = VARIANTS[variant]
    options = {"dtype": dtype, "kv_dtype": kv_dtype, "compute": compute}
    return Runtime(random_params(config, 11), config, threads=2, **options)


@each_variant
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [(None, "f32"), ("f16", "f16"), ("q8", "f16"), ("q4", "f32"), ("q3", "f32"), (None, "q8")]
)
def test_every_activation_is_within_its_bound_of_the_spec(variant, dtype, kv_dtype):
    engine = runtime(variant, dtype, kv_dtype)
    assert_within_bounds(engine, engine.kept(), IDS)


@each_variant
def test_arithmetic_in_bfloat16_is_within_its_bounds_and_needs_them(variant):
    engine = runtime(variant, "bf16", compute="bf16")
    assert verify(engine, engine.kept(), IDS).first_broken is None
    wide = runtime(variant, "bf16")
    assert not np.array_equal(engine.logits(IDS), wide.logits(IDS))
    assert verify(wide, wide.kept(), IDS).first_broken is None
    claiming = SimpleNamespace(config=engine.config, logits=engine.logits, kv_dtype="f32", sum_chunk=32, compute="f32")
    assert verify(claiming, engine.kept(), IDS).first_broken is not None


@each_variant
def test_verify_finds_nothing(variant):
    report = verify(runtime(variant), random_params(VARIANTS[variant], 11), IDS)
    assert report.first_broken is None
    assert report.logit_error < 1e-3  # end to end, to some digits: nothing gross


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "gptj"])
def test_logits_are_pytorchs_to_some_digits(variant):
    golden, config = load_family(variant), VARIANTS[variant]
    logits = Runtime(random_params(config, golden.seed), config, threads=1).logits(golden.ids)
    assert np.abs(logits - golden.logits).max() < 1e-4 * golden.logits.std()


@each_variant
@pytest.mark.parametrize(("dtype", "compute"), [(None, "f32"), ("bf16", "bf16"), ("q8", "f32"), ("q4", "f32")])
def test_chunks_single_steps_and_other_texts_change_no_bit(variant, dtype, compute):
    engine = runtime(variant, dtype, compute=compute)
    whole = engine.logits(IDS)
    for chunk in (1, 7, 16):
        assert np.array_equal(fed(engine, IDS, chunk), whole)
    session = engine.session(3, len(IDS))  # ragged: each text is at another position
    starts = (5, 20, 1)
    for slot, start in enumerate(starts):
        assert np.array_equal(session.prefill(slot, IDS[:start]), whole[start - 1])
    for step in range(15):
        rows = session.decode([2, 0, 1], [int(IDS[starts[slot] + step]) for slot in (2, 0, 1)])
        for row, slot in zip(rows, (2, 0, 1), strict=True):
            assert np.array_equal(row, whole[starts[slot] + step])
    session.truncate(1, 8)
    assert np.array_equal(session.extend(1, IDS[8:12]), whole[8:12])


@each_variant
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_returns_the_same_bits(variant, isa):
    whole = runtime(variant).logits(IDS)
    with kernels.force_isa(isa):
        assert np.array_equal(runtime(variant).logits(IDS), whole)
        assert np.array_equal(fed(runtime(variant), IDS, 5), whole)


@pytest.mark.parametrize(("dtype", "kind"), [(None, "f32"), ("f16", "f16"), ("q8", "q8"), ("q4", "q8"), ("q3", "q8")])
def test_a_tied_table_is_kept_once_and_in_panels(dtype, kind):
    params = runtime("gpt2", dtype).kept()
    assert isinstance(params.wte, Panels)
    assert params.wte.kind == kind
    assert params.w_head is params.wte
    assert isinstance(params.wpe, np.ndarray)
    assert params.wpe.dtype == (np.float16 if dtype == "f16" else np.float32)


def test_a_step_reads_a_tied_head_but_not_the_tables_that_it_looks_up():
    for variant in ("gpt2", "gpt_neox"):
        engine = runtime(variant)
        looked_up = engine.params.wpe if variant == "gpt2" else engine.params.wte
        assert engine.bytes_per_token == engine.n_bytes - looked_up.nbytes


def test_a_step_of_a_local_block_touches_no_key_outside_of_its_window():
    """Keys and values before the panel in which the window begins are NaN: whoever reads them shows it."""
    config = gpt_neo.Config(**COMMON | {"n_ctx": 400}, attention_layers=("local", "local"), window_size=20)
    engine = Runtime(random_params(config, 11), config, threads=1)
    ids = np.random.default_rng(5).integers(0, config.n_vocab, 300)
    session = engine.session(1, 300)
    session.prefill(0, ids[:-1])
    cache, (*before, inside) = session.cache, session.cache.tables[0]  # blocks of 64 keys: the window is 280 .. 299
    cache.k[:, before] = cache.v[:, before] = np.nan
    cache.k[:, inside, :, :1] = cache.v[:, inside, :, :, :16] = np.nan  # a whole panel of 16 keys
    assert np.array_equal(session.decode([0], [int(ids[-1])])[0], engine.logits(ids)[-1])


def test_a_prefix_with_local_layers_is_refused_before_anything_runs():
    engine = runtime("gpt_neo")
    for call in (
        lambda: engine.logits(IDS, prefix_len=4),
        lambda: engine.session(1, 64).prefill(0, IDS, prefix_len=4),
        lambda: verify(engine, engine.kept(), IDS, prefix_len=4),
    ):
        with pytest.raises(GenerationError, match="local attention"):
            call()
    whole = runtime("gpt_neo, global only")
    params, config = random_params(whole.config, 11), whole.config
    assert np.abs(whole.logits(IDS, 4) - forward(params, config, IDS, 4)).max() < 1e-3
