"""Rounding that makes up for its own errors: the factor, the rounding, and what both are compared with."""

from __future__ import annotations

import numpy as np
import pytest

from refgpt.kernels import force_isa, linear, pack
from refgpt.numbers import compensated
from refgpt.numbers.compensated import Feedback, Moments, _nearest, quantise_compensated
from refgpt.numbers.panels import BLOCK, Panels
from refgpt.numbers.quantisation import quantise

SHAPES = [(5, 7), (16, 32), (40, 150), (33, 96), (17, 353)]


def in_kernels(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return linear(np.ascontiguousarray(x), pack(np.ascontiguousarray(w)))


def in_numpy(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return x @ w.T


def correlated(n_in: int, seed: int = 0) -> np.ndarray:
    """Inputs [t, n_in] of which each can be guessed from others, with a mean, and of very different sizes."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((1000, n_in)) @ rng.standard_normal((n_in, n_in)) + rng.standard_normal(n_in)
    return (mixed * rng.uniform(0.1, 3, n_in)).astype(np.float32)


def moments_of(x: np.ndarray, product=in_kernels) -> Moments:
    moments = Moments(x.shape[1], product)
    for start in range(0, len(x), 300):
        moments.add(x[start : start + 300])
    return moments


def rounded(w: np.ndarray, feedback: Feedback, kind: str = "q4", product=in_kernels) -> Panels:
    out = Panels.zeros(kind, *w.shape)
    quantise_compensated(w, feedback, kind, product, out)
    return out


def output_error(x: np.ndarray, w: np.ndarray, found: Panels) -> float:
    off = w.astype(np.float64) - found.rows(0, len(w))
    return float(np.square(x.astype(np.float64) @ off.T).sum())


def matrix(n_out: int, n_in: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((n_out, n_in)).astype(np.float32)


@pytest.mark.parametrize("n_in", [7, 32, 150, 353])
def test_the_factor_is_that_of_the_damped_moments(n_in, monkeypatch):
    monkeypatch.setattr(Moments, "ROWS", 48)  # as wide matrices are summed
    x = correlated(n_in)
    feedback = Feedback(moments_of(x), in_kernels, damping=0.01)
    n = len(feedback.order)
    want = np.zeros((n, n))
    want[:n_in, :n_in] = x.astype(np.float64).T @ x
    want = want[np.ix_(feedback.order, feedback.order)] + 0.01 * np.trace(want) / n * np.eye(n)
    lower = np.tril(feedback.factors, -1).astype(np.float64) + np.eye(n)
    got = (lower * feedback.costs) @ lower.T
    # A coarse check: an element's error is a few roundings of its diagonal elements' geometric mean.
    size = np.sqrt(np.outer(want.diagonal(), want.diagonal()))
    assert (abs(got - want) <= 1e-5 * size).all()


@pytest.mark.parametrize("n_in", [32, 150, 353])
def test_important_inputs_come_last_and_blocks_stay_together(n_in):
    x = correlated(n_in)
    order, size = Feedback(moments_of(x), in_kernels).order, np.zeros(-(-n_in // BLOCK) * BLOCK)
    size[:n_in] = np.square(x).sum(0)
    blocks = order.reshape(-1, BLOCK) // BLOCK
    assert sorted(order) == list(range(len(size))) and (blocks == blocks[:, :1]).all()
    assert (np.diff(size[order].reshape(-1, BLOCK).sum(1)) >= -1e-3 * size.max()).all()
    assert (np.diff(size[order].reshape(-1, BLOCK), axis=1) >= -1e-3 * size.max()).all()


@pytest.mark.parametrize("kind", ["q3", "q4", "q8"])
@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_independent_inputs_leave_each_weight_to_itself(n_out, n_in, kind):
    """All inputs alike and independent: there is nothing to make up for, and the search is the plain one."""
    moments = Moments(n_in, in_kernels)
    np.fill_diagonal(moments.sums, 4)
    w = matrix(n_out, n_in)
    got, want = rounded(w, Feedback(moments, in_kernels, damping=0.0), kind), quantise(w, kind)
    assert got.data.tobytes() == want.data.tobytes()


@pytest.mark.parametrize("kind", ["q3", "q4", "q8"])
@pytest.mark.parametrize(("n_out", "n_in"), SHAPES)
def test_outputs_are_closer_than_with_plain_rounding(n_out, n_in, kind):
    x, w = correlated(n_in), matrix(n_out, n_in)
    got = output_error(x, w, rounded(w, Feedback(moments_of(x), in_kernels), kind))
    plain = output_error(x, w, quantise(w, kind))
    assert got < (0.8 if n_in < BLOCK else 0.6) * plain


def test_one_block_is_rounded_as_in_the_paper():
    """GPTQ as published, with the inverse of the moments, in float64, for a scale that is given."""
    x, w = correlated(32), matrix(50, 32)
    feedback = Feedback(moments_of(x), in_kernels)
    scale = (np.abs(w).max(1) / 7).astype(np.float32)
    wanted = np.ascontiguousarray(w[:, feedback.order].T)
    targets = wanted + np.tril(feedback.factors, -1).T @ wanted
    got, sums = _nearest(targets, feedback.factors, scale, "q4")
    error = (feedback.costs[:, None] * np.square(targets - sums * scale)).sum(0)

    h = (x.astype(np.float64).T @ x)[np.ix_(feedback.order, feedback.order)]
    h += 0.01 * np.trace(h) / 32 * np.eye(32)
    # The paper goes from the first input to the last, and takes the upper factor of the inverse.
    turned = np.linalg.cholesky(np.linalg.inv(h[::-1, ::-1])).T
    left, want = w[:, feedback.order[::-1]].astype(np.float64), np.empty((50, 32))
    for j in range(32):
        want[:, j] = np.clip(np.rint(left[:, j] / scale), -8, 7)
        off = (left[:, j] - want[:, j] * scale) / turned[j, j]
        left[:, j:] -= off[:, None] * turned[j, j:]
    assert (got.T[:, ::-1] == want).mean() > 0.99  # float32 may end on the other side of a tie, and others follow
    e = (wanted - got * scale).astype(np.float64)
    assert np.allclose(error, np.einsum("ir,ij,jr->r", e, h, e), rtol=1e-3)


def test_the_bits_depend_on_no_instruction_set_and_on_no_other_rows():
    x, w = correlated(150), matrix(100, 150)
    want = rounded(w, Feedback(moments_of(x), in_kernels)).data
    with force_isa("scalar"):
        assert rounded(w, Feedback(moments_of(x), in_kernels)).data.tobytes() == want.tobytes()
    parts = Panels.zeros("q4", 100, 150)
    feedback = Feedback(moments_of(x), in_kernels)
    for start in range(0, 100, 48):
        stop = min(start + 48, 100)
        quantise_compensated(w[start:stop], feedback, "q4", in_kernels, parts.part(start, stop))
    assert parts.data.tobytes() == want.tobytes()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_no_bit(threads, monkeypatch):
    feedback, w = Feedback(moments_of(correlated(70)), in_kernels), matrix(100, 70)
    want, out = rounded(w, feedback), Panels.zeros("q4", 100, 70)
    monkeypatch.setattr(compensated, "ROWS", 32)
    quantise_compensated(w, feedback, "q4", in_kernels, out, threads)
    assert out.data.tobytes() == want.data.tobytes()


@pytest.mark.parametrize("n_in", [40, 150])
def test_inputs_that_never_occur_and_those_that_are_others_in_disguise(n_in):
    """Moments of a low rank, where only the damping gives a factor."""
    x, w = correlated(n_in), matrix(20, n_in)
    x[:, 3:9] = 0
    x[:, 10:30] = x[:, 30:31] * np.float32(1000)
    found = rounded(w, Feedback(moments_of(x[:20]), in_kernels))
    assert np.isfinite(found.rows(0, 20)).all()
    assert output_error(x[:20], w, found) < output_error(x[:20], w, quantise(w, "q4"))
    zeros = rounded(w, Feedback(moments_of(np.zeros((4, n_in), np.float32)), in_kernels))
    assert zeros.data.tobytes() == quantise(w, "q4").data.tobytes()


@pytest.mark.parametrize("damping", [1e-9, 1e-5])
def test_moments_without_a_factor_in_float32_are_damped_more(damping):
    x = correlated(2)[:, :1] * np.linspace(1, 1.001, 150, dtype=np.float32)
    feedback = Feedback(moments_of(x), in_kernels, damping=damping)
    assert np.isfinite(feedback.factors).all() and (feedback.costs > 0).all()


def test_zeros_and_large_weights():
    x, w = correlated(64), matrix(16, 64)
    w[2], w[5, :32], w[7] = 0, 0, 400000
    found = rounded(w, Feedback(moments_of(x), in_kernels)).rows(0, 16)
    assert (found[2] == 0).all() and np.isfinite(found).all()
    assert np.abs(found[7] - w[7]).max() < 65504


def test_infinite_inputs_are_seen():
    moments = moments_of(np.full((2, 5), 1e30, np.float32))
    assert not moments.are_usable and moments_of(np.ones((2, 5), np.float32)).are_usable
