"""The command ``refgpt``: a shell over the library, no maths. One module a command."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence

from refgpt import __version__
from refgpt._common.errors import RefgptError
from refgpt.cli import bench, classify, convert, demo, generate, info, inspect, kernels, raft, verify


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; by default the process's own.

    Returns
    -------
    int
        0; 1 when ``verify`` found a broken bound; 2 for unusable input or output; 130 after Ctrl-C.
    """
    if sys.stderr is None:  # closed: there is nobody to complain to
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it stays open, as it would have
    arguments = _parser().parse_args(argv)
    if sys.stdout is None:
        return _refused("standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without the character still shows the rest
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("refgpt: %(message)s"))
    logger = logging.getLogger("refgpt")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
        return code
    except RefgptError as error:
        return _refused(error)
    except KeyboardInterrupt:
        try:
            print(flush=True)
        except OSError:  # in a pipeline, Ctrl-C reaches the reader too
            _forget_output()
        return 130
    except BrokenPipeError:  # the reader has seen enough
        _forget_output()
        return 0
    except OSError as error:
        _forget_output()
        return _refused(f"the output cannot be written ({error.strerror})")
    finally:
        logger.removeHandler(handler)


def _refused(why: object) -> int:
    print(f"refgpt: error: {why}", file=sys.stderr)
    return 2


def _forget_output() -> None:
    """Let what could not be written go nowhere, or the interpreter would complain of it when it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="refgpt", description="Run and inspect GPT-J models on the CPU.")
    parser.add_argument("--version", action="version", version=f"refgpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (generate, classify, demo, raft, convert, info, verify, kernels, inspect, bench):
        command.add_to(commands)
    return parser
