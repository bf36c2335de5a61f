"""How long running streams wait while long prompts arrive, and what the arrivals cost in all.

A pass gives every stream its token and reads some rows of the prompts that have come. So the time between two tokens of
a stream is that of such a pass: it is compared with passes of that shape, made in turn with the scheduler's. The whole
work is compared with plain batches: the prompts read without anybody beside them, and then the texts written together.
"""

from __future__ import annotations

import time
from statistics import median, quantiles
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.quick import QUICK, WIDTHS, rounds, sized
from refgpt import GenerationParams, ModelConfig, Scheduler
from refgpt.generation.loop import generate
from refgpt.generation.reading import ROWS_BESIDE
from refgpt.runtime import Runtime
from refgpt.spec.gptj import Params, leaf_shapes

# GPT-J-6B's width and four of its blocks.
WIDE = ModelConfig(n_layer=sized(4, 1), **WIDTHS)
N_STREAMS, N_PROMPTS = 8, sized(3, 1)
N_SHORT, N_LONG, N_NEW = sized((32, 2000, 16), (8, 200, 4))  # tokens
#: The most that a stream waits, in passes with a full batch of chunks.
MOST = 1.6


@pytest.fixture(scope="module")
def wide() -> Any:
    block = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(np.float16) * np.float16(0.02)
    leaves = {
        name: np.resize(block, shape) if len(shape) > 1 else np.ones(shape, np.float16) * np.float16(0.1)
        for name, shape in leaf_shapes(WIDE).items()
    }
    engine = Runtime(Params.from_leaves(leaves, WIDE.n_layer), WIDE, dtype="q4", kv_dtype="f16")
    return SimpleNamespace(engine=engine, tokenizer=None, mask="causal")


def prompt(n: int, i: int) -> list[int]:
    """Some ids, of each prompt others."""
    return [1 + (7 * i + j) % 50000 for j in range(n)]


def seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def greedy(n: int) -> GenerationParams:
    return GenerationParams(max_new_tokens=n, temperature=0, ignore_eos=True)


def test_streams_beside_long_prompts(benchmark, wide):
    """The time between two tokens of running streams while prompts of 2000 tokens arrive."""
    session = wide.engine.session(N_STREAMS + 1, N_LONG)
    for slot in range(N_STREAMS):
        session.prefill(slot, prompt(N_SHORT, slot))
    chunk = [(N_STREAMS, prompt(ROWS_BESIDE, 99), 0)]

    def full_pass() -> None:
        session.step([*((slot, [5], 0) for slot in range(N_STREAMS)), *chunk])

    def plain_pass() -> None:
        session.decode(list(range(N_STREAMS)), [5] * N_STREAMS)

    def reset() -> None:
        session.release(N_STREAMS)
        for slot in range(N_STREAMS):
            session.truncate(slot, N_SHORT)

    def once() -> tuple[list[float], list[float], list[float]]:
        scheduler = Scheduler(wide, N_STREAMS + N_PROMPTS, 4 << 30)
        for i in range(N_STREAMS):
            scheduler.add(prompt(N_SHORT, i), greedy(N_LONG - N_SHORT))
        while scheduler.step():
            if scheduler.n_waiting == 0 and all(not task.reads for task in scheduler._running):
                break
        waits, full, plain = [], [], []
        long_ones = {scheduler.add(prompt(N_LONG, 100 + i), greedy(1)) for i in range(N_PROMPTS)}
        while long_ones:
            start = time.perf_counter()
            events = scheduler.step()
            waits.append(time.perf_counter() - start)
            assert len([event for event in events if event.seq < N_STREAMS]) == N_STREAMS  # nobody is left out
            long_ones -= {event.seq for event in events if event.finish_reason}
            if len(waits) % 4 == 0:
                full.append(seconds(full_pass))
                plain.append(seconds(plain_pass))
                reset()
        return waits, full, plain

    full_pass()
    reset()
    found = benchmark.pedantic(lambda: [once() for _ in range(rounds(2))], rounds=1)
    waits, full, plain = (sorted(one for each in found for one in each[i]) for i in range(3))
    late = quantiles(waits, n=20)[-1]
    ratios = {"median": median(waits) / median(full), "19 of 20": late / median(full)}
    benchmark.extra_info.update(
        {
            "what": "streams beside prompts of 2000",
            "wait over a full pass": ratios,
            "full pass over a plain one": median(full) / median(plain),
        }
    )
    assert QUICK or ratios["median"] <= MOST


def test_arrivals_against_plain_batches(benchmark, wide):
    """Tokens a second of texts that come while others are written, over those of the same work in plain batches."""
    short, long = greedy(N_NEW), greedy(2)

    def arriving() -> None:
        scheduler = Scheduler(wide, N_STREAMS + N_PROMPTS, 4 << 30)
        for i in range(N_STREAMS):
            scheduler.add(prompt(N_SHORT, i), short)
        scheduler.step()
        for i in range(N_PROMPTS):
            scheduler.add(prompt(N_LONG, 100 + i), long)
        while scheduler.busy:
            scheduler.step()

    def plain() -> None:
        generate(wide, [prompt(N_LONG, 100 + i) for i in range(N_PROMPTS)], long)
        generate(wide, [prompt(N_SHORT, i) for i in range(N_STREAMS)], short)

    arriving()
    found = benchmark.pedantic(lambda: [(seconds(arriving), seconds(plain)) for _ in range(rounds(3))], rounds=1)
    ratio = median(other / one for one, other in found)
    benchmark.extra_info.update({"what": "arrivals against plain batches", "rate over plain batches": ratio})
