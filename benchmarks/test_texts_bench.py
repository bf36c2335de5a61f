"""Tokens a second where it depends on the text: many at once, long ones, ones that repeat themselves.

Ratios are of runs in turn on one machine, so that both sides see the same of it.
"""

from __future__ import annotations

import time
from statistics import median

import numpy as np
import pytest

import refgpt
from benchmarks.memory import STATUS, resident_bytes
from benchmarks.quick import QUICK, WIDTHS, rounds, sized
from refgpt import ModelConfig
from refgpt.generation.loop import generate
from refgpt.generation.params import GenerationParams
from refgpt.runtime import Runtime
from refgpt.spec.gptj import Params, leaf_shapes

# GPT-J-6B's width and two of its blocks: enough to be bound by what bounds the whole.
WIDE = ModelConfig(n_layer=2, **WIDTHS)
ROUNDS = rounds(5)
N_FAR, N_SHORT, N_LONG = sized((1900, 512, 2000), (90, 20, 100))  # tokens


@pytest.fixture(scope="module")
def wide() -> Runtime:
    block = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(np.float16) * np.float16(0.02)
    leaves = {
        name: np.resize(block, shape) if len(shape) > 1 else np.ones(shape, np.float16) * np.float16(0.1)
        for name, shape in leaf_shapes(WIDE).items()
    }
    return Runtime(Params.from_leaves(leaves, WIDE.n_layer), WIDE, dtype="q4", kv_dtype="f16")


def rate_of(session, seqs, n_steps, n_held) -> float:
    """Tokens a second of some steps, after which the sequences are as before."""
    start = time.perf_counter()
    for step in range(n_steps):
        session.decode(seqs, [step + 1] * len(seqs))
    seconds = time.perf_counter() - start
    for seq in seqs:
        session.truncate(seq, n_held)
    return n_steps * len(seqs) / seconds


def test_several_texts_at_once(benchmark, wide):
    """Each text more is more tokens a second, up to sixteen."""
    session, counts = wide.session(16, 64), (1, 2, 3, 4, 6, 8, 9, 10, 12, 14, 16)
    for seq in range(16):
        session.prefill(seq, list(range(seq + 1, seq + 33)))

    def sweep() -> dict[int, float]:
        return {n: rate_of(session, list(range(n)), 4, 32) for n in counts}

    sweep()
    rounds = benchmark.pedantic(lambda: [sweep() for _ in range(ROUNDS)], rounds=1)
    rates = {n: median(one[n] for one in rounds) for n in counts}
    benchmark.extra_info.update({"what": "several texts at once", "tokens/s by texts": rates})


def test_long_contexts(benchmark, wide):
    """A step after 1900 tokens beside a step after 32, and a prompt of 2000 beside one of 512."""
    near, far = wide.session(1, 64), wide.session(1, 2048)
    near.prefill(0, list(range(1, 33)))
    far.prefill(0, list(range(1, N_FAR + 1)))
    prompts = {n: wide.session(1, n) for n in (N_SHORT, N_LONG)}

    def prompt_rate(n: int) -> float:
        start = time.perf_counter()
        prompts[n].prefill(0, list(range(1, n + 1)))
        return n / (time.perf_counter() - start)

    def once() -> tuple[float, float]:
        steps = rate_of(near, [0], 8, 32) / rate_of(far, [0], 8, N_FAR)
        return steps, prompt_rate(N_LONG) / prompt_rate(N_SHORT)

    once()
    rounds = benchmark.pedantic(lambda: [once() for _ in range(ROUNDS)], rounds=1)
    cost, kept = (median(values) for values in zip(*rounds, strict=True))
    benchmark.extra_info.update(
        {"what": "long contexts", "step after 1900 over step after 32": cost, "rate of 2000 over rate of 512": kept}
    )


def test_a_cache_of_8_bits(benchmark, wide):
    """A step after 1900 tokens with keys and values in 8 bits, beside one in float16."""
    engines = wide, Runtime(wide.kept(), WIDE, kv_dtype="q8")
    sessions = [engine.session(1, 2048) for engine in engines]
    for session in sessions:
        session.prefill(0, list(range(1, N_FAR + 1)))

    def once() -> float:
        wide_rate, narrow_rate = (rate_of(session, [0], 8, N_FAR) for session in sessions)
        return narrow_rate / wide_rate

    once()
    gains = benchmark.pedantic(lambda: [once() for _ in range(ROUNDS)], rounds=1)
    benchmark.extra_info.update({"what": "a step after 1900 tokens, 8 bits over float16", "rate": median(gains)})


@pytest.mark.skipif(not STATUS.exists(), reason="needs Linux's table of memory")
def test_forks(benchmark, wide):
    """Resident memory that three forks of a long sequence take when each goes on apart, beside that of the sequence."""
    session, rows = wide.session(4, 2048), [(0, [1, 2, 3, 4], 0)]
    session.step(rows, [4])
    session.truncate(0, 0)  # what a pass of four rows needs is there
    session.prefill(0, list(range(1, N_FAR + 1)))
    before = resident_bytes()

    def fork() -> None:
        for _ in range(3):
            session.fork(0)
        session.decode([0, 1, 2, 3], [1, 2, 3, 4])

    benchmark.pedantic(fork, rounds=1)
    whole, forks = wide.cache_bytes(N_FAR), resident_bytes() - before
    what = {"what": "three forks of 1900 tokens", "MB of the sequence": whole / 1e6, "MB of the forks": forks / 1e6}
    benchmark.extra_info.update(what)
    assert QUICK or forks < whole / 8


class Wide:
    """What ``generate`` needs of a model."""

    tokenizer, mask = None, "causal"

    def __init__(self, engine: Runtime) -> None:
        self.engine = engine


@pytest.mark.parametrize("size", ["wide", "default"])
@pytest.mark.parametrize("kind", ["copies", "never repeats"])
def test_guessing(benchmark, wide, size, kind):
    """``speculate=7`` over ``speculate=0``: a text that copies, and one that never says anything twice."""
    model = Wide(wide) if size == "wide" else refgpt.load(dtype="q4", kv_dtype="f16")
    rng = np.random.default_rng(0)
    if kind == "copies":  # greedy, both models soon go round in circles
        prompt, settings = rng.integers(2, 4000, 8).tolist() * 4, {"temperature": 0.0}
    else:  # so hot that every token is as likely as another
        prompt, settings = rng.permutation(4000)[:64].tolist(), {"temperature": 1e6, "seed": 1}
    settings |= {"max_new_tokens": sized(64, 12), "ignore_eos": True}

    def timed(n: int) -> float:
        start = time.perf_counter()
        generate(model, [prompt], GenerationParams(speculate=n, **settings))
        return time.perf_counter() - start

    timed(0), timed(7)
    gains = benchmark.pedantic(lambda: [timed(0) / timed(7) for _ in range(ROUNDS)], rounds=1)
    benchmark.extra_info.update({"what": f"guessing, a text that {kind}, {size}", "gain": median(gains)})
