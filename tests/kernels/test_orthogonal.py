"""Newton-Schulz in kernels: the bits of ``linear`` and of NumPy's elementwise operations; only one half of what is
symmetric is computed."""

from dataclasses import replace

import numpy as np
import pytest

from refgpt import kernels
from refgpt._common.errors import KernelError
from refgpt.kernels import force_isa, gram, list_kernels, newton_schulz, orthogonalised, pack
from refgpt.numbers.panels import Panels
from refgpt.training.optimiser import NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS
from tests.kernels.test_arguments import fixed

ISAS = sorted({kernel.isa for kernel in list_kernels() if not kernel.obstacle})
#: Around panels, groups of three of them, chunks, and the 256 rows that are worked on together.
SHAPES = [(9, 9), (1, 40), (33, 70), (70, 33), (100, 129), (259, 261)]


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape).astype(np.float32)


def product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return kernels.linear(np.ascontiguousarray(x), pack(np.ascontiguousarray(w)), threads=1)


def in_steps(x: np.ndarray) -> np.ndarray:
    """``orthogonalised`` by its formula, every product computed whole by ``linear``."""
    a, b, c = NEWTON_SCHULZ
    y = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = product(y, y)
        y = a * y + product(b * square + c * product(square, square.T), y.T)
    return np.ascontiguousarray(y.T if x.shape[0] > x.shape[1] else y)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bits_are_those_of_whole_products(shape):
    x = numbers(0, *shape)
    x /= np.sqrt((x * x).sum())
    want = in_steps(x).tobytes()
    for isa in ISAS:
        with force_isa(isa):
            for threads in (1, 2, 3):
                assert orthogonalised(x, NEWTON_SCHULZ, NEWTON_SCHULZ_STEPS, threads=threads).tobytes() == want


@pytest.mark.parametrize("isa", ISAS)
def test_products_of_rows_with_each_other_are_symmetric_to_the_bit(isa):
    with force_isa(isa):
        for m, n in SHAPES:
            x = numbers(1, m, n)
            whole = product(x, x)
            assert whole.tobytes() == whole.T.tobytes()
            assert gram(pack(x)).rows(0, m).tobytes() == whole.tobytes()


GOOD = {
    gram: lambda: {"x": pack(numbers(0, 20, 7)), "base": pack(numbers(1, 20, 20)), "out": pack(numbers(2, 20, 20))},
    newton_schulz: lambda: {
        "s": pack(numbers(0, 20, 20)),
        "columns": pack(numbers(1, 7, 20)),
        "of_x": 3.0,
        "out": (pack(numbers(2, 7, 20)), pack(numbers(3, 20, 7))),
    },
}
CHANGES = {
    "never packed": lambda x: x.rows(0, x.n_out),
    "of float16": lambda x: Panels.zeros("f16", *x.shape),
    "too wide": lambda x: Panels.zeros("f32", x.n_out, x.n_in + 1),
    "too tall": lambda x: Panels.zeros("f32", x.n_out + 16, x.n_in),
}
FAULTS = [
    *((gram, name, CHANGES[what]) for name in ("x", "base", "out") for what in ("never packed", "of float16")),
    *((gram, name, CHANGES[what]) for name in ("base", "out") for what in ("too wide", "too tall")),
    *((newton_schulz, name, change) for name in ("s", "columns") for change in CHANGES.values()),
    *((newton_schulz, "out", lambda out, change=change: (change(out[0]), out[1])) for change in CHANGES.values()),
    *((newton_schulz, "out", lambda out, change=change: (out[0], change(out[1]))) for change in CHANGES.values()),
    (gram, "out", lambda out: replace(out, data=fixed(out.data))),
    (newton_schulz, "out", lambda out: (out[0], replace(out[1], data=fixed(out[1].data)))),
]


@pytest.mark.parametrize(("call", "name", "change"), FAULTS)
def test_unusable_panels_are_refused(call, name, change):
    arguments = GOOD[call]()
    call(**arguments, threads=2)
    with pytest.raises(KernelError):
        call(**arguments | {name: change(arguments[name])}, threads=2)


def test_results_overlap_no_input():
    square, columns = pack(numbers(0, 16, 16)), pack(numbers(1, 16, 16))
    for call in (
        lambda: gram(square, out=square),
        lambda: gram(columns, square, out=square),
        lambda: newton_schulz(square, columns, 1.0, (columns, square)),
        lambda: newton_schulz(square, columns, 1.0, (pack(numbers(2, 16, 16)), columns)),
        lambda: newton_schulz(square, columns, 1.0, 2 * (pack(numbers(2, 16, 16)),)),
    ):
        with pytest.raises(KernelError, match="overlaps"):
            call()


def test_factors_without_a_base_are_refused():
    square = pack(numbers(0, 16, 16))
    for factors in ((2.0, 1.0), (1.0, 2.0)):
        with pytest.raises(KernelError, match="only with a base"):
            gram(square, None, *factors)
