"""What is particular to one op: groups of panels, widths of heads, masks, rounding to float16, the exponential."""

import re
from dataclasses import replace
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
import pytest

from refgpt import spec
from refgpt.kernels import (
    CHUNK,
    add,
    attention,
    embedding,
    gelu,
    gelu_backward,
    gelu_erf,
    kv_append,
    kv_shapes,
    layer_norm,
    linear,
    pack,
    quantise_rows,
    query_tiles,
    rotary,
    rotary_halves,
    softmax,
)
from refgpt.kernels.calling import even_grain
from refgpt.numbers.cached import rounded_kv, scales_in
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.leaves import widen
from refgpt.numbers.panels import BLOCK_BYTES
from refgpt.runtime.rotation import rotary_tables
from refgpt.spec import gradients
from refgpt.spec.bounds import ops
from tests.helpers.buffers import RUNNABLE, SCALAR, assert_same_bits, numbers, stored
from tests.helpers.cache_oracles import KV, attention_case, filled_cache, in_blocks, put_records
from tests.helpers.oracles import hold_to_scalar, hold_to_spec, linear_case, linear_quantised_case
from tests.helpers.quantised import decoded_rows, quantised_panels


def each(*prefixes: str):
    found = [kernel for kernel in RUNNABLE if kernel.op.startswith(prefixes)]
    rows = [k for k in found if k.op in prefixes or not ("backward" in k.op or k.op.endswith("_dots"))]
    return pytest.mark.parametrize("kernel", rows, ids=str)


def dtype_of(kernel) -> str:
    return kernel.op.removesuffix("_dots").rpartition("_")[2]


def compute_of(kernel) -> str:
    return "bf16" if kernel.op.endswith("_dots") else "f32"


# ---- linear ----------------------------------------------------------------------------------------------------------


@each("linear_q")
@pytest.mark.parametrize("n_out", [1, 15, 16, 17, 33, 100])
def test_linear_of_few_bits_in_every_group_of_rows(kernel, n_out):
    rng = np.random.default_rng(n_out)
    for n_rows in (1, 4, 5, 9, 13, 16, 24, 25, 40, 49):
        case = linear_quantised_case(dtype_of(kernel), 70, n_rows, "ordinary", rng, n_out)
        hold_to_spec(case, kernel)
        hold_to_scalar(case, kernel)


@each("linear_", "linear_bf16_dots")
def test_linear_of_more_than_fits_into_the_caches_at_once(kernel):
    """Several blocks of rows, of panels and of depth in one call; of quantised weights more than 320 KiB."""
    kind, rng = dtype_of(kernel), np.random.default_rng(5)
    if kind in BLOCK_BYTES:
        case = linear_quantised_case(kind, 4096, 100, "ordinary", rng, 200)
    else:
        case = linear_case(kind, 300, 70, "ordinary", rng, 400, compute=compute_of(kernel))
    hold_to_spec(case, kernel)
    hold_to_scalar(case, kernel)


@each("linear_q")
@pytest.mark.parametrize("n_rows", [1, 20])
def test_the_largest_integers_do_not_overflow(kernel, n_rows):
    """Rows of +-127 and weights of the largest size: what 16 bits could not hold without care."""
    least, most = {"q8": (-128, 127), "q4": (-8, 7), "q3": (-4, 3)}[dtype_of(kernel)]
    for weight in (least, most):
        for sign in (1, -1):
            w = quantised_panels(dtype_of(kernel), np.full((20, 96), weight), np.ones((20, 3), np.float16))
            x = np.full((n_rows, 96), 127 * sign, np.float32)
            assert (linear(x, w, kernel=kernel) == 96 * 127 * sign * weight).all()


@each("linear_q")
@pytest.mark.parametrize("n_rows", [1, 20])
def test_blocks_are_added_one_by_one_to_a_total_that_starts_at_the_bias(kernel, n_rows):
    w = quantised_panels(dtype_of(kernel), np.ones((20, 320), int), np.ones((20, 10), np.float16))
    x = np.zeros((n_rows, 320), np.float32)
    x[:, ::32] = 1  # ten blocks of 1, each too small for 2^24
    assert (linear(x, w, np.full(20, 2.0**24, np.float32), kernel=kernel) == 2.0**24).all()
    assert (linear(x, w, np.zeros(20, np.float32), kernel=kernel) == 10).all()


