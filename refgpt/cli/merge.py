"""``refgpt merge``."""

from __future__ import annotations

import argparse
from pathlib import Path

from refgpt._load import merge_adapter
from refgpt.checkpoints import MASKS
from refgpt.cli.loading import progress_bar
from refgpt.cli.options import MODEL_HELP, Commands, add_command
from refgpt.cli.printing import print_line
from refgpt.conversion.huggingface import DTYPES
from refgpt.numbers.dtypes import known_dtype

EXAMPLES = """examples:
  refgpt merge ~/gpt-j-6b ~/answers -o ~/gpt-j-answers
  refgpt convert ~/gpt-j-answers ~/gpt-j-answers-q4 --dtype q4
"""


def add_to(commands: Commands) -> None:
    """Declare ``merge``."""
    command = add_command(commands, "merge", _merge, "write a model with an adapter added to its weights", EXAMPLES)
    add = command.add_argument
    add("base", metavar="MODEL", help=MODEL_HELP.partition(" (default")[0])
    add("directory", nargs="?", metavar="ADAPTER", help="directory of a LoRA adapter in PEFT's format")
    add("-m", "--model", metavar="MODEL", help="the model, instead of MODEL: merge -m MODEL ADAPTER")
    add(
        "-o", "--output", required=True, metavar="DIRECTORY", help="directory to create; it appears once it is complete"
    )
    add(
        "--dtype",
        type=known_dtype,
        choices=[dtype for dtype in DTYPES if dtype],
        help="dtype of the matrices (default: that of the model's embeddings)",
    )
    add(
        "--mask",
        choices=MASKS,
        default="auto",
        help="mask to record (default: the one that the adapter was trained with, or else the model's)",
    )
    add("--revision", metavar="REVISION", help="branch, tag or commit of a model on the hub (default: the main branch)")


def _merge(arguments: argparse.Namespace) -> int:
    given = [one for one in (arguments.model, arguments.base, arguments.directory) if one is not None]
    if len(given) != 2:
        arguments.parser.error("give a model and an adapter" if len(given) < 2 else "the model is given twice")
    out, (model, adapter) = Path(arguments.output), given
    with progress_bar("merging") as progress:
        merge_adapter(model, adapter, out, arguments.dtype, arguments.mask, progress, arguments.revision)
    print_line(f"{out}: {sum(path.stat().st_size for path in out.iterdir()) / 1e6:,.1f} MB")
    return 0
