"""Requests of HellaSwag's shape a minute: refgpt beside lm-eval's Hugging Face backend, on the same weights.

    python -m benchmarks.evaluating DIRECTORY [--layers 4] [--requests 200] [--rounds 2]

writes a checkpoint of GPT-J's width with random weights into DIRECTORY, if it is not there, and scores requests of
random ids: questions of 20 to 100 tokens with four endings of 10 to 40 tokens each. All ways get the same ids, and each
has its turn in every round. lm-eval's backend needs PyTorch and transformers beside the extra "eval"; without them it
is left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

import refgpt
from benchmarks.peers.checkpoint import gptj_config, write_checkpoint
from benchmarks.quick import rounds, sized
from refgpt.evaluation.answering import answers
from refgpt.evaluation.requests import Likelihoods

N_ENDINGS = 4
#: Log-likelihoods of requests, one sum each.
Way = Callable[[Sequence[Likelihoods]], list[float]]


def questions(n_requests: int, n_vocab: int, seed: int = 0) -> list[Likelihoods]:
    """Questions of random ids, each with four endings."""
    rng = np.random.default_rng(seed)

    def ids(least: int, most: int) -> list[int]:
        return rng.integers(0, n_vocab, rng.integers(least, most + 1)).tolist()

    return [Likelihoods(ids(20, 100), [ids(10, 40) for _ in range(N_ENDINGS)]) for _ in range(n_requests // N_ENDINGS)]


def ours(path: Path, dtype: str, threads: int) -> Way:
    """refgpt with its weights in this dtype."""
    model = refgpt.load(path, dtype=dtype, threads=threads)
    return lambda asked: [value for answer in answers(model, asked) for value in answer.sums]


def theirs(path: Path, dtype: str, threads: int, batch_size: int) -> Way:
    """lm-eval's Hugging Face backend."""
    import torch
    from lm_eval.models.huggingface import HFLM
    from tokenizers import Tokenizer, models
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    bare = Tokenizer(models.WordLevel({"<|endoftext|>": 0}, unk_token="<|endoftext|>"))  # ids are given
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, device="cpu", max_length=2048)

    def run(asked: Sequence[Likelihoods]) -> list[float]:
        requests: list[Any] = [
            ((str(i), str(j)), one.prompt, ending)
            for i, one in enumerate(asked)
            for j, ending in enumerate(one.continuations)
        ]
        return [value for value, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare how fast requests of HellaSwag's shape are scored.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, default=sized(4, 1), help="of GPT-J's 28 (default: 4)")
    parser.add_argument("--requests", type=int, default=sized(200, 8), help="a multiple of four (default: 200)")
    parser.add_argument("--rounds", type=int, default=rounds(2), help="turns of each way (default: 2)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=1, help="of lm-eval's backend (default: 1, as lm-eval's)")
    parser.add_argument("--ways", default="refgpt q4,refgpt f16,hf bfloat16,hf float32", help="comma-separated")
    arguments = parser.parse_args()
    path = arguments.directory / f"gptj-{arguments.layers}-layers"
    if not (path / "model.safetensors").exists():
        write_checkpoint(path, gptj_config(arguments.layers), quiet=True)
    peers = all(find_spec(name) for name in ("torch", "transformers", "lm_eval"))
    ways: dict[str, Way] = {}
    for name in arguments.ways.split(","):
        engine, _, dtype = name.strip().partition(" ")
        if engine == "refgpt":
            ways[name] = ours(path, dtype, arguments.threads)
        elif peers:
            ways[name] = theirs(path, dtype, arguments.threads, arguments.batch_size)
    asked = questions(arguments.requests, 50257)
    times: dict[str, list[float]] = {name: [] for name in ways}
    processor: dict[str, list[float]] = {name: [] for name in ways}
    sums: dict[str, list[float]] = {}
    for way in ways.values():
        way(asked[:1])  # warm
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            start, used = time.perf_counter(), time.process_time()
            sums[name] = way(asked)
            times[name].append(time.perf_counter() - start)
            processor[name].append(time.process_time() - used)
    base = sums["hf float32"] if "hf float32" in sums else next(iter(sums.values()))
    print("| engine | requests a minute | processor seconds a request | largest difference in nats |")
    print("|---|---:|---:|---:|")
    for name, seconds in times.items():
        apart = max(abs(a - b) for a, b in zip(sums[name], base, strict=True))
        n = N_ENDINGS * len(asked)
        print(
            f"| {name} | {60 * n / median(seconds):.0f} | {median(processor[name]) / n:.3g} | {apart:.3g} |", flush=True
        )


if __name__ == "__main__":
    main()
