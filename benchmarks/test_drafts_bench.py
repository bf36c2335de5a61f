"""Tokens a second with a draft model over those without, by how often the two agree.

The pairs have a known agreement: the draft model has the first 768 of the large one's 4096 columns and two narrow
blocks, and noise on its weights. The large model has GPT-J-6B's width in 4 bits and few blocks, which read and compute
per block what 6B's do. Texts are greedy and never repeat a token, so that neither runs in circles.

Ratios are of runs in turn on one machine, so that both sides see the same of it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.quick import WIDTHS, rounds, sized
from refgpt import ModelConfig, Scheduler
from refgpt.runtime import Runtime
from refgpt.spec.gptj import Params, leaf_shapes

LARGE = ModelConfig(n_layer=sized(4, 2), **WIDTHS)
SMALL = replace(LARGE, **sized({"n_layer": 2, "d_model": 768, "d_ff": 3072, "n_head": 12}, {"n_layer": 1}))
THREADS, N_NEW, N_PROMPT = 2, sized(96, 12), 16
#: How much of a token's embedding the head of the token after it has.
MARGINS = (0.17, 0.37)
#: The noise on the draft model's head, in units of its standard deviation.
NOISES = sized((0.0, 0.6, 0.9, 1.2, 1.6, 100.0), (0.0, 100.0))


def model_of(config: ModelConfig, table: np.ndarray, head: np.ndarray) -> Any:
    """A model whose blocks add little to the embeddings [v, d] that its head [v, d] reads."""
    block = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(np.float16) * np.float16(0.02)
    leaves = {
        name: np.resize(block, shape) if len(shape) > 1 else np.zeros(shape, np.float16)
        for name, shape in leaf_shapes(config).items()
    }
    leaves = {
        name: np.float16(0.01) * leaf if name.endswith(("wo", "w_out")) else leaf for name, leaf in leaves.items()
    }
    leaves |= {name: np.ones_like(leaf) for name, leaf in leaves.items() if name.endswith("ln_w") or name == "ln_f_w"}
    leaves |= {"wte": table.astype(np.float16, copy=False), "w_head": head.astype(np.float16, copy=False)}
    engine = Runtime(Params.from_leaves(leaves, config.n_layer), config, dtype="q4", kv_dtype="f16", threads=THREADS)
    return SimpleNamespace(engine=engine, tokenizer=None, mask="causal")


def widened(x: np.ndarray) -> np.ndarray:
    """Columns of zeros behind a matrix [v, 768], up to the large model's width."""
    return np.pad(x.astype(np.float16), ((0, 0), (0, LARGE.d_model - x.shape[1])))


@pytest.fixture(scope="module")
def models() -> tuple[Any, dict[float, Any]]:
    """The large model, and a draft model for each noise."""
    rng = np.random.default_rng(1)
    table, head, noise = (rng.standard_normal((LARGE.n_vocab, SMALL.d_model), np.float32) for _ in range(3))
    # After each token another is the likeliest, more or less clearly.
    head += rng.uniform(*MARGINS, (LARGE.n_vocab, 1)).astype(np.float32) * np.roll(table, 1, axis=0)
    drafts = {scale: model_of(SMALL, table, head + scale * noise) for scale in NOISES}
    return model_of(LARGE, widened(table), widened(head)), drafts


def timed(model: Any, draft: Any | None, seed: int) -> tuple[float, Scheduler, list[int]]:
    """Seconds of the tokens after the first, the scheduler that wrote them, and the text."""
    scheduler = Scheduler(model, 1, capacity=N_PROMPT + N_NEW, draft=draft)
    prompt = np.random.default_rng(seed).integers(0, LARGE.n_vocab, N_PROMPT).tolist()
    scheduler.add(prompt, max_new_tokens=N_NEW, temperature=0, ignore_eos=True, no_repeat_ngram_size=1)
    ids = [event.choice.id for event in scheduler.step()]
    start = time.perf_counter()
    while scheduler.busy:
        ids += [event.choice.id for event in scheduler.step()]
    return time.perf_counter() - start, scheduler, ids


@pytest.mark.parametrize("noise", NOISES)
def test_drafting(benchmark, models, noise):
    model, draft = models[0], models[1][noise]

    def once(seed: int) -> tuple[float, float, float]:
        plain, _, want = timed(model, None, seed)
        drafted, scheduler, ids = timed(model, draft, seed)
        assert ids == want
        n_passes = N_NEW - 1 - scheduler.n_accepted
        return plain / drafted, scheduler.n_accepted / max(1, scheduler.n_drafted), (N_NEW - 1) / n_passes

    once(0)
    found = benchmark.pedantic(lambda: [once(seed) for seed in range(rounds(3))], rounds=1)
    gain, share, per_pass = (median(values) for values in zip(*found, strict=True))
    cost = draft.engine.bytes_per_token / model.engine.bytes_per_token
    benchmark.extra_info.update(
        {
            "what": f"drafting, {share:.0%} accepted",
            "gain": gain,
            "accepted of drafted": share,
            "tokens per pass": per_pass,
            "bytes of the draft model over the model's": cost,
        }
    )
