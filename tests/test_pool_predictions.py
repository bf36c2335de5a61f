"""What benchmarks.pool predicts of more cores, checked by hand, and that it measures the passes of the engine."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.pool import Call, Measured, Pass, join_of, predicted, recorded
from refgpt.runtime import Runtime
from tests.helpers.tiny import random_params, tiny_config

PRODUCT, NORM = Call(True, 8.0, 8), Call(False, 1.0, 1)
PASS = Pass((NORM, PRODUCT, Call(False, 4.0, 2)), outside=0.5, n_bytes=40)


@pytest.fixture(scope="module")
def engine() -> Runtime:
    config = tiny_config()
    return Runtime(random_params(config, seed=1), config, threads=1)


@pytest.mark.parametrize(("threads", "seconds"), [(1, 8.0), (2, 4.0), (3, 3.0), (7, 2.0), (8, 1.0), (64, 1.0)])
def test_a_call_takes_as_long_as_the_thread_with_most_pieces(threads: int, seconds: float):
    assert PRODUCT.ideal(threads) == seconds


def test_what_no_second_thread_can_shorten():
    assert PASS.serial_share == 1.5 / 13.5


@pytest.mark.parametrize(
    ("threads", "bandwidth", "seconds"),
    [
        (1, 1.0, 13.5),  # all of it was measured
        (2, 1e9, 0.5 + 1 + 4 + 2 + 2 * 0.1),  # two calls can be cut
        (8, 1e9, 0.5 + 1 + 1 + 2 + 2 * 0.7),  # 40 bytes are read within 1 s by 8 threads
        (8, 20.0, 0.5 + 1 + 2 + 2 + 2 * 0.7),  # but not by this memory
        (16, 1e9, 0.5 + 1 + 1 + 2 + 2 * 1.5),  # more threads than pieces cost, and gain nothing
    ],
)
def test_a_pass_is_its_calls_and_what_lies_between(threads: int, bandwidth: float, seconds: float):
    assert predicted(PASS, threads, join=0.1, read=5.0, bandwidth=bandwidth) == pytest.approx(seconds)


def test_the_cost_of_a_further_thread_is_the_median_of_what_was_measured():
    assert join_of({2: 1.0, 4: 6.0, 8: 700.0}) == 2.0
    assert join_of({2: -1.0, 4: -3.0, 8: 7.0}) == 0.0


@pytest.mark.parametrize("n_rows", [1, 20])
def test_the_recorded_calls_are_the_engines_pass(engine: Runtime, n_rows: int):
    ids = [3 * i % 60 for i in range(n_rows)]
    program, logits = recorded(engine, 3, ids)
    program.run(3)
    assert (logits[-1] == engine.session(1, n_rows).prefill(0, ids)).all()


def test_a_pass_is_cut_for_its_threads(engine: Runtime):
    one = Measured(engine, 20)
    few, many = one.cut(1), one.cut(64)
    assert [call.seconds for call in few.calls] == [call.seconds for call in many.calls] == one.times
    assert min(one.times) >= 0 <= few.outside and few.n_bytes == engine.bytes_per_token
    assert sum(call.reads_weights for call in few.calls) >= 4 * engine.config.n_layer + 1
    assert all(b.pieces >= a.pieces for a, b in zip(few.calls, many.calls, strict=True))
    assert np.isclose(predicted(few, 1, 1.0, 1.0, 1.0), few.outside + sum(one.times))
