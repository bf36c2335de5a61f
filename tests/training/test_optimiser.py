"""Optimisers, against PyTorch's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from refgpt._common.errors import RefgptError
from refgpt.training import AdamW, Muon
from refgpt.training.optimiser import orthogonalised
from tests.goldens import HERE

#: As ``tests/goldens/recorders/optimisers.py`` has them.
SETTINGS = [
    (1e-2, AdamW((0.9, 0.999), 1e-8, 0.0)),
    (3e-3, AdamW((0.8, 0.95), 1e-3, 0.1)),
]


def gradients(seed, sizes=(-6, 2)):
    stream = np.random.RandomState(seed)
    sizes = 10.0 ** stream.randint(*sizes, (5, 6, 4))
    return stream.random_sample((6, 4)) - 0.5, (stream.random_sample((5, 6, 4)) - 0.5) * sizes


@pytest.fixture(scope="module")
def torchs():
    with np.load(HERE / "optimisers.npz") as file:
        return dict(file)


@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_adamw_is_pytorchs(torchs, case):
    lr, optimiser = SETTINGS[case]
    w, steps = gradients(case)
    state = {}
    for n, gradient in enumerate(steps, 1):
        optimiser.update(w, gradient, state, n, lr, True)
        assert np.abs(w - torchs[f"adamw_{case}"][n - 1]).max() <= 1e-15  # float64, weights of 0.5


@pytest.mark.parametrize("averaged_over", [1, 4])
def test_the_kernel_has_the_bits_of_numpy(averaged_over):
    w, steps = (array.astype(np.float32) for array in gradients(3))
    optimiser, runs = replace(SETTINGS[1][1], averaged_over=averaged_over), []
    for threads in (None, 1, 2):
        own, state = w.copy(), {}
        for n, gradient in enumerate(steps, 1):
            optimiser.update(own, gradient, state, n, 1e-2, True, threads)
        runs.append([own.tobytes(), *(state[kind].tobytes() for kind in ("mean", "square"))])
    assert runs[0] == runs[1] == runs[2]


def test_the_kernel_hides_no_infinite_square():
    gradient, runs = np.array([1e20, 1.0, 1e30], np.float32), []
    for threads in (None, 1):
        w = np.ones(3, np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            AdamW(averaged_over=4).update(w, gradient, {}, 1, 1e-2, True, threads)
        runs.append(w)
    assert (np.isnan(runs[0]) == [True, False, True]).all()  # the variance is infinite less infinite
    assert np.array_equal(*runs, equal_nan=True)


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.95, 0.5), (0.0, 0.9)], ids=str)
@pytest.mark.parametrize("n_workers", [2, 4, 1000])
def test_the_denominators_of_an_averaged_gradient(n_workers, betas):
    w, steps = gradients(5)
    steps[2:] = 0  # a mean whose square is more than the mean square, if that forgets sooner
    (beta1, beta2), wanted, mean, square, state = betas, w.copy(), 0.0, 0.0, {}
    optimiser = AdamW(betas, 1e-8, 0.1, averaged_over=n_workers)
    for n, gradient in enumerate(steps, 1):
        optimiser.update(w, gradient, state, n, 1e-2, True)
        mean, square = beta1 * mean + (1 - beta1) * gradient, beta2 * square + (1 - beta2) * gradient**2
        m, v = mean / (1 - beta1**n), square / (1 - beta2**n)
        weights = (1 - beta1) * beta1 ** np.arange(n) / (1 - beta1**n)  # of the gradients in m
        known = np.square(weights).sum()  # the share of their variance that m**2 has
        rest = min(1.0, (max(1 / n_workers, 2 * known) - known) / (1 - known)) if known < 1 else 1.0
        variance = np.maximum(v - m**2, 0)
        wanted = wanted * (1 - 1e-3) - 1e-2 * m / (np.sqrt(m**2 + rest * variance) + 1e-8)
        assert np.abs(w - wanted).max() <= 1e-14  # float64, weights of 0.5


def test_more_workers_than_the_mean_can_tell_apart_act_like_fewer():
    """A rare gradient must not move a weight at the full rate for ever after."""
    moved = {}
    for n_workers in (1, 9, 10, 1000):
        w, state = np.zeros(1), {}
        for n in range(1, 301):
            AdamW((0.9, 0.95), averaged_over=n_workers).update(w, np.ones(1) * (n == 100), state, n, 1.0, False)
        moved[n_workers] = -w[0]
    assert moved[1] < moved[9] < moved[10] == moved[1000] < 5 * moved[1]


def test_averaged_workers_move_noisy_weights_as_far_as_a_large_batch_does():
    """Weights whose gradients are nearly all noise, and such without noise."""
    stream, n_steps, n_workers, lr = np.random.RandomState(0), 200, 4, 1e-3
    noise = np.repeat([3.0, 0.0], 2000)

    def moved(n_batches, optimiser):
        w, state = np.zeros(4000), {}
        for n in range(1, n_steps + 1):
            gradient = np.mean([0.1 + noise * stream.standard_normal(4000) for _ in range(n_batches)], 0)
            optimiser.update(w, gradient, state, n, lr, False)
        return -w[:2000].mean(), -w[2000:].mean()

    betas = (0.9, 0.95)
    large, clean = moved(n_workers, AdamW(betas))
    plain, _ = np.mean([moved(1, AdamW(betas)) for _ in range(n_workers)], 0)
    averaged, clean_averaged = np.mean([moved(1, AdamW(betas, averaged_over=n_workers)) for _ in range(n_workers)], 0)
    assert plain < 0.6 * large  # a half, but for chance
    assert 0.85 * large < averaged < 1.15 * large
    assert np.allclose([clean, clean_averaged], n_steps * lr)


def test_muon_is_pytorchs(torchs):
    w, steps = gradients(9, (0, 1))
    start, muon, state = w.copy(), Muon(["w"], 0.9), {}
    for n, gradient in enumerate(steps):
        muon.update(w, gradient, state, 1e-2, 0.1)
        # PyTorch's takes the five steps in bfloat16, of 8 bits: some hundredths of the way that was gone.
        assert np.abs(w - torchs["muon"][n]).max() <= 0.03 * np.abs(w - start).max()


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (1, 5)])
def test_muon_takes_its_step_in_kernels(shape):
    streams = np.random.RandomState(0)
    w, *steps = (streams.standard_normal(shape).astype(np.float32) for _ in range(4))
    runs = []
    for threads in (None, 1, 2):
        own, state = w.copy(), {}
        for gradient in steps:
            Muon(["w"], 0.9).update(own, gradient, state, 1e-2, 0.1, threads)
        runs.append((own, state["momentum"]))
    assert all(np.array_equal(momentum, runs[0][1]) for _, momentum in runs)
    assert np.array_equal(runs[1][0], runs[2][0])
    # Other orders of sums, some ulps apart; the step of 1e-2 has singular values near 1.
    assert np.abs(runs[1][0] - runs[0][0]).max() <= 1e-6


def test_muon_scales_the_learning_rate_and_decay():
    w, steps = gradients(0)
    one, other = w.copy(), w.copy()
    Muon(["w"], lr_scale=8.0).update(one, steps[0], {}, 2.0**-9, 0.1)
    Muon(["w"]).update(other, steps[0], {}, 2.0**-6, 0.1)
    assert np.array_equal(one, other) and not np.array_equal(one, w)


def test_singular_values_are_taken_near_1():
    x = np.random.RandomState(0).standard_normal((12, 30))
    for matrix in (x, x.T):
        left, values, right = np.linalg.svd(matrix, full_matrices=False)
        y = orthogonalised(matrix)
        found = np.diag(left.T @ y @ right.T)
        assert np.abs(y - left * found @ right).max() <= 1e-12
        assert (found > 0.6).all() and (found < 1.3).all() and values.max() > 2 * values.min()


def test_single_precision_stays_single():
    w, steps = (array.astype(np.float32) for array in gradients(0))
    state, other = {}, {}
    AdamW(weight_decay=0.1).update(w, steps[0], state, 1, 1e-3, True)
    Muon(["w"]).update(w, steps[0], other, 1e-3, 0.1)
    assert {a.dtype for a in [w, *state.values(), *other.values()]} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: AdamW(betas=(0.9, 1.0)), "betas"),
        (lambda: AdamW(betas=(0.9,)), "betas"),
        (lambda: AdamW(betas=0.9), "betas"),
        (lambda: AdamW(eps=-1), "eps"),
        (lambda: AdamW(weight_decay=np.inf), "weight_decay"),
        (lambda: AdamW(decay=[1]), "decay"),
        (lambda: Muon(3), "names"),
        (lambda: Muon(["a"], momentum=1), "momentum"),
        (lambda: Muon(["a"], lr_scale=np.nan), "lr_scale"),
    ],
)
def test_settings_that_make_no_sense_are_named(make, fault):
    with pytest.raises(RefgptError, match=f"^{fault}: "):
        make()
