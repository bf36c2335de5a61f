"""What choosing the next token costs beside computing its logits: filters, constraints, beams.

The aims, at GPT-J's 50,400 rows and on a machine where a step of GPT-J-6B in 4 bits takes 100 ms: at most 3 ms for any
common setting, at most 2 ms for the mask of a constraint, and four beams at most 1.4 times four texts. Milliseconds are
processor time, which other programs change little.
"""

from __future__ import annotations

import time
from random import Random
from statistics import median
from typing import Any

import numpy as np
import pytest

import refgpt
from benchmarks.quick import WIDTHS, rounds, sized
from refgpt import ModelConfig
from refgpt.generation import GenerationParams, generate
from refgpt.generation.matching import ConstraintMatcher
from refgpt.generation.sampling import Sampler, SamplingParams
from refgpt.runtime import Runtime
from refgpt.spec.gptj import Params, leaf_shapes
from refgpt.tokenizers import Tokenizer

#: GPT-J-6B's width and two of its 28 blocks. The head is as large as a block.
WIDE = ModelConfig(n_layer=2, **WIDTHS)
N_ROWS, N_TOKENS = sized((50400, 50257), (600, 500))
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.9},
    "top_k and top_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.9},
    "cutoffs": {"epsilon_cutoff": 3e-4, "eta_cutoff": 3e-4},
    "penalties and top_p": {
        "temperature": 0.7,
        "top_p": 0.9,
        "repetition_penalty": 1.15,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.1,
    },
    "n-grams": {"temperature": 0, "no_repeat_ngram_size": 3},
    "mesh": {"sampler": "mesh", "top_k": 40, "top_p": 0.9},
    "log-probabilities": {"temperature": 0.8, "top_p": 0.9, "logprobs": 5},
}


@pytest.mark.parametrize("settings", SETTINGS)
def test_sampling(benchmark, settings):
    """A token after 1000 others. "few": some hundred tokens have most of the probability; "many": some thousand."""
    rng = np.random.default_rng(0)
    zipf = rng.permutation(-1.4 * np.log(1 + np.arange(N_ROWS)) + rng.standard_normal(N_ROWS)).astype(np.float32)
    normal = (2.5 * rng.standard_normal(N_ROWS)).astype(np.float32)
    exists, text = np.ones(N_TOKENS, bool), rng.integers(0, N_TOKENS, 1000).tolist()

    def once(row: np.ndarray) -> float:
        sampler = Sampler(SamplingParams(seed=1, **SETTINGS[settings]), text, exists)
        sampler.choose(row)
        start = time.thread_time()
        sampler.choose(row)
        return 1e3 * (time.thread_time() - start)

    found = benchmark.pedantic(lambda: [(once(zipf), once(normal)) for _ in range(rounds(30))], rounds=1)
    few, many = (median(values) for values in zip(*found, strict=True))
    benchmark.extra_info.update({"what": f"sampling, {settings}", "ms a token, few": few, "ms a token, many": many})


class Words(Tokenizer):
    """As many made-up words as GPT-J has tokens."""

    def __init__(self) -> None:
        rng, words = Random(0), dict.fromkeys(bytes([i]) for i in range(256))
        while len(words) < N_TOKENS - 1:
            letters = "abcdefghijklmnopqrstuvwxyz" if rng.random() < 0.85 else '0123456789{}[]":,.-'
            words[(rng.choice(["", " "]) + "".join(rng.choices(letters, k=rng.randint(1, 8)))).encode()] = None
        super().__init__({**dict(enumerate(words)), len(words): b"<end>"}, eos_id=len(words))

    def _encode(self, text: str, special: bool = True) -> list[int]:
        raise NotImplementedError


@pytest.mark.parametrize("kind", ["schema", "any JSON", "regex"])
def test_masks(benchmark, kind):
    """The mask of each step of random texts under a constraint, with what it takes to follow the text."""
    pytest.importorskip("llguidance", reason="needs the extra [constrain]")
    properties = {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["old", "green", "small"]}},
        "home": {"type": "object", "properties": {"street": {"type": "string"}, "code": {"pattern": "^[A-Z]{2}\\d+$"}}},
    }
    constraint = {
        "schema": lambda: refgpt.json_schema({"properties": properties, "required": [*properties], "type": "object"}),
        "any JSON": lambda: refgpt.json_schema({}),
        "regex": lambda: refgpt.regex(r"[A-Z][a-z]+( [a-z]+){3,60}[.!?]"),
    }[kind]()
    tokenizer = Words()
    start = time.thread_time()
    ConstraintMatcher(constraint, tokenizer, {tokenizer.eos_id}).possible([])
    first = 1e3 * (time.thread_time() - start)

    def steps(seed: int) -> list[float]:
        rng, ids, spent = Random(seed), list[int](), list[float]()
        matcher = ConstraintMatcher(constraint, tokenizer, {tokenizer.eos_id})
        for _ in range(sized(60, 8)):
            start = time.thread_time()
            possible = matcher.possible(ids)
            spent.append(1e3 * (time.thread_time() - start))
            following = np.flatnonzero(possible[:-1])
            if not len(following):
                break
            ids.append(int(rng.choice(following)))
        return spent

    found = benchmark.pedantic(lambda: [ms for seed in range(rounds(20)) for ms in steps(seed)], rounds=1)
    benchmark.extra_info.update(
        {
            "what": f"masks, {kind}",
            "ms a step": median(found),
            "ms, 99 of 100 steps": float(np.quantile(found, 0.99)),
            "ms before the first": first,
        }
    )


class Wide:
    """What ``generate`` needs of a model."""

    tokenizer, mask = None, "causal"

    def __init__(self) -> None:
        block = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(np.float16) * np.float16(0.02)
        leaves = {
            name: np.resize(block, shape) if len(shape) > 1 else np.ones(shape, np.float16) * np.float16(0.1)
            for name, shape in leaf_shapes(WIDE).items()
        }
        self.engine = Runtime(Params.from_leaves(leaves, WIDE.n_layer), WIDE, dtype="q4", kv_dtype="f16")


def test_beams(benchmark):
    """Four beams over four texts in a batch, in a model of two blocks: what a step costs besides counts most there."""
    model, n_new = Wide(), sized(32, 4)
    prompts = [[i + 1] * sized(32, 4) for i in range(4)]

    def timed(prompts: list[list[int]], **asked: Any) -> float:
        start = time.perf_counter()
        generate(model, prompts, GenerationParams(max_new_tokens=n_new, ignore_eos=True, **asked))
        return time.perf_counter() - start

    def ratio() -> float:
        return timed(prompts[:1], num_beams=4) / timed(prompts, temperature=0)

    ratio()
    found = benchmark.pedantic(lambda: [ratio() for _ in range(rounds(5))], rounds=1)
    benchmark.extra_info.update({"what": "four beams over four texts", "ratio": median(found)})
