"""Linear layers in bfloat16: the bits that the header promises, worked out in NumPy one product at a time."""

from dataclasses import replace

import numpy as np
import pytest

from refgpt._common.errors import KernelError
from refgpt.kernels import CHUNK, linear, linear_backward, linear_weight_backward, pack
from refgpt.numbers.casting import narrowed
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.leaves import widen
from refgpt.numbers.panels import Panels
from refgpt.spec import products_in
from refgpt.spec.gradients.ops import factors
from tests.helpers.buffers import RUNNABLE, assert_same_bits


def rows_of(op):
    return pytest.mark.parametrize("kernel", [k for k in RUNNABLE if k.op == op], ids=str)


each_row = rows_of("linear_bf16_dots")
# Rows and inputs: odd ones, several pieces.
SHAPES = [(1, 70), (3, 31), (8, 257), (9, 33), (20, 300), (70, 130), (275, 291)]


def rounded(x: np.ndarray) -> np.ndarray:
    """Numbers as they are multiplied: bfloat16, those below 2^-56 as 0. In float64, in which products are exact."""
    with np.errstate(invalid="ignore"):  # signalling NaN
        exact, wide = widen(x, np.float64), widen(narrowed(x, "bf16"), np.float64)
    return np.where(np.isnan(exact), np.nan, np.where(np.abs(wide) < 2.0**-56, 0, wide))