@each("quantise_rows")
def test_rows_are_rounded_to_the_nearest_even_step(kernel):
    x = np.zeros((3, 64), np.float32)
    x[1, :6] = [127, 0.5, 1.5, -2.5, -0.49, 63.51]
    x[2, 32:34] = [-254, 3]
    integers, scales, sums = decoded_rows(quantise_rows(x, kernel=kernel), 3, 64)
    assert scales.tolist() == [[0, 0], [1, 0], [0, 2]]
    assert integers[1, :6].tolist() == [127, 0, 2, -2, 0, 64]
    assert integers[2, 32:34].tolist() == [-127, 2]
    assert sums[1, 0] == -8 * 191
    assert not integers[0].any()


@each("quantise_rows")
@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_numbers_stays_so(kernel, strange):
    x = np.ones((2, 70), np.float32)
    x[1, 35] = strange
    integers, scales, _ = decoded_rows(quantise_rows(x, kernel=kernel), 2, 70)
    assert np.isnan(scales).tolist() == [[False] * 3, [False, True, False]]
    assert (np.abs(integers.astype(int)) <= 127).all()
    w = quantised_panels("q8", np.ones((16, 70), int), np.ones((16, 3), np.float16))
    assert np.isnan(linear(x, w)).tolist() == [[False] * 16, [True] * 16]


@each("linear_q8")
def test_linear_of_more_panels_than_rows_are_unpacked_for_at_once(kernel):
    hold_to_scalar(linear_quantised_case("q8", 40, 130, "ordinary", np.random.default_rng(3), 1100), kernel)


@pytest.mark.parametrize(("n_items", "threads"), [*product((16, 48, 50, 256, 1024), (1, 2, 3, 4, 16, 48, 64))])
@pytest.mark.parametrize(("group", "least"), [(3, 3), (16, 1), (16, 5)])
def test_pieces_are_shared_evenly(n_items, threads, group, least):
    grain = even_grain(n_items, group, least, threads)
    rounds = ceil(ceil(n_items / grain) / threads)  # of pieces, if all threads are equally fast
    assert grain >= min(least, n_items)
    assert rounds * grain <= max(least, 1.3 * n_items / threads + 1)


@each("linear_f", "linear_b", "linear_bf16_dots")
@pytest.mark.parametrize("n_out", [1, 15, 16, 17, 32, 40, 48, 60, 64, 72, 80, 90])
def test_linear_of_every_group_of_panels(kernel, n_out):
    rng = np.random.default_rng(n_out)
    for n_rows in (1, 2, 8, 9, 20):
        bias, compute = n_rows != 2, compute_of(kernel)
        case = linear_case(dtype_of(kernel), 37, n_rows, "ordinary", rng, n_out, bias, compute)
        hold_to_spec(case, kernel)
        hold_to_scalar(case, kernel)


@each("linear_f", "linear_b", "linear_bf16_dots")
@pytest.mark.parametrize("n_rows", [1, 40])
def test_linear_on_several_threads(kernel, n_rows):
    rng = np.random.default_rng(5)
    x, w = numbers(rng, "ordinary", n_rows, 700), pack(stored(rng, "ordinary", dtype_of(kernel), 1300, 700))
    w = replace(w, compute=compute_of(kernel))
    want = linear(x, w, threads=1, kernel=kernel)
    for threads in (2, 5, None):  # a matrix large enough that the binding deals it out
        assert_same_bits(linear(x, w, threads=threads, kernel=kernel), want)


@each("linear_f", "linear_b")
@pytest.mark.parametrize("n_rows", [1, 20])
def test_one_product_of_4096_cannot_be_lost_within_the_bound(kernel, n_rows):
    rng = np.random.default_rng(6)
    x, w = numbers(rng, "ordinary", n_rows, 4096), stored(rng, "ordinary", dtype_of(kernel), 20, 4096)
    want, bound = spec.linear(x.astype(np.float64), w), ops.linear_bound(x, w, chunk=CHUNK)
    assert (np.abs(linear(x, pack(w), kernel=kernel) - want) <= bound).all()
    w[:, 2049] = np.zeros(1, w.dtype)
    lost = np.abs(linear(x, pack(w), kernel=kernel) - want) > bound
    assert lost.mean() > 0.9  # the other products happen to be next to nothing


ONE = {"f32": np.float32(1), "f16": np.float16(1), "bf16": np.array(0x3F80, np.uint16).view(BFLOAT16)}


