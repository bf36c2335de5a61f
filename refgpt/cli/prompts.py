"""Prompts from the command line: an argument, a file, or standard input."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from refgpt._common.arguments import path_of
from refgpt._common.errors import GenerationError
from refgpt._common.small_files import reading
from refgpt._common.wording import size

#: Most bytes of a prompt: hundreds of times more than the longest context needs.
LARGEST_PROMPT = 1 << 24


def add_prompt_arguments(parser: argparse.ArgumentParser, help: str) -> None:
    """Declare the arguments that ``read_prompt`` reads."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help=f"{help}; - reads standard input")
    parser.add_argument("-f", "--file", metavar="FILE", help="read the prompt from a file")


def read_prompt(arguments: argparse.Namespace, example: str) -> str:
    """The prompt from the argument, a file or standard input, without its final newline and a byte-order mark.

    ``example`` is a command with a prompt, shown in the error if none was given.
    """
    if arguments.file is not None and arguments.prompt is not None:
        raise GenerationError("was given twice, as an argument and as a file", where="prompt", fix="leave one out")
    if arguments.file is None and arguments.prompt not in (None, "-"):
        return str(arguments.prompt)
    if arguments.file is None and (sys.stdin is None or (arguments.prompt is None and sys.stdin.isatty())):
        raise GenerationError("there is no prompt", fix=f"try: {example}")
    where = "standard input" if arguments.file is None else arguments.file
    path = None if arguments.file is None else path_of("file", arguments.file, GenerationError)
    with reading(where, GenerationError):
        raw = _read(path)
    if len(raw) > LARGEST_PROMPT:
        fix = "check that this is the right file"
        raise GenerationError("is far too long for a prompt", where=where, got=f"over {size(LARGEST_PROMPT)}", fix=fix)
    try:
        return raw.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        got = f"byte {error.start}"
        raise GenerationError("is not UTF-8 text", where=where, got=got, fix="save it as UTF-8") from None


def _read(path: Path | None) -> bytes:
    """Read a file or standard input, up to one byte more than a prompt may have."""
    if path is None:
        return sys.stdin.buffer.read(LARGEST_PROMPT + 1)
    with open(path, "rb") as file:
        return file.read(LARGEST_PROMPT + 1)
