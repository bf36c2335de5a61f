"""The bounds: float32 arithmetic stays inside, in any order and far from comfort; a small fault breaks out."""

import math

import numpy as np
import pytest

from refgpt._common.errors import RefgptError
from refgpt.numbers.cached import rounded_kv
from refgpt.numbers.dtypes import KV_DTYPES
from refgpt.spec import (
    Recorder,
    causal_mask,
    forward,
    gelu,
    layer_norm,
    linear,
    prefix_mask,
    rotate_pairs,
    softmax,
    tap_names,
)
from refgpt.spec.bounds import ops as b
from refgpt.spec.bounds import tap_bound
from tests.helpers.tiny import random_params, tiny_config

RNG = np.random.default_rng(11)
F32 = np.float32


def normal(*shape):
    return RNG.standard_normal(shape).astype(F32)


def wide(*arrays):
    return [array.astype(np.float64) for array in arrays]


def inside(got, want, bound):
    """Share of the bound that is used; NaN anywhere makes it NaN, which is no less than 1."""
    assert got.dtype == F32
    assert not (bound < 0).any()
    off = np.abs(got.astype(np.float64) - want)
    return np.max(np.where(off == 0, 0, off / np.where(bound == 0, TINIEST, bound)), initial=0.0)


TINIEST = np.finfo(np.float64).tiny


# ---- linear ----------------------------------------------------------------------------------------------------------


def sum_in_order(terms):
    total = np.zeros(terms.shape[:-1], F32)
    for n in range(terms.shape[-1]):
        total = total + terms[..., n]
    return total


def sum_in_pairs(terms):
    while terms.shape[-1] > 1:
        odd = terms[..., -1:] if terms.shape[-1] % 2 else terms[..., :0]
        even = terms.shape[-1] // 2 * 2
        terms = np.concatenate([terms[..., 0:even:2] + terms[..., 1:even:2], odd], axis=-1)
    return terms[..., 0]


