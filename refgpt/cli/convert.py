"""``refgpt convert``."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from refgpt._open import open_model
from refgpt.checkpoints import MASKS
from refgpt.cli.loading import progress_bar, watched
from refgpt.cli.options import Commands, add_command, add_source
from refgpt.cli.printing import print_line
from refgpt.conversion import TARGETS, convert
from refgpt.conversion.calibration_text import N_TOKENS
from refgpt.conversion.staging import check_free
from refgpt.numbers.dtypes import known_dtype

EXAMPLES = """examples:
  refgpt convert ~/gpt-j-6b ~/gpt-j-6b-q4 --dtype q4      4.5 bits a weight; loads at once
  refgpt convert ~/gpt-j-6b ~/gpt-j-6b-q4 --dtype q4 --calibrate book.txt      hours; about half the error
  refgpt convert ~/gpt-j-6b ~/gpt-j-6b-q3 --dtype q3 --calibrate book.txt      3.5 bits; twice the error of plain q4
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
        help="dtype of the matrices (default: as stored); q8, q4 and q3 need --to refgpt",
    )
    add(
        "--calibrate",
        nargs="+",
        metavar="TEXT",
        help="text files similar to what the model will read: with --dtype q4 or q3, about half the error on such "
        "texts. Takes hours for 6 billion weights; the same command resumes an interrupted conversion",
    )
    add(
        "--calibrate-tokens",
        type=int,
        default=N_TOKENS,
        metavar="N",
        help="how many tokens of the texts to take (default: %(default)s)",
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
    calibrate = {"calibrate": arguments.calibrate, "calibrate_tokens": arguments.calibrate_tokens}
    with progress_bar("converting") as progress, _calibrating_bar(arguments.calibrate is not None) as calibrating:
        convert(
            source,
            tokenizer,
            destination,
            arguments.to,
            arguments.dtype,
            progress,
            **calibrate,
            calibrating=calibrating,
        )
    n_bytes = sum(path.stat().st_size for path in destination.iterdir())
    print_line(f"{destination}: {n_bytes / 1e6:,.1f} MB, {len(list(destination.iterdir()))} files")
    return 0


@contextmanager
def _calibrating_bar(shown: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """Show a bar of the weights that are rounded, with the name of the last matrix."""
    if not shown or not watched():
        yield None
        return
    from tqdm import tqdm

    with tqdm(desc="calibrating", unit=" weights", unit_scale=True, leave=False) as bar:

        def calibrating(name: str, n_done: int, n_total: int) -> None:
            bar.total = n_total
            bar.set_description(f"calibrating, {name}", refresh=False)
            bar.update(n_done - bar.n)

        yield calibrating
