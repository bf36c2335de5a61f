"""The command that times a model on the user's machine."""

from __future__ import annotations

import argparse
from statistics import median

from refgpt._common.wording import size
from refgpt._load import DTYPES
from refgpt.cli.loading import load_model
from refgpt.cli.options import MODEL_HELP, Commands, add_command, add_loading_arguments

BENCH_EXAMPLES = """examples:
  refgpt bench                                       the included model
  refgpt bench -m ~/gpt-j-6b --dtype q4              prompts of 512 tokens and 128 new ones, as llama-bench has it
  refgpt bench -m ~/gpt-j-6b-q4 -p 32,512 -n 64 -d 0,1024 -r 3
"""


def add_to(commands: Commands) -> None:
    """Declare ``bench``."""
    help = "time prompts and new tokens, beside how fast this machine reads memory"
    bench = add_command(commands, "bench", _bench, help, BENCH_EXAMPLES)
    add = bench.add_argument
    add("-m", "--model", metavar="MODEL", help=MODEL_HELP)
    add("-p", "--n-prompt", type=_numbers, metavar="N,..", help="tokens of a prompt (default: 512, or the context)")
    add("-n", "--n-gen", type=_numbers, metavar="N,..", help="new tokens (default: 128, or what the context leaves)")
    add("-d", "--n-depth", type=_numbers, default=[0], metavar="N,..", help="tokens already there (default: 0)")
    add("-r", "--repetitions", type=int, default=5, metavar="N", help="counted runs of each test (default: 5)")
    add_loading_arguments(bench, DTYPES["c"])


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]


def _bench(arguments: argparse.Namespace) -> int:
    from refgpt.evaluation.speed import measure
    from refgpt.kernels import active
    from refgpt.runtime import Runtime

    model = load_model(arguments, "c")
    engine, n_ctx = model.engine, model.config.n_ctx
    assert isinstance(engine, Runtime)
    prompts, writes = arguments.n_prompt, arguments.n_gen
    if prompts is None:
        prompts = [min(512, n_ctx)]
    if writes is None:
        writes = [min(128, max(1, n_ctx - max([1, *arguments.n_depth])))]
    print(
        f"{model.checkpoint.path}: {engine.kinds}, {size(engine.n_bytes)} of weights, cache {model.kv_dtype}, "
        f"{engine.threads} threads, {active('linear_f32').isa}"
    )
    _print_row("test", "tokens/s", "+-", "must read", "machine reads", "share")
    for row in measure(engine, prompts, writes, arguments.n_depth, arguments.repetitions):
        bounds = (_rate(row.rate * row.n_read), _rate(median(row.read_rates)), f"{row.share:.0%}") if row.n_read else ()
        _print_row(row.test, f"{row.rate:.2f}", f"{row.spread:.2f}", *bounds)
    return 0


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.1f} GB/s"


def _print_row(test: str, *cells: str) -> None:
    print(f"{test:<12}" + "".join(f"{cell:>15}" for cell in cells), flush=True)
