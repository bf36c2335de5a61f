"""The command that times a model on the user's machine."""

from __future__ import annotations

import argparse
from statistics import median
from typing import TYPE_CHECKING, Any

from refgpt._common.wording import shown, size
from refgpt._load import DTYPES
from refgpt.cli.json_output import print_json
from refgpt.cli.loading import load_for
from refgpt.cli.options import Commands, add_command, add_json, add_loading_arguments, add_model
from refgpt.cli.printing import print_line
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

if TYPE_CHECKING:
    from refgpt.evaluation.speed import Measurement

EXAMPLES = """examples:
  refgpt bench                                       the included model
  refgpt bench -m ~/gpt-j-6b --dtype q4              prompts of 512 tokens and 128 new ones, as in llama-bench
  refgpt bench -m ~/gpt-j-6b-q4 -p 32,512 -n 64 -d 0,1024 -r 3
"""


def add_to(commands: Commands) -> None:
    """Declare ``bench``."""
    help = "measure the speed of prompts and new tokens, and compare it with memory bandwidth"
    bench = add_command(commands, "bench", _bench, help, EXAMPLES)
    add = bench.add_argument
    add_model(bench, positional=True)
    add(
        "-p",
        "--n-prompt",
        dest="prompts",
        type=_numbers,
        metavar="N,..",
        help="prompt lengths in tokens (default: 512, at most the context)",
    )
    add(
        "-n",
        "--n-gen",
        dest="writes",
        type=_numbers,
        metavar="N,..",
        help="numbers of new tokens (default: 128, at most what fits in the context)",
    )
    add(
        "-d",
        "--n-depth",
        dest="depths",
        type=_numbers,
        default=[0],
        metavar="N,..",
        help="tokens in the context before new ones are generated (default: 0)",
    )
    add("-r", "--repetitions", type=int, default=5, metavar="N", help="measured runs of each test (default: 5)")
    add_json(bench)
    add_loading_arguments(bench, DTYPES["c"])
    bench.set_defaults(backend="c")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",") if part]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {shown(text)}; wanted whole numbers with commas between") from None


def _bench(arguments: argparse.Namespace) -> int:
    from refgpt.evaluation.speed import check_sizes, measure
    from refgpt.kernels import active
    from refgpt.runtime import Runtime

    def sizes(config: AnyConfig, _: Tokenizer | None) -> tuple[list[int], list[int], list[int], int]:
        prompts, writes, n_ctx = arguments.prompts, arguments.writes, config.n_ctx
        if prompts is None:
            prompts = [min(512, n_ctx)]
        if writes is None:
            writes = [min(128, max(1, n_ctx - max([1, *arguments.depths])))]
        return check_sizes(n_ctx, prompts, writes, arguments.depths, arguments.repetitions)

    model, asked = load_for(arguments, sizes)
    engine = model.engine
    assert isinstance(engine, Runtime)
    rows = measure(engine, *asked)
    isa = active("linear_f32").isa
    if arguments.json:
        print_json(
            {
                "model": str(model.checkpoint.path),
                "weights": engine.kinds,
                "n_bytes": engine.n_bytes,
                "kv_dtype": model.kv_dtype,
                "compute": model.compute,
                "threads": engine.threads,
                "isa": isa,
                "tests": [_record(row) for row in rows],
            }
        )
        return 0
    print_line(
        f"{model.checkpoint.path}: {engine.kinds}, {size(engine.n_bytes)} of weights, cache {model.kv_dtype}, "
        f"{'' if model.compute == 'f32' else f'arithmetic {model.compute}, '}{engine.threads} threads, {isa}"
    )
    _print_row("test", "tokens/s", "+-", "must read", "machine reads", "share")
    for row in rows:
        bounds = (_rate(row.rate * row.n_read), _rate(median(row.read_rates)), f"{row.share:.0%}") if row.n_read else ()
        _print_row(row.test, f"{row.rate:.2f}", f"{row.spread:.2f}", *bounds)
    return 0


def _record(row: Measurement) -> dict[str, Any]:
    reads = row.n_read > 0  # a prompt is limited by arithmetic, not by memory
    return {
        "test": row.test,
        "tokens_per_second": row.rate,
        "standard_deviation": row.spread,
        "rates": list(row.rates),
        "bytes_per_token": row.n_read if reads else None,
        "read_bytes_per_second": median(row.read_rates) if reads else None,
        "share": row.share if reads else None,
    }


def _rate(bytes_per_second: float) -> str:
    return f"{bytes_per_second / 1e9:.1f} GB/s"


def _print_row(test: str, *cells: str) -> None:
    print_line(f"{test:<12}" + "".join(f"{cell:>15}" for cell in cells))