ORDERS = {
    "in order": sum_in_order,
    "backwards": lambda terms: sum_in_order(terms[..., ::-1]),
    "in pairs": sum_in_pairs,
    "large first": lambda terms: sum_in_order(np.sort(terms, axis=-1)[..., ::-1]),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("n_in", [1, 2, 3, 17, 64, 1000])
def test_linear_in_any_order(order, n_in):
    x, w, bias = normal(3, n_in), normal(5, n_in), normal(5)
    got = ORDERS[order](x[:, None, :] * w) + bias
    assert inside(got, linear(*wide(x, w, bias)), b.linear_bound(x, w, bias)) <= 1


def test_linear_where_products_underflow():
    x, w = normal(3, 50) * F32(1e-22), normal(4, 50) * F32(1e-22)
    assert inside(x @ w.T, linear(*wide(x, w)), b.linear_bound(x, w)) <= 1


def test_linear_of_widened_halves():
    x, w = normal(3, 50), normal(4, 50).astype(np.float16)
    assert inside(linear(x, w), linear(x.astype(np.float64), w), b.linear_bound(x, w)) <= 1


@pytest.mark.parametrize("n_in", [1, 64, 1000])
def test_linear_notices_a_lost_term_a_sign_and_a_bias(n_in):
    x, w, bias = normal(3, n_in), normal(5, n_in), normal(5)
    want, bound = linear(*wide(x, w, bias)), b.linear_bound(x, w, bias)
    flipped = w.copy()
    flipped[:, 0] *= -1
    for fault in (x[:, 1:] @ w[:, 1:].T + bias, x @ flipped.T + bias, x @ w.T, x @ w.T - bias):
        assert inside(fault, want, bound) > 1


# ---- layer_norm ------------------------------------------------------------------------------------------------------

ROWS = {
    "ordinary": normal(6, 48),
    "wide": normal(2, 4096) * F32(30),
    "far from zero": 1000 + normal(6, 48),
    "all but constant": 1e4 + F32(1e-2) * normal(6, 48),
    "constant": np.full((1, 33), 0.1, F32),
    "zero": np.zeros((1, 8), F32),
    "one outlier": np.concatenate([normal(4, 40), np.full((4, 1), 3e4, F32)], axis=1),
    "a mean whose error swamps the variance": np.array([[*[16000.77] * 4000, 16026.0]], F32),
    "tiny": normal(3, 16) * F32(1e-20),
    "one wide": normal(5, 1),
}


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("reverse", [False, True])
def test_layer_norm(rows, reverse):
    x = ROWS[rows]
    w, bias = normal(x.shape[1]), normal(x.shape[1])
    step = -1 if reverse else 1
    mean = sum_in_order(x[:, ::step])[:, None] * F32(1 / x.shape[1])
    centred = x - mean
    variance = sum_in_order((centred * centred)[:, ::step])[:, None] * F32(1 / x.shape[1])
    got = centred * (1 / np.sqrt(variance + F32(1e-5))) * w + bias
    want = layer_norm(*wide(x, w, bias), 1e-5)
    assert inside(got, want, b.layer_norm_bound(x, w, bias, 1e-5)) <= 1


def test_layer_norm_notices_another_variance_another_epsilon_and_a_lost_shift():
    x, w, bias = normal(4, 48), normal(48), normal(48)
    want, bound = layer_norm(*wide(x, w, bias), 1e-5), b.layer_norm_bound(x, w, bias, 1e-5)
    unbiased = (x - x.mean(1, keepdims=True)) / x.std(1, ddof=1, keepdims=True) * w + bias
    root_mean_square = x / np.sqrt((x * x).mean(1, keepdims=True)) * w + bias
    other_eps = layer_norm(x, w, bias, 2e-5)
    for fault in (unbiased, root_mean_square, other_eps, layer_norm(x, w, 0 * bias, 1e-5)):
        assert inside(fault, want, bound) > 1


# ---- softmax ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [0, 1, 10, 50, 200])
@pytest.mark.parametrize("n", [1, 2, 31, 700])
def test_softmax(spread, n):
    scores = normal(4, n) * F32(spread)
    assert inside(softmax(scores), softmax(scores.astype(np.float64)), b.softmax_bound(scores)) <= 1


def test_softmax_of_many_with_the_sum_in_order():
    scores = np.full((1, 20000), -0.1, F32)  # equal terms, so that the sum's roundings add up
    scores[0, 0] = 0
    powers = np.exp(scores)
    got, want = powers / sum_in_order(powers)[:, None], softmax(scores.astype(np.float64))
    assert np.abs(got / want - 1).max() > 5 * b.EXP_ERROR
    assert inside(got, want, b.softmax_bound(scores)) <= 1


def test_softmax_asks_for_exact_zeros_where_masked():
    scores = normal(4, 9)
    scores[:, 5:] = -np.inf
    want, bound = softmax(scores.astype(np.float64)), b.softmax_bound(scores)
    assert (bound[:, 5:] == 0).all()
    assert (bound[:, :5] > 0).all()
    assert inside(softmax(scores), want, bound) <= 1
    leaking = np.maximum(softmax(scores), F32(1e-12))
    assert inside(leaking, want, bound) > 1


def test_softmax_notices_a_lost_term_and_a_coarse_exponential():
    scores = normal(4, 31)
    want, bound = softmax(scores.astype(np.float64)), b.softmax_bound(scores)
    powers = np.exp(scores)
    without_last = powers / powers[:, :-1].sum(1, keepdims=True)
    coarse = np.exp(scores) * (1 + F32(1e-5) * np.sign(normal(4, 31)))
    for fault in (without_last, coarse / coarse.sum(1, keepdims=True)):
        assert inside(fault, want, bound) > 1


# ---- gelu ------------------------------------------------------------------------------------------------------------


def gelu_in_float32(x, most=np.inf):
    """``most``: where the exponential clamps its argument."""
    with np.errstate(over="ignore"):
        minus_2u = x * (F32(-2 * math.sqrt(2 / math.pi)) * (F32(0.044715) * x * x + F32(1)))
        return x / (1 + np.exp(np.minimum(minus_2u, F32(most))))


GELU_INPUTS = np.concatenate(
    [np.linspace(-12, 12, 20001), np.geomspace(1e-44, 1e15, 500), -np.geomspace(1e-44, 1e15, 500), [0.0]]
).astype(F32)


def test_gelu():
    got, want, bound = gelu_in_float32(GELU_INPUTS), gelu(GELU_INPUTS.astype(np.float64)), b.gelu_bound(GELU_INPUTS)
    assert inside(got, want, bound) <= 1
    assert (bound <= 5e-7 * np.abs(GELU_INPUTS.astype(np.float64)) + b.TINY).all()


def test_gelu_with_an_exponential_that_clamps():
    x = np.linspace(-40, -5, 1000).astype(F32)
    assert inside(gelu_in_float32(x, most=87), gelu(x.astype(np.float64)), b.gelu_bound(x)) <= 1


def test_gelu_notices_the_other_forms():
    x = np.linspace(-4, 4, 100).astype(F32)
    want, bound = gelu(x.astype(np.float64)), b.gelu_bound(x)
    erf_form = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.astype(float)], F32)
    quick_form = x / (1 + np.exp(F32(-1.702) * x))
    for fault in (erf_form, quick_form, np.maximum(x, 0), gelu_in_float32(x) * F32(1 + 1e-5)):
        assert inside(fault, want, bound) > 1


