"""The command ``refgpt``: a thin shell over the library. Each command has one module, named after it."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.cli import blas_threads as blas_threads  # before NumPy is imported
from refgpt.cli.flags import in_flags
from refgpt.cli.options import ShowVersion, add_verbosity
from refgpt.cli.parser import CommandParser
from refgpt.cli.printing import Formatter, print_line
from refgpt.cli.signals import signals_raised

#: The commands, in the order of the help. The module with a command's name declares it.
COMMANDS = (
    "generate",
    "chat",
    "serve",
    "batch",
    "classify",
    "embed",
    "demo",
    "evaluate",
    "lm-eval",
    "raft",
    "finetune",
    "merge",
    "convert",
    "info",
    "verify",
    "kernels",
    "inspect",
    "bench",
    "plan",
    "completion",
)

EXAMPLES = """examples:
    refgpt generate "Once upon a time"       write a tale with the included model
  refgpt info -m ~/gpt-j-6b                describe a model's files and the memory it needs
    refgpt COMMAND --help                    the options of a command, with examples
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments after the program's name; by default the process's own.

    Returns
    -------
    int
        0; 1 if an input or the output cannot be used, or ``verify`` found a broken bound; 130 after Ctrl-C. (Wrong
        usage ends the process with 2, as argparse does.)
    """
    if sys.stderr is None:  # closed: messages cannot be shown
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - it stays open, as it would have
    words = sys.argv[1:] if argv is None else argv
    arguments = build_parser(words[0] if words else "").parse_args(words)
    if sys.stdout is None:
        return _refused("standard output is closed")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character still shows the rest
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("refgpt: %(message)s"))
    logger = logging.getLogger("refgpt")
    logger.addHandler(handler)
    level_before = logger.level
    logger.setLevel(arguments.log_level)
    try:
        with signals_raised():
            code: int = arguments.run(arguments)
            sys.stdout.flush()
        return code
    except RefgptError as error:
        logger.debug("where the error was found:", exc_info=True)
        return _refused(in_flags(error, arguments))
    except KeyboardInterrupt:
        try:
            print_line()
        except OSError:  # in a pipeline, Ctrl-C reaches the reader too
            _forget_output()
        return 130
    except BrokenPipeError:  # the reader closed the pipe
        _forget_output()
        return 0
    except OSError as error:
        if error.errno is None:  # not from the system: for example a TimeoutError raised by a signal handler
            raise
        if error.filename is not None:
            return _refused(f"{shown(str(error.filename))}: {error.strerror}")
        _forget_output()
        return _refused(f"the output cannot be written ({error.strerror})")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)


def _refused(why: object) -> int:
    print_line(f"refgpt: error: {why}", sys.stderr)
    return 1


def _forget_output() -> None:
    """Discard unwritten output. Otherwise the interpreter would report it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_parser(command: str = "") -> CommandParser:
    """The parser of the whole command line, or of one command alone if ``command`` names one that needs no other.

    To declare a command imports what it uses: for all of them this takes longer than a short text.
    """
    parser = CommandParser(
        prog="refgpt",
        description="Run and inspect GPT-J models on the CPU.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("-V", "--version", action=ShowVersion, help="show program's version number and exit")
    add_verbosity(parser, logging.INFO)

    def print_help(_: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(run=print_help, parser=parser)
    commands = parser.add_subparsers(metavar="COMMAND")
    for name in [command] if command in COMMANDS and command != "completion" else COMMANDS:
        import_module(f"refgpt.cli.{name.replace('-', '_')}").add_to(commands)
    return parser
