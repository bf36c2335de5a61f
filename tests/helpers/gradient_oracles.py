"""Oracles of the kernels of training: see ``tests.helpers.oracles``, whose table they are part of.

Where a kernel sums over the rows of a text, ``n`` is their number, and ``n_rows`` that of its outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from refgpt import kernels, spec
from refgpt.kernels import CHUNK, Kernel
from refgpt.numbers.panels import BLOCK_BYTES, LANES, Panels, panel_shape
from refgpt.spec import gradients
from refgpt.spec.bounds import gradients as bounds
from refgpt.spec.gradients.ops import factors
from tests.helpers.buffers import Output, assert_same_bits, guarded, numbers, stored
from tests.helpers.cases import MOST_WORKERS, Case, Rng, float64
from tests.helpers.quantised import quantised_panels


def linear_backward_case(
    kind: str, n: int, n_rows: int, flavour: str, rng: Rng, n_in: int = 117, compute: str = "f32"
) -> Case:
    """``n`` outputs and 117 inputs: three blocks, and one that ends early."""
    dy = numbers(rng, flavour, n_rows, n, huge=1e6)
    if kind in BLOCK_BYTES:
        least, most = {"q8": (-128, 127), "q4": (-8, 7), "q3": (-4, 3)}[kind]
        scales = np.abs(stored(rng, flavour, "f16", n, -(-n_in // 32)))
        w = quantised_panels(kind, rng.integers(least, most + 1, (n, n_in)), scales)
        matrix = float64(w)
    else:
        matrix = stored(rng, flavour, kind, n, n_in)
        w = kernels.pack(matrix)
    w = replace(w, compute=compute)

    def run(kernel: Kernel, rows: slice) -> tuple[Output]:
        dx, guards = guarded((len(dy[rows]), n_in))
        kernels.linear_backward(dy[rows], w, dx, threads=1, kernel=kernel)
        return (Output(dx, guards),)

    with spec.products_in(compute):
        want = gradients.linear_backward(float64(dy), matrix)
        bound = bounds.linear_backward_bound(*factors(float64(dy), float64(matrix)), CHUNK)
    return Case(run, (want,), (bound,))


def linear_backward_dots_case(kind: str, n: int, n_rows: int, flavour: str, rng: Rng) -> Case:
    """So many inputs that their blocks are not all computed together."""
    return linear_backward_case(kind, n, n_rows, flavour, rng, 213, "bf16")


def added(before: np.ndarray, call: Callable[[np.ndarray], object], strange: bool) -> Output:
    """What a kernel added to an array; NaN where it changed nothing, unless the numbers may be such that it adds 0."""
    found, guards = guarded(before.shape)
    found[...] = before
    call(found)
    if not strange:
        found[found == before] = np.nan
    return Output(found, guards)


def linear_weight_backward_case(
    n: int, n_rows: int, flavour: str, rng: Rng, n_in: int = 213, compute: str = "f32"
) -> Case:
    """213 inputs are more than go together, and the last panel ends early."""
    dy, x = numbers(rng, flavour, n, n_rows, huge=1e6), numbers(rng, flavour, n, n_in, huge=1e6)
    before, strange = numbers(rng, "ordinary", n_rows, n_in), flavour != "ordinary" or not n

    def run(kernel: Kernel, rows: slice) -> tuple[Output]:
        part = np.ascontiguousarray(dy[:, rows])

        def call(into: np.ndarray) -> None:
            kernels.linear_weight_backward(part, x, into, compute=compute, threads=1, kernel=kernel)

        return (added(before[rows], call, strange),)

    with spec.products_in(compute):
        want = float64(before) + gradients.linear_weight_backward(float64(dy), float64(x))
        bound = bounds.linear_weight_backward_bound(*factors(float64(dy), float64(x)), before, CHUNK)
    return Case(run, (want,), (bound,))


def linear_weight_backward_dots_case(n: int, n_rows: int, flavour: str, rng: Rng) -> Case:
    return linear_weight_backward_case(n, n_rows, flavour, rng, compute="bf16")


def column_sum_case(n: int, n_rows: int, flavour: str, rng: Rng) -> Case:
    x, before, strange = numbers(rng, flavour, n, n_rows), numbers(rng, "ordinary", n_rows), flavour != "ordinary"

    def run(kernel: Kernel, rows: slice) -> tuple[Output]:
        part = np.ascontiguousarray(x[:, rows])

        def call(into: np.ndarray) -> None:
            kernels.column_sum(part, into, threads=1, kernel=kernel)

        return (added(before[rows], call, strange or not n),)

    want = float64(before) + gradients.bias_backward(float64(x))
    return Case(run, (want,), (bounds.column_sum_bound(x, before),))


def embedding_backward_case(n: int, n_rows: int, flavour: str, rng: Rng, n_vocab: int = 13) -> Case:
    """``n`` rows, most ids several times. Shown by columns: the table's rows whose ids occur."""
    dy, before = numbers(rng, flavour, n, n_rows), numbers(rng, "ordinary", n_vocab, n_rows)
    ids, strange = rng.integers(0, n_vocab, n), flavour != "ordinary"
    there = np.unique(ids)

    def run(kernel: Kernel, rows: slice) -> tuple[Output]:
        part = np.ascontiguousarray(dy[:, rows])

        def call(into: np.ndarray) -> None:
            kernels.embedding_backward(part, ids, into, threads=1, kernel=kernel)

        found = added(np.ascontiguousarray(before[:, rows]), call, strange)
        untouched = np.setdiff1d(np.arange(n_vocab), there)
        same = strange or np.isnan(found.value[untouched]).all()
        return (Output(np.ascontiguousarray(found.value[there].T), found.guards if same else np.zeros(1)),)

    want = float64(before) + gradients.embedding_backward(float64(dy), ids, n_vocab)
    bound = bounds.embedding_backward_bound(dy, ids, before)
    return Case(run, (want[there].T,), (bound[there].T,))