# ---- rotary and attention --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d_rotary", [2, 6, 16])
def test_rotary(d_rotary):
    x, positions = normal(5, 3, 16), np.array([0, 1, 11, 710, 2047])
    want, bound = rotate_pairs(x.astype(np.float64), positions, d_rotary), b.rotary_bound(x, positions, d_rotary)
    assert inside(rotate_pairs(x, positions, d_rotary), want, bound) <= 1
    assert (bound[..., d_rotary:] == 0).all()
    assert (bound[..., :d_rotary] > 0).all()
    angles = (positions.astype(F32)[:, None] * F32(10000) ** (-np.arange(0, d_rotary, 2, dtype=F32) / d_rotary)).astype(
        F32
    )
    halves = np.concatenate([x[..., 0:d_rotary:2], x[..., 1:d_rotary:2], x[..., d_rotary:]], axis=-1)
    backwards = rotate_pairs(x, -positions, d_rotary)
    faults = [backwards, rotate_pairs(x, positions + 1, d_rotary)]
    if d_rotary > 2:  # one pair has no halves, and an exact angle
        faults += [rotate_pairs(halves, positions, d_rotary), turn(x, angles)]
    for fault in faults:
        assert inside(fault, want, bound) > 1


def turn(x, angles):
    """``rotate_pairs`` with angles that float32 has rounded."""
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    end = 2 * angles.shape[1]
    turned = x.copy()
    turned[..., 0:end:2] = x[..., 0:end:2] * cos - x[..., 1:end:2] * sin
    turned[..., 1:end:2] = x[..., 1:end:2] * cos + x[..., 0:end:2] * sin
    return turned


def pattern_of(q, k, mask):
    scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(q.shape[-1])
    return softmax(np.where(mask, scores, -np.inf).astype(q.dtype))


def mix(pattern, v):
    return np.einsum("hts,shd->thd", pattern, v)


