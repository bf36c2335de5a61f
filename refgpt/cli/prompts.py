"""Prompts from the command line: an argument, a file, or standard input."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from refgpt._common.errors import GenerationError


def add_prompt_arguments(parser: argparse.ArgumentParser, help: str) -> None:
    """Declare what ``read_prompt`` reads of the arguments."""
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help=f"{help}; - reads standard input")
    parser.add_argument("-f", "--file", metavar="FILE", help="read the prompt from a file")


def read_prompt(arguments: argparse.Namespace, example: str) -> str:
    """The prompt argument, or that of a file or of standard input less the newline that ends it.

    ``example`` is a command that has one, for who gave none.
    """
    if arguments.file is not None:
        if arguments.prompt is not None:
            raise GenerationError("given twice, as an argument and as a file", where="prompt", fix="leave one out")
        where, read = arguments.file, Path(arguments.file).read_bytes
    elif arguments.prompt not in (None, "-"):
        return str(arguments.prompt)
    elif sys.stdin is None or (arguments.prompt is None and sys.stdin.isatty()):
        raise GenerationError("there is no prompt", fix=f"try: {example}")
    else:
        where, read = "standard input", sys.stdin.buffer.read
    try:
        return read().decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise GenerationError("is not UTF-8 text", where=where, got=f"byte {error.start}") from None
    except OSError as error:
        raise GenerationError(f"cannot be read ({error.strerror})", where=where) from None