@each("linear_f", "linear_b")
@pytest.mark.parametrize("n_rows", [1, 20])
def test_inner_sums_are_cut_where_the_header_says(kernel, n_rows):
    header = (Path(__file__).parents[2] / "csrc" / "refgpt_kernels.h").read_text(encoding="utf-8")
    chunk, n_in = int(re.search(r"chunks of (\d+) from index 0", header).group(1)), 384
    x = np.ones((n_rows, n_in), np.float32)
    x[:, 0] = 2.0**24  # swallows the ones that are added to it one at a time: the others of its chunk
    y = linear(x, pack(np.full((40, n_in), ONE[dtype_of(kernel)])), kernel=kernel)
    assert (y == 2.0**24 + n_in - chunk).all()


# ---- attention -------------------------------------------------------------------------------------------------------


@each("attention")
@pytest.mark.parametrize("d_head", [1, 2, 7, 15, 16, 17, 48, 64, 80, 129, 256])
def test_attention_of_every_width_of_head(kernel, d_head):
    rng = np.random.default_rng(d_head)
    for n_keys, n_rows in ((20, 1), (70, 11)):
        case = attention_case(dtype_of(kernel), n_keys, n_rows, "ordinary", rng, d_head=d_head)
        hold_to_spec(case, kernel)
        hold_to_scalar(case, kernel)


def one_sequence(seed, n_keys, n_rows, n_head=2, d_head=24):
    rng = np.random.default_rng(seed)
    q = numbers(rng, "ordinary", n_rows, n_head, d_head)
    k, v = (numbers(rng, "ordinary", 1, n_keys, n_head, d_head) for _ in range(2))
    return q, k, v


def attend(kernel, q, k, v, n_visible, capacity=96):
    """z of rows that all look into sequence 0."""
    caches = filled_cache(k, v, capacity, dtype_of(kernel))
    return attention(q, *caches, query_tiles(np.zeros(len(q), np.int64)), n_visible, threads=1, kernel=kernel)


@each("attention")
@pytest.mark.parametrize("strange", [np.nan, np.inf, 1e30])
def test_a_key_that_a_row_does_not_see_cannot_touch_it(kernel, strange):
    q, k, v = one_sequence(1, 70, 9)
    n_visible = np.arange(60, 69)  # causal rows: the later ones of a tile see keys that the first does not
    want = attend(kernel, q, k, v, n_visible)
    for cache in (k, v):
        spoilt = [x.copy() if x is cache else x for x in (k, v)]
        spoilt[0 if cache is k else 1][:, 66:] = strange
        got = attend(kernel, q, *spoilt, n_visible)
        assert_same_bits(got[:7], want[:7])  # of these none sees key 66
        assert not np.array_equal(got[7], want[7])


@each("attention")
def test_keys_beyond_the_visible_ones_change_no_bit(kernel):
    q, k, v = one_sequence(2, 96, 8)
    n_visible = np.full(8, 33)
    want = attend(kernel, q, k[:, :33], v[:, :33], n_visible)
    assert_same_bits(attend(kernel, q, k, v, n_visible), want)
    n_visible[7] = 96  # a row of the same tile that sees them all
    assert_same_bits(attend(kernel, q, k, v, n_visible)[:7], want[:7])
    assert_same_bits(attend(kernel, q, k, v, n_visible, capacity=200)[:7], want[:7])


@each("attention")
def test_one_visible_key_gives_its_value(kernel):
    q, k, v = one_sequence(3, 20, 5)
    z = attend(kernel, q, k, v, np.ones(5, np.int64))
    assert (z == rounded_kv(v[0, 0], dtype_of(kernel))).all()


@each("attention_q8")
@pytest.mark.parametrize(("n_keys", "n_rows", "d_head"), [(97, 1, 80), (97, 9, 24), (70, 1, 300), (64, 3, 5)])
@pytest.mark.parametrize("local", [False, True])
def test_attention_over_8_bits_has_the_bits_of_attention_over_the_numbers_that_they_are(
    kernel, n_keys, n_rows, d_head, local
):
    q, k, v = one_sequence(4, n_keys, n_rows, d_head=d_head)
    n_visible = np.arange(n_keys - n_rows, n_keys) + 1
    how = {"first_visible": np.maximum(n_visible - 41, 0) if local else None, "threads": 1}
    wide = [rounded_kv(x, "q8") for x in (k, v)]
    tiles = query_tiles(np.zeros(n_rows, np.int64))
    got = attention(q, *filled_cache(k, v, 112, "q8"), tiles, n_visible, kernel=kernel, **how)
    want = attention(q, *filled_cache(*wide, 112, "f32"), tiles, n_visible, kernel=SCALAR["attention_f32"], **how)
    assert_same_bits(got, want)


