"""What it costs to look: tracing through the C kernels, beside a plain prompt and beside the specification.

A model of GPT-J-6B's width with few layers and random float16 weights. The head is left out of both sides of the first
comparison but for the one row that a prompt needs: a trace ends with the last activation that it is asked for.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import pytest

from benchmarks.quick import QUICK, WIDTHS, rounds, sized
from refgpt import ModelConfig
from refgpt.runtime import Runtime
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec.gptj import Params, leaf_shapes
from refgpt.tracing import record

CONFIG = ModelConfig(n_layer=2, **WIDTHS)
#: Tokens of a text: GPT-J's prompts and, where reading the weights is what takes the time, a sentence.
LENGTHS = sized((512, 16), (24, 4))
NAMES = "blocks.*.resid_post"
MOST_OVERHEAD = 0.15


def random_params() -> Params:
    block = (np.random.default_rng(0).random(1 << 20, np.float32) - np.float32(0.5)).astype(np.float16)
    leaves = {
        name: np.resize(block / np.float16(32 if len(shape) == 2 else 4), shape).astype(np.float16)
        for name, shape in leaf_shapes(CONFIG).items()
    }
    return Params.from_leaves(leaves, CONFIG.n_layer)


@pytest.fixture(scope="module")
def params() -> Params:
    return random_params()


@pytest.fixture(scope="module")
def engine(params) -> Runtime:
    return Runtime(params, CONFIG)


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


@pytest.mark.parametrize("n", LENGTHS)
def test_recording_beside_a_plain_prompt(benchmark, engine, n):
    """The residual stream of all layers; the plain prompt is timed before every round."""
    ids = np.random.default_rng(n).integers(0, CONFIG.n_vocab, n)
    session, plain = engine.session(1, n), []
    session.prefill(0, ids)

    def prompt():
        plain.append(seconds(lambda: session.prefill(0, ids)))

    trace = benchmark.pedantic(record, (engine, ids, 0, NAMES), setup=prompt, rounds=rounds(5), warmup_rounds=1)
    assert [x.shape for x in trace.values()] == [(n, CONFIG.d_model)] * CONFIG.n_layer
    share = benchmark.stats.stats.median / median(plain) - 1
    benchmark.extra_info.update(
        {"what": f"trace {NAMES} of {n} tokens", "over a prompt": share, "prompt seconds": median(plain)}
    )
    assert QUICK or share <= MOST_OVERHEAD


@pytest.mark.parametrize("n", LENGTHS)
def test_recording_beside_the_specification(benchmark, engine, params, n):
    """The same trace of the same float16 weights by the NumPy specification, once."""
    ids = np.random.default_rng(n).integers(0, CONFIG.n_vocab, n)
    spec = SpecEngine(params, CONFIG)
    slow = seconds(lambda: record(spec, ids, 0, NAMES))
    benchmark.pedantic(record, (engine, ids, 0, NAMES), rounds=rounds(3), warmup_rounds=1)
    speedup = slow / benchmark.stats.stats.median
    benchmark.extra_info.update(
        {"what": f"trace {NAMES} of {n} tokens", "times the spec's speed": speedup, "spec seconds": slow}
    )
