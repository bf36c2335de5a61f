"""Prompts from the command line: an argument, a file, or standard input."""

from __future__ import annotations

import argparse
import sys

from refgpt._common.errors import GenerationError

#: Bytes of the longest prompt: hundreds of times what any context holds. A device may have no end.
LARGEST_PROMPT = 1 << 24


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
        where, source = arguments.file, arguments.file
    elif arguments.prompt not in (None, "-"):
        return str(arguments.prompt)
    elif sys.stdin is None or (arguments.prompt is None and sys.stdin.isatty()):
        raise GenerationError("there is no prompt", fix=f"try: {example}")
    else:
        where, source = "standard input", None
    try:
        return _read(where, source).decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise GenerationError("is not UTF-8 text", where=where, got=f"byte {error.start}") from None
    except OSError as error:
        raise GenerationError(f"cannot be read ({error.strerror})", where=where) from None


def _read(where: str, source: str | None) -> bytes:
    """What a file or standard input holds; no more is read of it than a prompt may have."""
    if source is None:
        raw = sys.stdin.buffer.read(LARGEST_PROMPT + 1)
    else:
        with open(source, "rb") as file:
            raw = file.read(LARGEST_PROMPT + 1)
    if len(raw) > LARGEST_PROMPT:
        raise GenerationError(
            "is far too long for a prompt",
            where=where,
            got=f"more than {LARGEST_PROMPT} bytes",
            wanted=f"at most {LARGEST_PROMPT}",
            fix="check that this is the right file",
        )
    return raw