def cross_entropy_backward_case(n: int, n_rows: int, flavour: str, rng: Rng) -> Case:
    n = max(n, 1)
    logits, dy = numbers(rng, flavour, n_rows, n) * np.float32(5), numbers(rng, "ordinary", n_rows)
    targets = rng.integers(0, n, n_rows)

    def run(kernel: Kernel, rows: slice) -> tuple[Output, Output]:
        dx, guards = guarded(logits[rows].shape)
        parts, beside = guarded((len(dx), 2))
        part = dy[rows], logits[rows], targets[rows]
        kernels.cross_entropy_backward(*part, dx, parts=parts, threads=1, kernel=kernel)
        return Output(dx, guards), Output(parts, beside)

    wide = float64(logits)
    most = wide.max(axis=-1)
    parts = np.stack((np.exp(wide - most[:, None]).sum(-1), wide[np.arange(n_rows), targets] - most), axis=-1)
    want = gradients.cross_entropy_backward(float64(dy), wide, targets)
    return Case(run, (want, parts), bounds.cross_entropy_backward_bound(dy, logits, targets))


def gelu_erf_backward_case(n: int, n_rows: int, flavour: str, rng: Rng) -> Case:
    """Some as far out as the tail reaches, and farther."""
    x = numbers(rng, flavour, n_rows, n) * rng.choice(np.float32([1, 3, 12]), (n_rows, n))
    dy = numbers(rng, flavour, n_rows, n)

    def run(kernel: Kernel, rows: slice) -> tuple[Output]:
        dx, guards = guarded(x[rows].shape)
        kernels.gelu_erf_backward(x[rows], dy[rows], dx, threads=1, kernel=kernel)
        return (Output(dx, guards),)

    want = gradients.gelu_erf_backward(float64(dy), float64(x))
    return Case(run, (want,), (bounds.gelu_erf_backward_bound(x, dy),))


def layer_norm_backward_case(n: int, n_rows: int, flavour: str, rng: Rng) -> Case:
    n, eps = max(n, 1), float(np.float32(1e-5))
    x, dy = numbers(rng, flavour, n_rows, n) + np.float32(0.5), numbers(rng, flavour, n_rows, n)
    w = numbers(rng, "ordinary", n)

    def run(kernel: Kernel, rows: slice) -> tuple[Output, Output]:
        (dx, guards), (moments, beside) = guarded(x[rows].shape), guarded((len(x[rows]), 2))
        kernels.layer_norm_backward(dy[rows], x[rows], w, eps, (dx, moments), threads=1, kernel=kernel)
        return Output(dx, guards), Output(moments, beside)

    wide = float64(x)
    want, _, _ = gradients.layer_norm_backward(float64(dy), wide, float64(w), eps)
    moments = np.stack((wide.mean(-1), np.sqrt(wide.var(-1) + eps)), axis=-1)
    return Case(run, (want, moments), bounds.layer_norm_backward_bound(dy, x, w, eps))


def layer_norm_weight_backward_case(n: int, n_rows: int, flavour: str, rng: Rng) -> Case:
    x, dy = numbers(rng, flavour, n, n_rows), numbers(rng, flavour, n, n_rows)
    moments = np.stack((numbers(rng, flavour, n), np.exp(numbers(rng, "ordinary", n))), axis=-1)
    before, strange = numbers(rng, "ordinary", n_rows), flavour != "ordinary" or not n

    def run(kernel: Kernel, rows: slice) -> tuple[Output]:
        parts = [np.ascontiguousarray(array[:, rows]) for array in (dy, x)]

        def call(into: np.ndarray) -> None:
            kernels.layer_norm_weight_backward(*parts, moments, into, threads=1, kernel=kernel)

        return (added(before[rows], call, strange),)

    mean, root = float64(moments).T[:, :, None]
    want = (float64(dy) * (float64(x) - mean) / root).sum(axis=0) + float64(before)
    return Case(run, (want,), (bounds.layer_norm_weight_backward_bound(dy, x, moments, before),))


