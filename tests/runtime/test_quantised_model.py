"""A model that is quantised while it is loaded: what its matrices become, and that engines agree on their numbers."""

from __future__ import annotations

import numpy as np
import pytest

from refgpt._common.errors import CheckpointError
from refgpt.kernels import store
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.leaves import row_slices, widen
from refgpt.numbers.packing import pack_params
from refgpt.numbers.panels import Panels
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine, kept_params
from refgpt.tracing import verify
from tests.helpers.runtime_models import LONG, PROMPT, SHAPES
from tests.helpers.tiny import random_params

DTYPES = pytest.mark.parametrize("dtype", ["q8", "q4", "q3"])


@DTYPES
@pytest.mark.parametrize("stored", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_both_engines_keep_the_same_bytes(dtype, stored, shape):
    params = random_params(SHAPES[shape], 1, stored)
    packed, kept = pack_params(params, dtype, store), kept_params(params, dtype)
    for (name, ours), (_, theirs) in zip(packed.items(), kept.items(), strict=True):
        if ours.ndim == 1:
            assert np.array_equal(ours, widen(theirs)), name
            continue
        assert isinstance(ours, Panels) and isinstance(theirs, Panels)
        assert ours.kind == theirs.kind == ("q8" if name == "wte" else dtype)
        assert ours.data.tobytes() == theirs.data.tobytes(), name


@DTYPES
def test_a_large_matrix_is_quantised_in_slices(monkeypatch, dtype):
    from refgpt.numbers import leaves as module

    params = random_params(LONG, 2)
    whole = pack_params(params, dtype, store)
    monkeypatch.setattr(module, "SLICE", LONG.d_model * 64)
    assert len(list(row_slices(params.w_head))) > 3
    cut, kept = pack_params(params, dtype, store), kept_params(params, dtype)
    assert cut.w_head.data.tobytes() == whole.w_head.data.tobytes() == kept.w_head.data.tobytes()
    assert cut.wte.data.tobytes() == whole.wte.data.tobytes()


@DTYPES
def test_every_activation_is_within_its_bound_of_the_spec_on_the_kept_weights(dtype):
    engine = Runtime(random_params(LONG, 3), LONG, dtype=dtype, threads=2)
    assert verify(engine, engine.kept(), PROMPT[:40]).first_broken is None


@DTYPES
def test_the_kept_weights_are_near_the_stored_ones(dtype):
    params = random_params(LONG, 4)
    for engine in (Runtime(params, LONG, dtype=dtype), SpecEngine(kept_params(params, dtype), LONG)):
        for (name, stored), (_, kept) in zip(params.items(), engine.kept().items(), strict=True):
            error = np.abs(widen(kept) - stored).max() / np.abs(stored).max()
            assert error == 0 if stored.ndim == 1 else 0 < error < {"q8": 0.01, "q4": 0.2, "q3": 0.4}[dtype], name


def test_panels_of_the_right_kind_are_taken_as_they_are():
    first = pack_params(random_params(LONG, 5), "q4", store)
    for dtype in (None, "q4"):
        again = pack_params(first, dtype, store)
        assert again.wte is first.wte and again.w_head is first.w_head
        assert all(a.w_in is b.w_in for a, b in zip(again.blocks, first.blocks, strict=True))
        assert kept_params(first, dtype).blocks[0].wq is first.blocks[0].wq
    wider = pack_params(first, "f32", store)
    assert np.array_equal(wider.blocks[1].wq.rows(0, 9), first.blocks[1].wq.rows(0, 9))
    assert np.array_equal(wider.wte, widen(first.wte))


@DTYPES
@pytest.mark.parametrize("stored", [np.float32, np.float64, BFLOAT16])
def test_a_weight_beyond_every_scale_is_named(dtype, stored):
    params = random_params(LONG, 6)
    large = params.blocks[1].w_in.astype(np.float32)
    large[70, 3] = 1e30
    bits = (large.view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)
    large = bits if stored == BFLOAT16 else large.astype(stored)
    params = params.map(lambda name, leaf: large if name == "blocks.1.w_in" else leaf)
    for keep in (lambda: pack_params(params, dtype, store), lambda: kept_params(params, dtype)):
        with pytest.raises(CheckpointError, match=rf"blocks\.1\.w_in: holds numbers that {dtype} cannot.*dtype='f32'"):
            keep()


@DTYPES
def test_nan_is_refused_before_it_is_rounded(dtype):
    params = random_params(LONG, 7)
    params.blocks[0].wk[3, 100] = np.nan
    for keep in (lambda: pack_params(params, dtype, store), lambda: kept_params(params, dtype)):
        with pytest.raises(CheckpointError, match=r"blocks\.0\.wk: the weights hold NaN"):
            keep()


@pytest.mark.parametrize(
    ("dtype", "want"), [(None, "f32"), ("f16", "f32"), ("q8", "f16"), ("q4", "f16"), ("q3", "f16")]
)
def test_the_cache_of_a_quantised_model_has_16_bits_unless_asked(dtype, want):
    params = random_params(LONG, 4)
    assert Runtime(params, LONG, dtype=dtype).kv_dtype == want
    assert Runtime(params, LONG, dtype=dtype, kv_dtype="f32").kv_dtype == "f32"