@each("attention")
@pytest.mark.parametrize("d_head", [24, 300])
@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("block", [32, 64])
def test_no_bit_of_attention_depends_on_where_blocks_lie(kernel, block, local, d_head):
    """Two sequences that begin alike: each by itself in one block, then in many, of which they share some."""
    rng, n_rows, n_keys = np.random.default_rng(block), 11, 4 * block
    q = numbers(rng, "ordinary", 2 * n_rows, 2, d_head)
    k, v = (numbers(rng, "ordinary", 2, n_keys, 2, d_head) for _ in range(2))
    for x in (k, v):
        x[1, : 2 * block] = x[0, : 2 * block]
    n_visible = np.concatenate([np.arange(n_rows) + 1, np.arange(n_keys - n_rows, n_keys) + 1])
    how = {"first_visible": np.maximum(n_visible - block - 7, 0) if local else None, "kernel": kernel, "threads": 1}
    whole = filled_cache(k, v, n_keys, dtype_of(kernel))
    *cut, tables = in_blocks(*whole, block, rng)
    for x in cut:
        x[tables[1, :2]] = 0x7E if x.dtype == np.int8 else np.nan
    tables[1, :2] = tables[0, :2]
    for slots in (np.repeat([0, 1], n_rows), np.repeat([1, 0], n_rows)):
        want = attention(q, *whole, query_tiles(slots), n_visible, **how)
        assert np.isfinite(want).all()
        assert_same_bits(attention(q, *cut, query_tiles(slots), n_visible, tables=tables, **how), want)


# ---- the cache -------------------------------------------------------------------------------------------------------


