"""``refgpt verify``."""

from __future__ import annotations

import argparse

from refgpt._common.progress import print_row
from refgpt._common.wording import size
from refgpt._load import DTYPES
from refgpt.cli.json_output import print_json, verify_record
from refgpt.cli.loading import WORTH_A_BAR, load_model, watched
from refgpt.cli.options import Commands, add_command, add_json, add_loading_arguments, add_model
from refgpt.cli.printing import print_line
from refgpt.generation.prompts import BESIDE, NO_TOKENIZER, NoTokenizer, prompt_ids
from refgpt.tracing import Report, verify_bytes

EXAMPLES = """exit status:
  1 if an activation differs by more than float32 rounding can explain, otherwise 0

examples:
  refgpt verify                                            the included model
  refgpt verify -m ~/gpt-j-6b --prompt "The quick brown fox"
  refgpt verify ~/gpt-j-6b-q4 --json
"""


def add_to(commands: Commands) -> None:
    """Declare ``verify``."""
    help = "compare the C kernels with the NumPy spec on a model's weights"
    verify = add_command(commands, "verify", _verify, help, EXAMPLES)
    add_model(verify, positional=True)
    verify.add_argument("--prompt", metavar="TEXT", help="text to run (default: a few words)")
    add_json(verify)
    add_loading_arguments(verify, DTYPES["c"])


def _verify(arguments: argparse.Namespace) -> int:
    model = load_model(arguments, "c")
    if model.tokenizer is None:
        if arguments.prompt is not None:
            error = NoTokenizer(f"is a text, but {NO_TOKENIZER}", where="--prompt", fix=f"{BESIDE}, or leave it out")
            raise error.because(model.checkpoint.tokenizer_fault)
        ids = [i * 7919 % model.config.n_vocab for i in range(min(16, model.config.n_ctx))]
    else:
        text = "Once upon a time there was a" if arguments.prompt is None else arguments.prompt
        ids = prompt_ids(text, model.config, model.tokenizer)
    prefix_len = len(ids) // 2 if model.mask == "prefix" else 0
    if arguments.json:
        report = model.verify(ids, prefix_len)
        print_json(
            {
                "model": str(model.checkpoint.path),
                "n_tokens": len(ids),
                "mask": model.mask,
                "dtype": model.dtype,
                "kv_dtype": model.kv_dtype,
                "compute": model.compute,
                **verify_record(report),
            }
        )
        return 1 if report.first_broken else 0
    takes = size(verify_bytes(model.engine, len(ids)))
    arithmetic = "" if model.compute == "f32" else f", arithmetic {model.compute}"
    print_line(
        f"{len(ids)} tokens, mask {model.mask}, weights {model.dtype or 'as stored'}{arithmetic}, "
        f"cache {model.kv_dtype}; takes up to {takes} beside the model"
    )
    print_line(Report.HEAD)
    large = model.checkpoint.params.nbytes >= WORTH_A_BAR
    report = model.verify(ids, prefix_len, progress=large and watched(), on_tap=lambda tap: print_row(tap.line()))
    for line in report.conclusion():
        print_line(line)
    return 1 if report.first_broken else 0
