"""Every op of the table, the active row of each, at GPT-J-6B's shapes."""

from __future__ import annotations

import time
from itertools import cycle
from statistics import median

import pytest
from cases import CASES, Call, row_sum

from benchmarks.peers.processors import build_peak, peaks
from benchmarks.quick import rounds, sized
from refgpt.kernels import active, check_threads, list_kernels

# OpenBLAS's threads keep their processors busy for some time after a product; the next call wants these.
PAUSE = sized(0.1, 0.0)


@pytest.fixture(scope="session")
def peak(tmp_path_factory) -> dict[str, float]:
    """What this machine's multipliers can do at best, in three tries; empty without a compiler."""
    program = build_peak(tmp_path_factory.mktemp("peak"), "native")
    tries = [peaks(program, check_threads(None)) for _ in range(rounds(3))]
    return {kind: max(one[kind] for one in tries) for kind in tries[0]}


def timed(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.mark.parametrize(("op", "shape"), [(op, shape) for op in CASES for shape in CASES[op]])
def test_kernel(benchmark, peak, op, shape):
    """Before each round the yardstick is measured once, so that both see the same machine.

    The yardstick is NumPy's product of the same matrices where there is one, else reading as many bytes. What is bound
    by arithmetic and has no NumPy beside it is compared with the multipliers' peak.
    """
    work = CASES[op][shape]()
    yardsticks = cycle([work.numpy]) if work.numpy else row_sum(work.n_bytes).calls
    beside = []

    def set_up():
        beside.append(timed(next(yardsticks)))
        if work.numpy:
            time.sleep(PAUSE)
        return (next(work.calls),), {}

    n_rounds = rounds(5 if work.arithmetic else 15)
    benchmark.pedantic(lambda call: call(), setup=set_up, rounds=n_rounds, warmup_rounds=1)
    seconds, other = median(benchmark.stats.stats.data), median(beside[1:])
    figures = {"op": op, "isa": active(op).isa, "shape": shape, "milliseconds": seconds * 1e3}
    figures |= {"operations": work.n_ops, "bytes": work.n_bytes, "seconds": seconds}
    if work.arithmetic:
        figures |= {"GOP/s": work.n_ops / seconds / 1e9}
        if work.numpy:
            figures |= {"NumPy GOP/s": work.n_ops / other / 1e9, "share": other / seconds}
        elif peak:
            rate = peak.get("int8" if op.startswith("linear_q") else "float32", 0.0)
            if rate:
                figures |= {"peak GOP/s": rate, "share": work.n_ops / seconds / 1e9 / rate}
    else:
        figures |= {
            "GB/s": work.n_bytes / seconds / 1e9,
            "read GB/s": work.n_bytes / other / 1e9,
            "share": other / seconds,
        }
    benchmark.extra_info.update(figures)


def test_the_table_is_measured_whole():
    assert set(CASES) == {kernel.op for kernel in list_kernels()}
