"""Tokens a second of the default model, and how much memory it takes to load a larger one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import refgpt
from benchmarks.quick import QUICK, WIDTHS, rounds, sized
from refgpt import ModelConfig
from refgpt.spec.gptj import Params, leaf_shapes
from tests.helpers.writers import config_json, state_dict, write_safetensors, write_torch

N_NEW, N_PROMPT = sized((64, 256), (4, 24))


@pytest.fixture(scope="module")
def model() -> refgpt.Model:
    return refgpt.load()


@pytest.fixture(scope="module")
def prompt(model) -> list[int]:
    return np.random.default_rng(0).integers(0, model.config.n_vocab, N_PROMPT).tolist()


def record(benchmark, what: str, n_tokens: int) -> None:
    benchmark.extra_info.update({"what": what, "tokens/s": n_tokens / benchmark.stats.stats.median})


def test_prefill(benchmark, model, prompt):
    session = model.engine.session(1, N_PROMPT)
    benchmark.pedantic(session.prefill, (0, prompt), rounds=rounds(20), warmup_rounds=2)
    record(benchmark, f"prompt of {N_PROMPT} tokens", N_PROMPT)


@pytest.mark.parametrize("n_seqs", [1, 8])
def test_decode(benchmark, model, prompt, n_seqs):
    session = model.engine.session(n_seqs, N_PROMPT)
    seqs, tokens = list(range(n_seqs)), prompt[:n_seqs]

    def start():
        for seq in seqs:
            session.prefill(seq, prompt[:16])

    def write():
        for _ in range(N_NEW):
            session.decode(seqs, tokens)

    benchmark.pedantic(write, setup=start, rounds=rounds(10), warmup_rounds=1)
    record(benchmark, f"{N_NEW} tokens for {n_seqs} at once", N_NEW * n_seqs)


def test_generate(benchmark, model, prompt):
    """The whole way: sampling, stop conditions and text included."""
    generate = {"max_new_tokens": N_NEW, "temperature": 0.8, "top_k": 40, "seed": 1, "ignore_eos": True}
    benchmark.pedantic(model.generate, (prompt[:16],), generate, rounds=rounds(10), warmup_rounds=1)
    record(benchmark, f"generate: {N_NEW} tokens, sampled", N_NEW)


# ---- memory at load --------------------------------------------------------------------------------------------------

# 0.6 billion parameters, 1.2 GB in float16.
CONFIG = ModelConfig(**{"n_layer": 8, "d_model": 2048, "d_ff": 8192, "n_head": 16, "d_rotary": 64, **WIDTHS})

LOAD = """
import sys
import refgpt
from benchmarks.memory import peak_bytes
model = refgpt.load(sys.argv[1])
print(peak_bytes())
"""


def large_params() -> Params:
    block = np.random.default_rng(0).random(1 << 20, np.float32).astype(np.float16) - np.float16(0.5)
    leaves = {name: np.resize(block, shape) for name, shape in leaf_shapes(CONFIG).items()}
    return Params.from_leaves(leaves, CONFIG.n_layer)


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Directories of one large checkpoint, as safetensors and as torch's zip."""
    tensors = state_dict(large_params())
    directories = {name: tmp_path_factory.mktemp(name) for name in ("safetensors", "torch")}
    for directory in directories.values():
        (directory / "config.json").write_text(json.dumps(config_json(CONFIG)))
    write_safetensors(directories["safetensors"] / "model.safetensors", tensors)
    write_torch(directories["torch"] / "pytorch_model.bin", tensors)
    return directories


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("form", ["safetensors", "torch"])
def test_memory_at_load(benchmark, large, form):
    path = os.pathsep.join([str(Path(refgpt.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", LOAD, str(large[form])]
    options = {"capture_output": True, "text": True, "env": os.environ | {"PYTHONPATH": path}}
    run = benchmark.pedantic(subprocess.run, (command,), options, rounds=1)
    assert run.returncode == 0, run.stderr
    peak, weights = int(run.stdout), 2 * CONFIG.n_params
    benchmark.extra_info.update({"what": f"load 1.2 GB, {form}", "weights MB": weights / 1e6, "peak MB": peak / 1e6})
    assert QUICK or peak <= 1.15 * weights + 300e6
