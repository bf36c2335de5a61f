"""``refgpt convert``."""

from __future__ import annotations

import argparse
from pathlib import Path

from refgpt._load import open_model
from refgpt.checkpoints import MASKS
from refgpt.cli.loading import progress_bar
from refgpt.cli.options import Commands, add_command, add_source
from refgpt.cli.printing import print_line
from refgpt.conversion import TARGETS, convert
from refgpt.conversion.staging import check_free
from refgpt.numbers.dtypes import known_dtype

EXAMPLES = """examples:
  refgpt convert ~/gpt-j-6b ~/gpt-j-6b-q4 --dtype q4      4.5 bits a weight; loads at once
  refgpt convert gpt-j.gguf ~/gpt-j-hf --to hf            for other programs
"""
TARGETS_HELP = """refgpt: the packed format, which is mapped instead of loaded (default);
hf: a Hugging Face directory; gguf: a directory with model.gguf"""


def add_to(commands: Commands) -> None:
    """Declare ``convert``."""
    command = add_command(commands, "convert", _convert, "write a model in another format", EXAMPLES)
    add = command.add_argument
    add("source", metavar="SOURCE", help="directory or file of a model, or its name on the Hugging Face hub")
    add("destination", nargs="?", metavar="DESTINATION", help="directory to create; it appears when it is complete")
    add("-m", "--model", metavar="MODEL", help="the source, instead of SOURCE: convert -m MODEL DESTINATION")
    add("--to", choices=TARGETS, default="refgpt", help=TARGETS_HELP)
    dtypes = dict.fromkeys(dtype for target in TARGETS.values() for dtype in target.DTYPES if dtype)
    add(
        "--dtype",
        type=known_dtype,
        choices=dtypes,
        help="dtype of the matrices (default: as stored); q8 and q4 need --to refgpt",
    )
    add(
        "--mask",
        choices=MASKS,
        default="auto",
        help="mask to record for the model (default: the mask that the files state)",
    )
    add_source(command)


def _convert(arguments: argparse.Namespace) -> int:
    sources = [given for given in (arguments.model, arguments.source, arguments.destination) if given is not None]
    if len(sources) != 2:
        arguments.parser.error("give a source and a destination" if len(sources) < 2 else "the source is given twice")
    source_path, destination = sources[0], Path(sources[1])
    check_free(destination)  # check before an archive is unpacked
    with progress_bar() as progress:
        source, tokenizer = open_model(source_path, arguments.mask, progress, arguments.revision, arguments.tokenizer)
    with progress_bar("converting") as progress:
        convert(source, tokenizer, destination, arguments.to, arguments.dtype, progress)
    n_bytes = sum(path.stat().st_size for path in destination.iterdir())
    print_line(f"{destination}: {n_bytes / 1e6:,.1f} MB, {len(list(destination.iterdir()))} files")
    return 0
