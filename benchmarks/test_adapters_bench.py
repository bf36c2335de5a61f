"""What it costs that the texts of one decode step have different adapters, over a step of the base alone.

Processor time of steps in turn, in blocks of GPT-J-6B's width in 4 bits. The adapters have rank 8: those of queries and
values, which ``refgpt finetune`` trains by default, and those of all matrices.
"""

from __future__ import annotations

import time
from copy import copy
from statistics import median
from typing import Any

import numpy as np
import pytest

from benchmarks.quick import WIDTHS, rounds, sized
from refgpt import ModelConfig
from refgpt.checkpoints.adapters import Pair
from refgpt.runtime import Runtime
from refgpt.spec.gptj import Params, leaf_shapes
from refgpt.training.lora import attach

WIDE = ModelConfig(n_layer=sized(4, 1), **WIDTHS)
TARGETS = {"queries and values": ("wq", "wv"), "all matrices": ("wq", "wk", "wv", "wo", "w_in", "w_out")}
N_TEXTS, N_PROMPT, RANK = 8, sized(64, 8), 8
#: How many adapters the eight texts have.
N_ADAPTERS = {"none": 0, "one": 1, "four": 4, "each its own": 8}


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    block = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * np.float32(0.02)
    return np.resize(block, shape)


@pytest.fixture(scope="module")
def base() -> Runtime:
    leaves = {name: numbers(shape).astype(np.float16) for name, shape in leaf_shapes(WIDE).items()}
    return Runtime(Params.from_leaves(leaves, WIDE.n_layer), WIDE, dtype="q4", kv_dtype="f16")


def with_adapters(base: Runtime, kinds: tuple[str, ...]) -> Runtime:
    """The engine with eight adapters that are called by their numbers."""
    engine, adapters = copy(base), {}
    for number in range(N_TEXTS):
        one = adapters[str(number)] = copy(base)
        attach(
            one,
            {
                name: Pair(numbers((RANK, leaf.shape[1])), numbers((leaf.shape[0], RANK)), 2.0)
                for name, leaf in base.kept().items()
                if name.rpartition(".")[2] in kinds
            },
        )
    engine.adapters = adapters
    return engine


def session_of(engine: Runtime, n_adapters: int) -> Any:
    """Eight texts in progress, with this many adapters among them."""
    session = engine.session(N_TEXTS, N_PROMPT + 1)
    for slot in range(N_TEXTS):
        if n_adapters:
            session.use_adapter(slot, str(slot % n_adapters))
        session.prefill(slot, list(range(1, N_PROMPT + 1)))
    return session


def seconds(session: Any) -> float:
    """The processor time of a step of all texts."""
    start = time.process_time()
    session.decode(list(range(N_TEXTS)), [5] * N_TEXTS)
    spent = time.process_time() - start
    for slot in range(N_TEXTS):
        session.truncate(slot, N_PROMPT)
    return spent


@pytest.mark.parametrize("what", TARGETS)
def test_a_step_with_adapters_over_one_of_the_base(benchmark, base, what):
    """Eight texts: none with an adapter in an engine that has some, one for all, four, and each its own."""
    engine = with_adapters(base, TARGETS[what])
    sessions = {"base": session_of(base, 0), **{name: session_of(engine, n) for name, n in N_ADAPTERS.items()}}

    def once(turn: int) -> dict[str, float]:
        order = list(sessions) if turn % 2 else list(reversed(sessions))
        found = {name: seconds(sessions[name]) for name in order}
        return {name: found[name] / found["base"] for name in N_ADAPTERS}

    once(0)  # records the passes
    found = benchmark.pedantic(lambda: [once(turn) for turn in range(rounds(24))], rounds=1)
    ratios = {name: median(one[name] for one in found) for name in N_ADAPTERS}
    benchmark.extra_info.update({"what": what, "over a step of the base": ratios})