def promised(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return summed(rounded(x), rounded(w), bias)


def promised_gradient(dy: np.ndarray, other: np.ndarray) -> np.ndarray:
    """``dy other^T``. What is rounded to less than 2^-80 in dy and 2^-32 in the other counts as 0."""
    with products_in("bf16"), np.errstate(invalid="ignore", over="ignore"):
        dy, other = factors(widen(dy, np.float64), widen(other, np.float64))
    return summed(dy, other, np.zeros(1, np.float32))


def summed(x: np.ndarray, w: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A float32 number and an exact product are added in float64 and rounded to float32, which is the fused
    multiply-add: float64 has more than twice the bits and two more."""
    total = np.broadcast_to(bias, (len(x), len(w))).copy()
    n_in = x.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, n_in, CHUNK):
            chunk = np.zeros_like(total)
            for pair in range(start, min(start + CHUNK, n_in), 2):
                for i in (pair + 1, pair):
                    if i < n_in:
                        chunk = (chunk + x[:, i, None] * w[None, :, i]).astype(np.float32)
            total += chunk
    return total


def bfloats(x: np.ndarray) -> np.ndarray:
    """The upper halves: any bfloat16, NaN and infinities too."""
    return (x.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)


def scaled(rng: np.random.Generator, least: int, most: int, *shape: int) -> np.ndarray:
    """Numbers of both signs, their exponents anywhere between two."""
    return np.ldexp(rng.uniform(-2, 2, shape), rng.integers(least, most, shape)).astype(np.float32)


def some(rng: np.random.Generator, kind: str, *shape: int) -> np.ndarray:
    if kind == "ordinary":
        return rng.standard_normal(shape).astype(np.float32)
    if kind == "of all sizes":  # subnormal ones, and products beyond float32
        return scaled(rng, -149, 60, *shape)
    if kind == "about where zero begins":
        return scaled(rng, -58, -54, *shape)
    if kind == "zeros and subnormals":
        x = np.where(rng.random(shape) < 0.5, scaled(rng, -149, -126, *shape), 0).astype(np.float32)
        return np.copysign(x, rng.standard_normal(shape)).astype(np.float32)
    if kind == "halfway":  # exactly between two bfloat16, where the even one is taken
        bits = rng.integers(0x3F00, 0x4080, shape).astype(np.uint32) << 16 | 0x8000
        return np.where(rng.random(shape) < 0.5, -1, 1).astype(np.float32) * bits.view(np.float32)
    if kind == "cancelling":  # sums that come back to almost nothing
        x = np.ldexp(np.ones(shape), rng.integers(-30, 30, (*shape[:-1], 1)))
        x = x * np.where(np.arange(shape[-1]) % 2, -1, 1) * (1 + (rng.random(shape) < 0.1) / 128)
        return x.astype(np.float32)
    return scaled(rng, 100, 128, *shape)  # large: sums overflow, and some round to infinity


KINDS = (
    "ordinary",
    "of all sizes",
    "about where zero begins",
    "zeros and subnormals",
    "halfway",
    "cancelling",
    "large",
)


@each_row
@pytest.mark.parametrize("kind", KINDS)
def test_every_bit_is_the_promised_one(kernel, kind):
    for seed, (n_rows, n_in) in enumerate(SHAPES):
        rng = np.random.default_rng(seed)
        x, bias = some(rng, kind, n_rows, n_in), some(rng, kind, 53)
        w = bfloats(some(rng, "ordinary" if kind == "large" else kind, 53, n_in))
        want = promised(x, w, bias)
        got = linear(x, replace(pack(w), compute="bf16"), bias, threads=1, kernel=kernel)
        assert kind == "large" or np.isfinite(want).all()
        assert_same_bits(np.where(np.isnan(got), 0, got), np.where(np.isnan(want), 0, want))
        assert (np.isnan(got) == np.isnan(want)).all()


GRADIENT_KINDS = (*KINDS, "about where gradients begin", "about where others begin")


def two(rng: np.random.Generator, kind: str, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    """dy and the other factor."""
    if kind == "about where gradients begin":
        return [scaled(rng, -82, -78, *shapes[0]), some(rng, "ordinary", *shapes[1])]
    if kind == "about where others begin":
        return [scaled(rng, -82, -78, *shapes[0]), scaled(rng, -34, -30, *shapes[1])]
    return [some(rng, kind, *shapes[0]), some(rng, "ordinary" if kind == "large" else kind, *shapes[1])]


def assert_promised(got: np.ndarray, want: np.ndarray, kind: str) -> None:
    assert kind == "large" or np.isfinite(want).all()
    assert_same_bits(np.where(np.isnan(got), 0, got), np.where(np.isnan(want), 0, want))
    assert (np.isnan(got) == np.isnan(want)).all()


@rows_of("linear_backward_dots_bf16")
@pytest.mark.parametrize("kind", GRADIENT_KINDS)
def test_every_bit_of_the_gradient_of_rows_is_the_promised_one(kernel, kind):
    for seed, (n_rows, n_out) in enumerate([(1, 70), (9, 31), (20, 300), (270, 130)]):
        rng = np.random.default_rng(seed)
        dy, w = two(rng, kind, (n_rows, n_out), (n_out, 213))
        w = bfloats(w)
        got = linear_backward(dy, replace(pack(w), compute="bf16"), threads=1, kernel=kernel)
        assert_promised(got, promised_gradient(dy, w.T), kind)


@rows_of("linear_weight_backward_dots")
@pytest.mark.parametrize("kind", GRADIENT_KINDS)
def test_every_bit_of_the_gradient_of_weights_is_the_promised_one(kernel, kind):
    for seed, (n_rows, n_out) in enumerate([(1, 70), (31, 9), (300, 20), (130, 150)]):
        rng = np.random.default_rng(seed)
        dy, x = two(rng, kind, (n_rows, n_out), (n_rows, 213))
        before = some(rng, "ordinary", n_out, 213)
        with np.errstate(over="ignore", invalid="ignore"):
            want = before + promised_gradient(dy.T, x.T)
        got = linear_weight_backward(dy, x, before.copy(), compute="bf16", threads=1, kernel=kernel)
        assert_promised(got, want, kind)


@each_row
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 0x7F800001, 0x7FFFFFFF, 0xFF80FFFF])
def test_what_is_no_number_stays_none(kernel, bad):
    """Which NaN comes out is not promised. These would round to 0 or infinity if they were taken for numbers."""
    bad = np.uint32(bad).view(np.float32) if isinstance(bad, int) else np.float32(bad)
    rng = np.random.default_rng(1)
    for n_rows in (2, 20):
        x, w, bias = some(rng, "ordinary", n_rows, 40), bfloats(some(rng, "ordinary", 53, 40)), np.zeros(53, np.float32)
        x[1, 7] = bad
        want = promised(x, w, bias)
        got = linear(x, replace(pack(w), compute="bf16"), bias, threads=1, kernel=kernel)
        assert (~np.isfinite(got[1])).all() and np.isnan(got[1]).all() == np.isnan(bad)
        assert_same_bits(np.where(np.isnan(got), 0, got), np.where(np.isnan(want), 0, want))


def test_weights_in_float32_and_float16_are_not_multiplied_in_bfloat16():
    packed = pack(bfloats(np.ones((40, 5))))
    part = replace(packed, compute="bf16").part(16, 40)
    assert isinstance(part, Panels) and part.compute == "bf16" and part.shape == (24, 5)
    assert replace(Panels.zeros("q8", 4, 5), compute="bf16").compute == "bf16"
    for other in (pack(np.ones((4, 5), np.float16)), Panels.zeros("f32", 4, 5)):
        with pytest.raises(KernelError, match="compute: cannot be used; got 'bf16'; wanted 'f32'"):
            replace(other, compute="bf16")
    with pytest.raises(KernelError, match="compute: cannot be used; got 'q8'; wanted 'f32', 'bf16'"):
        replace(packed, compute="q8")