@pytest.mark.parametrize("sharpness", [1, 5])
@pytest.mark.parametrize("mask", [causal_mask(20), prefix_mask(20, 9)], ids=["causal", "prefix"])
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_attention(sharpness, mask, kv_dtype):
    q, k, v = normal(20, 3, 8) * F32(sharpness), normal(20, 3, 8), normal(20, 3, 8)
    v[:, :, 0] *= F32(1e-7)  # subnormal in float16
    kept = [rounded_kv(x, kv_dtype) for x in (k, v)]
    got = pattern_of(q, kept[0], mask)
    assert inside(got, pattern_of(*wide(q, k), mask), b.pattern_bound(q, k, mask, kv_dtype)) <= 1
    assert inside(mix(got, kept[1]), mix(*wide(got, v)), b.z_bound(got, v, kv_dtype)) <= 1
    exact = mix(pattern_of(*wide(q, k), mask), v.astype(np.float64))
    assert inside(mix(got, kept[1]), exact, b.attention_bound(q, k, v, mask, kv_dtype)) <= 1


def test_pattern_of_long_rows_with_the_products_in_order():
    q, k, mask = np.abs(normal(9, 2, 300)) * F32(5), np.abs(normal(9, 2, 300)), causal_mask(9)
    products = sum_in_order(np.einsum("thd,shd->htsd", q, k)) / F32(math.sqrt(300))
    got = softmax(np.where(mask, products, F32(-np.inf)))
    assert inside(got, pattern_of(*wide(q, k), mask), b.pattern_bound(q, k, mask)) <= 1


def test_attention_notices_faults():
    q, k, v = normal(20, 3, 8), normal(20, 3, 8), normal(20, 3, 8)
    mask = causal_mask(20)
    want, bound = pattern_of(*wide(q, k), mask), b.pattern_bound(q, k, mask)
    rounded = k.astype(np.float16).astype(F32)
    unscaled = pattern_of(q * F32(math.sqrt(8)), k, mask)
    for fault in (pattern_of(q, k, prefix_mask(20, 2)), unscaled, pattern_of(q, rounded, mask), pattern_of(k, q, mask)):
        assert inside(fault, want, bound) > 1
    pattern = want.astype(F32)
    exact = mix(*wide(pattern, v))
    without_last_key = mix(pattern[:, :, :-1], v[:-1])
    for bound in (b.z_bound(pattern, v), b.attention_bound(q, k, v, mask)):
        assert inside(mix(pattern, v), exact, bound) <= 1
        assert inside(without_last_key, exact, bound) > 1
        assert inside(mix(pattern, v.astype(np.float16).astype(F32)), exact, bound) > 1


def test_residual():
    x, y, z = normal(3, 9), normal(3, 9) * F32(1e-3), normal(3, 9) * F32(1e3)
    want = sum(wide(x, y, z))
    for got in (x + y + z, z + y + x, x + (y + z)):
        assert inside(got, want, b.residual_bound(x, y, z)) <= 1
    assert inside(x + z, want, b.residual_bound(x, y, z)) > 1


# ---- a whole run, tap by tap -----------------------------------------------------------------------------------------

CONFIG = tiny_config(n_layer=2, d_model=36, n_head=3, d_rotary=6, d_ff=50)
IDS = RNG.integers(0, CONFIG.n_vocab, 25)
RUNS = [("f32", 0, "f32"), ("f16", 6, "f32"), ("bf16", 25, "f32"), ("f32", 9, "f16"), ("f32", 9, "q8")]


def float32_run(params, prefix_len=0, kv_dtype="f32", faulty=None):
    """A float32 engine: the spec in float32, but with a gelu that keeps its relative accuracy, and a narrow cache.

    In the activation called ``faulty`` the largest number is off by one part in ten thousand.
    """
    recorder = Recorder()

    def engine(name, value):
        part = name.rpartition(".")[2]
        if part == "mlp_post":
            value = gelu_in_float32(recorder.trace[name.replace("post", "pre")])
        if name == faulty:
            value = value.copy()
            value.flat[np.abs(value).argmax()] *= F32(1 - 1e-4)
        recorder(name, value)
        return rounded_kv(value, kv_dtype) if part in ("k_rot", "v") else value

    forward(params, CONFIG, IDS, prefix_len, dtype=F32, tap=engine)
    return recorder.trace


