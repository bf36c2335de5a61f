"""Speed and memory of training at fixed shapes, and the same in PyTorch beside it.

    python -m benchmarks.training [CASE ...] [--steps 3] [--rounds 3] [--threads 2] [--torch PYTHON]

Each run is a process of its own, so that its largest resident memory is that of the training alone. With ``--torch``
the Python named there, which needs torch and NumPy only, takes turns with this one, so that both see the same machine;
what is reported is the ratio of medians. Processor time is that of all threads together: on a busy machine it says more
than the time on the clock. Weights are random: speed depends on shapes alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks.memory import peak_bytes
from benchmarks.quick import rounds, sized
from refgpt import ModelConfig, training
from refgpt.kernels import pack
from refgpt.numbers.dtypes import Compute
from refgpt.numbers.packing import kept_kind
from refgpt.numbers.panels import BLOCK_BYTES, Panels, panel_shape
from refgpt.runtime import Runtime
from refgpt.spec.gptj import Params, leaf_shapes

TORCH = Path(__file__).parent / "peers" / "torch_training.py"


@dataclass(frozen=True)
class Case:
    """What is trained: a model's shape, what its matrices are kept in, and the texts of a step.

    Attributes
    ----------
    shape : dict of str to int
        Keyword arguments of the configuration.
    n_texts, n_tokens : int
        Of a step.
    rank : int or None
        Of an adapter of q and v; None trains all weights.
    dtype : str
        Of the matrices.
    recompute : bool
        Whether blocks are computed again in the backward pass.
    compute : str
        What the factors of products are rounded to.
    torch : tuple of str
        What PyTorch computes in, where it can do the same; it has no training on weights of 4 bits on a processor.
    """

    shape: dict[str, int]
    n_texts: int
    n_tokens: int
    rank: int | None = None
    dtype: str = "f32"
    recompute: bool = False
    compute: Compute = "f32"
    torch: tuple[str, ...] = ("float32",)


SMALL = sized(
    {"n_layer": 6, "n_head": 4, "d_model": 256, "d_ff": 1024, "d_rotary": 32, "n_vocab": 4096, "n_ctx": 256},
    {"n_layer": 1, "n_head": 2, "d_model": 32, "d_ff": 128, "d_rotary": 8, "n_vocab": 256, "n_ctx": 256},
)
WIDE = sized(
    {"n_layer": 2, "n_head": 16, "d_model": 4096, "d_ff": 16384, "d_rotary": 64, "n_vocab": 4096, "n_ctx": 2048},
    SMALL | {"n_layer": 2},
)
GPTJ = sized(WIDE | {"n_layer": 28, "n_vocab": 50400}, WIDE)
N_TEXTS, N_TOKENS, N_MORE = sized((16, 256, 512), (2, 16, 32))
CASES = {
    "small": Case(SMALL, N_TEXTS, N_TOKENS),
    "small-bf16": Case(SMALL, N_TEXTS, N_TOKENS, compute="bf16", torch=("float32", "autocast")),
    "lora": Case(WIDE, 1, N_TOKENS, rank=8),
    "lora-bf16": Case(WIDE, 1, N_TOKENS, rank=8, dtype="bf16", compute="bf16", torch=("float32", "bfloat16")),
    "qlora": Case(WIDE, 1, N_TOKENS, rank=8, dtype="q4", torch=("bfloat16",)),
    "qlora-bf16": Case(WIDE, 1, N_TOKENS, rank=8, dtype="q4", compute="bf16", torch=("bfloat16",)),
    "gptj-6b": Case(GPTJ, 1, N_TOKENS, rank=8, dtype="q4", recompute=True, torch=()),
    "gptj-6b-512": Case(GPTJ, 1, N_MORE, rank=8, dtype="q4", recompute=True, torch=()),
    "gptj-6b-bf16": Case(GPTJ, 1, N_TOKENS, rank=8, dtype="q4", recompute=True, compute="bf16", torch=()),
}


def random(*shape: int) -> np.ndarray:
    """A block of small numbers, repeated."""
    block = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * np.float32(0.02)
    return np.resize(block, shape)


def leaf_of(name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray | Panels:
    """Random weights: of few bits any integers, with scales that make them as large as the others."""
    if name.endswith("ln_w"):
        return np.ones(shape, np.float32)
    kind = kept_kind(name, dtype) if len(shape) == 2 else None
    if kind not in BLOCK_BYTES:
        if name == "wte" or len(shape) == 1:
            return random(*shape)
        return pack(random(*shape), Panels.zeros("bf16", *shape) if dtype == "bf16" else None)
    panels = Panels.zeros(kind, *shape)
    some = np.random.default_rng(0).integers(0, 256, (1, *panel_shape(kind, 16 * 64, 32 * 16)[1:]), np.uint8)
    some[..., -32:] = np.full(16, 0.02 / {"q8": 74, "q4": 4.6, "q3": 2.3}[kind], np.float16).view(np.uint8)
    for start in range(0, panels.data.shape[1], some.shape[1]):
        part = panels.data[:, start : start + some.shape[1]]
        part[...] = some[:, : part.shape[1]]
    return panels


def model_of(case: Case, threads: int) -> Any:
    """A model without files, as far as training asks for one."""
    config = ModelConfig(**case.shape, bos_id=None, eos_id=None)
    leaves = {name: leaf_of(name, shape, case.dtype) for name, shape in leaf_shapes(config).items()}
    engine = Runtime(Params.from_leaves(leaves, config.n_layer), config, threads=threads, compute=case.compute)
    checkpoint = SimpleNamespace(params=engine.params, config=config)
    return SimpleNamespace(engine=engine, checkpoint=checkpoint, tokenizer=None, config=config)


def work(case: Case, steps: int, threads: int) -> dict[str, float]:
    """Train for some steps after one to warm up; for no more than that one, if there are none."""
    model = model_of(case, threads)
    if case.rank:
        training.new_adapter(model, rank=case.rank, alpha=16, targets="q,v")
    trainer = training.Trainer(model, training.AdamW(), recompute=case.recompute)
    ids = np.random.default_rng(0).integers(0, case.shape["n_vocab"], (case.n_texts, case.n_tokens))
    seconds, processor = [], []
    for _ in range(steps + 1):
        start, start_processor = time.perf_counter(), time.process_time()
        loss = trainer.step([training.Batch(ids, ids)], 1e-4).loss
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - start_processor)
    return {
        "seconds": median(seconds[min(1, steps) :]),
        "processor": median(processor[min(1, steps) :]),
        "peak": peak_bytes() or 0,
        "loss": loss,
    }


def run(command: list[str]) -> dict[str, float]:
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, float] = json.loads(answer.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=f"of {', '.join(CASES)}; all")
    parser.add_argument("--steps", type=int, default=rounds(3), help="measured in a process, after one; 0: that one")
    parser.add_argument("--rounds", type=int, default=rounds(3), help="processes of each engine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--torch", metavar="PYTHON", help="another Python, with torch and NumPy")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(work(CASES[args.cases[0]], args.steps, args.threads)))
        return
    for name in args.cases or CASES:
        case, taken = CASES[name], dict[str, list[dict[str, float]]](refgpt=[])
        own = [sys.executable, "-m", "benchmarks.training", name, "--worker"]
        own += ["--steps", str(args.steps), "--threads", str(args.threads)]
        asked = {"shape": case.shape, "texts": case.n_texts, "tokens": case.n_tokens, "rank": case.rank}
        asked |= {"steps": args.steps, "threads": args.threads}
        for _ in range(args.rounds):
            taken["refgpt"].append(run(own))
            for dtype in case.torch if args.torch else ():
                found = run([args.torch, str(TORCH), json.dumps(asked | {"dtype": dtype})])
                taken.setdefault(f"torch {dtype}", []).append(found)
        rates: dict[str, float] = {}
        used: dict[str, float] = {}
        for engine, runs in taken.items():
            rates[engine] = case.n_texts * case.n_tokens / median(one["seconds"] for one in runs)
            peak = max(one["peak"] for one in runs) / 1e6
            used[engine] = median(one["processor"] for one in runs)
            told = f"{rates[engine]:9.1f} tokens/s, {used[engine]:7.2f} processor seconds a step, {peak:6.0f} MB"
            print(f"{name:16} {engine:15} {told}", flush=True)
        for engine in list(taken)[1:]:
            ratio, share = rates["refgpt"] / rates[engine], used[engine] / used["refgpt"]
            print(f"{name:16} {ratio:.2f} times as fast as {engine}, by processor time {share:.2f}", flush=True)


if __name__ == "__main__":
    main()