def edges_of_float16() -> np.ndarray:
    """float32 numbers at, halfway between and just beside float16 numbers, from subnormal to beyond the largest."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)  # every finite one from 0 up
    between = np.append((halves[:-1] + halves[1:]) / 2, np.float32(65520))  # ties; the last rounds to infinity
    beside = [np.nextafter(x, np.float32(to)) for x in (halves, between) for to in (-1, np.inf)]
    small = np.array([1e-45, 1e-38, 2.0**-25, 2.0**-26, 1e30, 3.4e38, np.inf], np.float32)
    both = np.concatenate([halves, between, *beside, small])
    return np.concatenate([both, -both])


@each("kv_append_f16")
def test_keys_and_values_are_rounded_to_float16_as_numpy_rounds_and_nan_where_it_overflows(kernel):
    x = edges_of_float16()
    d_head = 1024
    x = np.resize(x, (-(-len(x) // d_head), 1, d_head))
    n = len(x)
    shapes = kv_shapes(1, d_head, n)
    k_cache, v_cache = (np.full((1, *shape), np.nan, np.float16) for shape in shapes)
    at = np.arange(n)
    kv_append(x, x, k_cache, v_cache, at, np.zeros(n, np.int64), kernel=kernel)
    with np.errstate(over="ignore"):
        want = x[:, 0].astype(np.float16)
    overflowed = np.isinf(want)
    got_k, got_v = k_cache[0, 0, at // 16, :, at % 16], v_cache[0, 0, :, at].reshape(n, d_head)
    assert overflowed.any()
    assert np.isnan(got_k[overflowed]).all() and np.isnan(got_v[overflowed]).all()
    got_k, got_v, want = (np.where(overflowed, np.float16(0), values) for values in (got_k, got_v, want))
    assert_same_bits(got_k, want)
    assert_same_bits(got_v, want)
    assert ((want != 0) & (np.abs(want) < 2.0**-14)).any()


@each("layer_norm")
@pytest.mark.parametrize("largest", [2e19, 3e38, -3e38])
@pytest.mark.parametrize("n", [7, 16, 75])
def test_a_variance_that_overflows_is_not_passed_over(kernel, largest, n):
    x = np.stack([np.linspace(-1, 1, n), np.linspace(-1, 1, n)]).astype(np.float32)
    x[0, n // 2] = largest
    y = layer_norm(x, np.ones(n, np.float32), np.ones(n, np.float32), 1e-5, kernel=kernel)
    with np.errstate(over="ignore", invalid="ignore"):
        want = spec.layer_norm(x, np.ones(n, np.float32), np.ones(n, np.float32), 1e-5)
    assert np.isnan(want[0]).all() and np.isnan(y[0]).all()
    assert np.isfinite(want[1]).all() and np.isfinite(y[1]).all()


@each("kv_append_q8")
def test_keys_and_values_of_8_bits_are_rounded_as_numpy_rounds(kernel):
    """Blocks around the scales where float16 is subnormal, zero or infinite, ties of integers, and NaN."""
    rng = np.random.default_rng(12)
    largest = np.concatenate([127 * np.float32(2.0) ** np.arange(-30, 18), [65504 * 127, 65520 * 127, 3e38, np.inf]])
    x = rng.uniform(-1, 1, (len(largest), 1, 32)).astype(np.float32) * largest[:, None, None].astype(np.float32)
    x[:, 0, 5] = largest
    x[:24, 0, 6:] = largest[:24, None] / 127 * (np.arange(26) + 0.5)
    x[3, 0, 7], x[4, 0, 8] = np.nan, -0.0
    n, shapes = len(x), kv_shapes(1, 32, len(x), "q8")
    got, want = ([np.zeros((1, *shape), np.int8) for shape in shapes] for _ in range(2))
    at, slots = np.arange(n), np.zeros(n, np.int64)
    with np.errstate(invalid="ignore"):
        other = np.ascontiguousarray(x[::-1])
    kv_append(x, other, *got, at, slots, kernel=kernel)
    put_records(x, other, *want, at, slots)
    for found, expected in zip(got, want, strict=True):
        assert_same_bits(found, expected)
    scales = scales_in(got[0], 32)[0, 0, at // 16, 0, at % 16]
    assert (scales == 0).any() and np.isnan(scales[[3, -1, -2, -3]]).all() and np.isfinite(scales[-4])


@each("kv_append_f")
def test_nan_stays_nan_in_the_cache(kernel):
    k_cache, v_cache = (np.zeros((1, *shape), KV[dtype_of(kernel)]) for shape in kv_shapes(1, 3, 16))
    x = np.array([[[np.nan, 1, -np.nan]]], np.float32)
    kv_append(x, x, k_cache, v_cache, np.array([5]), np.array([0]), kernel=kernel)
    assert np.array_equal(np.isnan(k_cache[0, 0, 0, :, 5]), [True, False, True])
    assert np.array_equal(np.isnan(v_cache[0, 0, 0, 5, :4]), [True, False, True, False])


# ---- the exponential, through softmax and gelu -----------------------------------------------------------------------

BELOW_ZERO = [np.linspace(-90, 0, 40001), -np.geomspace(1e-30, 1e30, 2000), [-88, -87]]
FROM_ZERO_DOWN = np.concatenate([*BELOW_ZERO, np.nextafter(np.float32(-87), np.float32([-100, 0]))]).astype(np.float32)


@each("softmax")
def test_softmax_over_the_whole_range_of_the_exponential(kernel):
    pairs = np.stack([np.zeros_like(FROM_ZERO_DOWN), FROM_ZERO_DOWN], axis=1)  # the largest is exp(0)
    got = softmax(pairs, kernel=kernel)
    assert_same_bits(got, softmax(pairs, kernel=SCALAR["softmax"]))
    want, bound = spec.softmax(pairs.astype(np.float64)), ops.softmax_bound(pairs)
    assert (np.abs(got - want) <= bound).all()
    # Far below the largest the sum is 1 and the small one is the exponential itself, to about an ulp.
    x = FROM_ZERO_DOWN.astype(np.float64)
    alone = (x < -20) & (x >= -87)
    assert (np.abs(got[alone, 1] / np.exp(x[alone]) - 1) <= 2.5 * ops.U).all()
    assert (got[x < -87, 1] == 0).all()


@each("softmax")
def test_softmax_of_minus_infinity_is_zero_and_of_nan_is_nan(kernel):
    x = np.full((3, 20), -np.inf, np.float32)
    x[0, [3, 17]] = 2.0
    x[1] = 0.5
    x[1, 18] = np.nan
    x[2] = np.float32(3.4e38)
    y = softmax(x, kernel=kernel)
    assert (y[0, [3, 17]] == 0.5).all()
    assert np.delete(y[0], [3, 17]).tolist() == [0] * 18
    assert np.isnan(y[1]).all()
    assert (np.abs(y[2] - 0.05) <= 0.05 * ops.gamma(23)).all()


@pytest.mark.parametrize("kernel", [row for row in RUNNABLE if row.op in ("gelu", "gelu_erf")], ids=str)
def test_both_forms_of_gelu_over_a_wide_range(kernel):
    call, formula, bound = {
        "gelu": (gelu, spec.gelu, ops.gelu_bound),
        "gelu_erf": (gelu_erf, spec.gelu_erf, ops.gelu_erf_bound),
    }[kernel.op]
    x = np.concatenate(
        [np.linspace(-15, 15, 60001), np.geomspace(1e-45, 1e18, 3000), -np.geomspace(1e-45, 1e18, 3000), [0.0, -0.0]]
    ).astype(np.float32)[None]
    got = call(x, kernel=kernel)
    assert_same_bits(got, call(x, kernel=SCALAR[kernel.op]))
    assert (np.abs(got - formula(x.astype(np.float64))) <= bound(x)).all()
    assert np.signbit(got[0, -2:]).tolist() == [False, True]
    ends = call(np.array([[np.inf, -np.inf, np.nan]], np.float32), kernel=kernel)[0]
    assert ends[0] == np.inf
    assert np.isnan(ends[2])


@each("gelu_backward")
def test_the_slope_of_gelu_over_a_wide_range(kernel):
    x = np.concatenate([np.linspace(-20, 20, 8001), 10.0 ** np.arange(-40, 39)]).astype(np.float32)
    x = np.concatenate([x, -x])[None]
    dy = np.ones_like(x)
    got = gelu_backward(x, dy, kernel=kernel)
    assert_same_bits(got, gelu_backward(x, dy, kernel=SCALAR["gelu_backward"]))
    want = gradients.gelu_backward(dy.astype(np.float64), x.astype(np.float64))
    assert (np.abs(got - want) <= ops.gelu_backward_bound(x, dy)).all()
    ends = gelu_backward(np.array([[np.inf, -np.inf, np.nan]], np.float32), np.ones((1, 3), np.float32), kernel=kernel)
    assert ends[0, 0] == 1 and abs(ends[0, 1]) < 1e-30 and np.isnan(ends[0, 2])


# ---- in place --------------------------------------------------------------------------------------------------------

IN_PLACE = {
    "softmax": softmax,
    "gelu": gelu,
    "gelu_backward": lambda x, **o: gelu_backward(x, x[::-1].copy(), **o),
    "gelu_erf": gelu_erf,
    "add": lambda x, **o: add(x, x[::-1].copy(), **o),
    "layer_norm": lambda x, **o: layer_norm(x, x[0].copy(), x[1].copy(), 1e-5, **o),
    "rotary_halves": lambda x, **o: rotary_halves(
        x.reshape(5, 3, 23), *rotary_tables(18, 9, halves=True), np.arange(5), **o
    ),
    "rotary": lambda x, **o: rotary(x.reshape(5, 3, 23), *rotary_tables(18, 9), np.arange(5), **o),
}


@pytest.mark.parametrize("op", IN_PLACE)
def test_the_output_may_be_the_input(op):
    for kernel in (k for k in RUNNABLE if k.op == op):
        x = numbers(np.random.default_rng(7), "ordinary", 5, 69)
        want = IN_PLACE[op](x, kernel=kernel)
        out = x.reshape(want.shape)
        assert IN_PLACE[op](x, out=out, kernel=kernel) is out
        assert_same_bits(out, want)


# ---- packing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_matrix_may_lie_at_an_odd_address(dtype):
    w = np.arange(20 * 19, dtype=dtype).reshape(20, 19)
    odd = np.frombuffer(b"." + w.tobytes(), dtype, offset=1).reshape(w.shape)
    assert not odd.flags.aligned
    for kernel in (k for k in RUNNABLE if k.op == f"pack_b{w.itemsize}"):
        assert_same_bits(pack(odd, kernel=kernel).data, pack(w, kernel=kernel).data)


@each("embedding_f", "embedding_b")
def test_every_sixteen_bit_pattern_is_widened_exactly(kernel):
    dtype = dtype_of(kernel)
    if dtype == "f32":
        table = np.random.default_rng(8).integers(0, 1 << 32, (16, 4096), np.uint32).view(np.float32)
    else:
        bits = np.arange(1 << 16, dtype=np.uint16).reshape(16, 4096)
        table = bits.view(np.float16) if dtype == "f16" else bits.view([("bfloat16", "<u2")])
    got, want = embedding(table, np.arange(16), kernel=kernel), widen(table)
    nan = np.isnan(want)
    assert np.array_equal(np.isnan(got), nan)
    assert_same_bits(got[~nan], want[~nan])