def replay(trace, params, prefix_len=0, kv_dtype="f32"):
    """Share of its bound that each activation uses, when the spec computes it from the engine's own inputs."""
    shares = {}

    def force(name, want):
        bound = np.broadcast_to(tap_bound(name, trace, params, CONFIG, prefix_len, kv_dtype), want.shape)
        shares[name] = inside(trace[name], want, bound)
        return trace[name]

    forward(params, CONFIG, IDS, prefix_len, tap=force)
    return shares


@pytest.mark.parametrize(("dtype", "prefix_len", "kv_dtype"), RUNS)
def test_every_activation_of_a_float32_run_is_inside_and_no_bound_is_silly(dtype, prefix_len, kv_dtype):
    params = random_params(CONFIG, 5, dtype)
    shares = replay(float32_run(params, prefix_len, kv_dtype), params, prefix_len, kv_dtype)
    assert list(shares) == tap_names(CONFIG)
    assert shares.pop("embed") == 0
    for name, share in shares.items():
        assert 0.01 < share <= 1, name


@pytest.mark.parametrize("name", tap_names(CONFIG))
def test_a_relative_fault_of_one_part_in_ten_thousand_breaks_out_there_and_only_there(name):
    params = random_params(CONFIG, 5)
    shares = replay(float32_run(params, faulty=name), params)
    assert [broken for broken, share in shares.items() if share > 1] == [name]


@pytest.mark.parametrize(("kv_dtype", "narrower"), [("f32", "f16"), ("f16", "q8")])
def test_a_narrow_cache_needs_its_own_bound(kv_dtype, narrower):
    params = random_params(CONFIG, 5)
    shares = replay(float32_run(params, 9, narrower), params, 9, kv_dtype)
    assert {name.rpartition(".")[2] for name, share in shares.items() if share > 1} == {"pattern", "z"}


def test_nan_is_outside():
    params = random_params(CONFIG, 5)
    trace = float32_run(params)
    trace["blocks.1.mlp_out"][0, 0] = np.nan
    shares = replay(trace, params)
    assert next(name for name, share in shares.items() if not share <= 1) == "blocks.1.mlp_out"


@pytest.mark.parametrize(
    "name", ["", "blocks.0", "blocks.0.scores", "blocks.2.q", "blocks.x.q", "blocks.-1.q", "ln", "q"]
)
def test_unknown_activations_are_named(name):
    with pytest.raises(RefgptError, match="no such activation"):
        tap_bound(name, {}, random_params(CONFIG, 5), CONFIG)


def test_a_trace_that_lacks_an_input_is_named():
    with pytest.raises(
        RefgptError, match=r"blocks\.1\.ln: the trace lacks an activation; wanted blocks\.0\.resid_post"
    ):
        tap_bound("blocks.1.ln", {}, random_params(CONFIG, 5), CONFIG)


def test_an_unknown_cache_dtype_is_named():
    with pytest.raises(RefgptError, match="kv_dtype: unknown cache dtype; got 'i8'; wanted f32 or f16 or q8"):
        tap_bound("logits", {}, random_params(CONFIG, 5), CONFIG, kv_dtype="i8")


def test_chunked_sums_have_a_tighter_bound() -> None:
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((3, 4096), np.float32), rng.standard_normal((4, 4096), np.float32)
    terms = (x[:, None, :] * w).reshape(3, 4, -1, 32)  # [t, n_out, chunks, 32]
    got = terms.cumsum(axis=-1, dtype=np.float32)[..., -1].cumsum(axis=-1, dtype=np.float32)[..., -1]
    bound = b.linear_bound(x, w, chunk=32)
    assert inside(got, linear(*wide(x, w)), bound) <= 1
    assert (bound < b.linear_bound(x, w) / 20).all()
    lost = got - terms[:, :, 7, 3]
    assert inside(lost, linear(*wide(x, w)), bound) > 1  # one product of 4096 is missed