def attention_backward_case(n: int, n_rows: int, flavour: str, rng: Rng, d_head: int = 21) -> Case:
    """``n_rows`` heads over a text of ``n`` tokens, with a prefix or a local window where these numbers say so."""
    n, divisor = max(n, 1), 1.5 if n_rows % 2 == 0 else None
    dz, q, k, v = (numbers(rng, flavour, n, n_rows, d_head, huge=1e4) for _ in range(4))
    positions = np.arange(n)
    n_visible = np.maximum(positions + 1, n // 3 if n % 2 else 0)
    first_visible = np.maximum(positions - 40, 0) if n_rows % 2 == 0 else None

    def run(kernel: Kernel, rows: slice) -> tuple[Output, ...]:
        parts = [np.ascontiguousarray(array[:, rows]) for array in (dz, q, k, v)]
        dpattern, guards = guarded((parts[0].shape[1], n, n))
        how = {"first_visible": first_visible, "divisor": divisor, "threads": 1, "kernel": kernel}
        runs = []
        room = np.full((MOST_WORKERS, kernels.attention_backward_scratch(n, d_head)), np.nan, np.float32)
        for pattern in (None, dpattern):
            outputs = [guarded(parts[0].shape) for _ in range(3)]
            out = tuple(output for output, _ in outputs)
            kernels.attention_backward(*parts, n_visible, dpattern=pattern, out=out, scratch=room, **how)
            runs.append([Output(np.ascontiguousarray(x.transpose(1, 0, 2)), beside) for x, beside in outputs])
        for one, other in zip(*runs, strict=True):  # whether or not the pattern's gradient is wanted
            assert_same_bits(one.value, other.value)
        return (*runs[1], Output(dpattern, guards))

    mask = positions < n_visible[:, None]
    mask &= positions >= (np.zeros(n, np.int64) if first_visible is None else first_visible)[:, None]
    wide = [float64(array) for array in (dz, q, k, v)]
    scale = divisor or np.sqrt(d_head)
    scores = np.where(mask, np.einsum("thd,shd->hts", wide[1], wide[2]) / scale, -np.inf)
    pattern, dpattern = spec.softmax(scores), np.einsum("thd,shd->hts", wide[0], wide[3])
    slope = gradients.softmax_backward(dpattern, pattern) / scale
    want = [
        np.einsum("hts,shd->htd", slope, wide[2]),
        np.einsum("hts,thd->hsd", slope, wide[1]),
        np.einsum("hts,thd->hsd", pattern, wide[0]),
        dpattern,
    ]
    found = bounds.attention_backward_bound(dz, q, k, v, mask, CHUNK, divisor)
    return Case(run, tuple(want), (*(bound.transpose(1, 0, 2) for bound in found[:3]), found[3]))


def adamw_case(n: int, n_rows: int, flavour: str, rng: Rng) -> Case:
    """A step, and what it should be."""
    rounded = {"eps": 1e-8, "rate": 0.3, "correction": 0.25, "shrink": 0.6}

    def root(mean: np.ndarray, square: np.ndarray, how: dict[str, float]) -> np.ndarray:
        return np.sqrt(square) / how["correction"]

    return _adamw_case(kernels.adamw, bounds.adamw_bound, rounded, root, n, n_rows, flavour, rng)


def adamw_averaged_case(n: int, n_rows: int, flavour: str, rng: Rng) -> Case:
    """The same with the denominators of an averaged gradient."""
    rounded = {
        "eps": 1e-8,
        "rate": 0.3,
        "mean_correction": 0.5,
        "square_correction": 0.25,
        "of_variance": 0.3,
        "shrink": 0.6,
    }

    def root(mean: np.ndarray, square: np.ndarray, how: dict[str, float]) -> np.ndarray:
        squared = (mean / how["mean_correction"]) ** 2
        of_variance = how["of_variance"] * np.maximum(square / how["square_correction"] - squared, 0)
        return np.sqrt(squared + of_variance)

    return _adamw_case(kernels.adamw_averaged, bounds.adamw_averaged_bound, rounded, root, n, n_rows, flavour, rng)


def _adamw_case(
    op: Callable[..., None],
    bound: Callable[..., tuple[np.ndarray, ...]],
    settings: dict[str, float],
    root: Callable[[np.ndarray, np.ndarray, dict[str, float]], np.ndarray],
    n: int,
    n_rows: int,
    flavour: str,
    rng: Rng,
) -> Case:
    w, g, mean = (numbers(rng, flavour, n_rows, n) for _ in range(3))
    square = np.abs(numbers(rng, flavour, n_rows, n))
    rounded = {name: float(np.float32(value)) for name, value in settings.items()}
    betas, strange = (0.875, 0.96875), flavour != "ordinary"  # exact, and one less them too

    def run(kernel: Kernel, rows: slice) -> tuple[Output, ...]:
        outputs = []
        for before in (w, mean, square):
            found, guards = guarded(before[rows].shape)
            found[...] = before[rows]
            outputs.append(Output(found, guards))
        own, *moments = (output.value for output in outputs)
        op(own, g[rows], *moments, betas=betas, **rounded, threads=1, kernel=kernel)
        for output, before in zip(outputs, (w, mean, square), strict=True):
            if not strange:
                output.value[output.value == before[rows]] = np.nan
        return tuple(outputs)

    wide_w, wide_g, wide_mean, wide_square = (float64(x) for x in (w, g, mean, square))
    new_mean = betas[0] * wide_mean + (1 - betas[0]) * wide_g
    new_square = betas[1] * wide_square + (1 - betas[1]) * wide_g**2
    step = rounded["rate"] * new_mean / rounded.get("mean_correction", 1.0)
    step /= root(new_mean, new_square, rounded) + rounded["eps"]
    want = wide_w * rounded["shrink"] - step, new_mean, new_square
    return Case(run, want, bound(w, g, mean, square, betas, **rounded))


def gram_case(n: int, n_rows: int, flavour: str, rng: Rng) -> Case:
    """Some rows of the products of all rows with one another, with a base and without."""
    x, half = numbers(rng, flavour, n_rows, n), numbers(rng, flavour, n_rows, n_rows)
    base = np.tril(half) + np.tril(half, -1).T
    factors = ((np.zeros_like(base), 1.0, 1.0), (base, -4.75, 2.03125))

    def run(kernel: Kernel, rows: slice) -> tuple[Output, ...]:
        outputs = []
        for there, (of_base, of_sum) in ((None, factors[0][1:]), (kernels.pack(base), factors[1][1:])):
            data, guards = guarded(panel_shape("f32", n_rows, n_rows))
            out = Panels(data, n_rows, n_rows, "f32")
            kernels.gram(kernels.pack(x), there, of_base, of_sum, out, threads=1, kernel=kernel)
            shown = data.transpose(0, 2, 1).reshape(LANES * len(data), n_rows)
            outputs.append(Output(shown[rows], guards))
        return tuple(outputs)

    padding = [(0, -n_rows % LANES), (0, 0)]  # lanes past the last row are zeros
    products = float64(x) @ float64(x).T
    want = [of_base * float64(there) + of_sum * products for there, of_base, of_sum in factors]
    bound = [bounds.gram_bound(x, *some, CHUNK) for some in factors]
    return Case(run, tuple(np.pad(y, padding) for y in want), tuple(np.pad(y, padding) for y in bound))


def newton_schulz_case(n: int, n_rows: int, flavour: str, rng: Rng) -> Case:
    """Rows are the columns of x [n, n_rows]; shown as they lie in the panels of columns, and of rows."""
    x, half = numbers(rng, flavour, n_rows, n), numbers(rng, flavour, n, n)
    s, of_x = np.tril(half) + np.tril(half, -1).T, 3.4375

    def run(kernel: Kernel, rows: slice) -> tuple[Output, Output]:
        part = x[rows]
        shapes = panel_shape("f32", len(part), n), panel_shape("f32", n, len(part))
        (columns, ends), (beside, others) = map(guarded, shapes)
        out = Panels(columns, len(part), n, "f32"), Panels(beside, n, len(part), "f32")
        kernels.newton_schulz(kernels.pack(s), kernels.pack(part), of_x, out, threads=1, kernel=kernel)
        shown = columns.transpose(0, 2, 1).reshape(LANES * shapes[0][0], n), beside.transpose(1, 0, 2)
        return Output(shown[0], ends), Output(shown[1].reshape(len(part), LANES * shapes[1][0]), others)

    want = of_x * float64(x) + float64(x) @ float64(s)
    bound = bounds.newton_schulz_bound(s, x.T, of_x, CHUNK).T
    lanes = [(0, -n_rows % LANES), (0, 0)], [(0, 0), (0, -n % LANES)]  # those past the last are zeros
    return Case(run, tuple(np.pad(want, some) for some in lanes), tuple(np.pad(bound, some) for some in lanes))
