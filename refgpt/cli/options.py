"""Parts that the commands share: how one is declared, and the options about a model."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from typing import Any

from refgpt._load import DTYPES
from refgpt.checkpoints import MASKS
from refgpt.numbers.dtypes import KV_DTYPES, known_dtype

Commands = argparse._SubParsersAction
Run = Callable[[argparse.Namespace], int]

MODEL_HELP = "directory or file of a model, or its name on the Hugging Face hub (default: the small one included)"


def add_command(commands: Commands, name: str, run: Run, help: str, examples: str) -> argparse.ArgumentParser:
    """Declare a command; ``run`` takes its arguments and returns the exit status."""
    added: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=help[0].upper() + help[1:] + ".",
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=run, parser=added)
    add_verbosity(added, argparse.SUPPRESS)
    return added


def add_verbosity(parser: argparse.ArgumentParser, default: Any) -> None:
    """Declare how much is said on standard error: by the program and, after its name, by each command."""
    add = parser.add_argument
    add(
        "-q",
        "--quiet",
        dest="log_level",
        action="store_const",
        const=logging.ERROR,
        default=default,
        help="say nothing but errors on standard error, and show no progress bars",
    )
    add(
        "-v",
        "--verbose",
        dest="log_level",
        action="store_const",
        const=logging.DEBUG,
        default=default,
        help="say more on standard error, and show where in the code an error was found",
    )


class StoreModel(argparse.Action):
    """Keeps the model, which can be given with -m or, where a command has such an argument, without."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values is None:  # the argument is absent: perhaps there was -m
            return
        if getattr(namespace, "model", None) is not None:
            raise argparse.ArgumentError(self, "the model is given twice")
        namespace.model = values


def add_model(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """Declare the model: -m and, for a command whose subject it is, an argument without a name."""
    if positional:
        parser.add_argument("model", nargs="?", action=StoreModel, metavar="MODEL", help=MODEL_HELP)
        parser.add_argument("-m", "--model", action=StoreModel, metavar="MODEL", help="the same as MODEL")
    else:
        parser.add_argument("-m", "--model", action=StoreModel, metavar="MODEL", help=MODEL_HELP)


def add_json(parser: argparse.ArgumentParser, help: str = "print one JSON object") -> None:
    """Declare that the result can be printed for programs."""
    parser.add_argument("--json", action="store_true", help=help)


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the model and how to run it, for a command that runs it on either backend."""
    add_model(parser)
    running = parser.add_argument_group("how to run")
    running.add_argument(
        "--backend", choices=DTYPES, default="c", help="C kernels, or the slow, readable NumPy, which can do f64"
    )
    add_loading_arguments(running, DTYPES["numpy"])


def add_loading_arguments(group: argparse._ActionsContainer, dtypes: Sequence[str | None]) -> None:
    """Declare what ``load_model`` reads of the arguments beside the path and the backend."""
    add = group.add_argument
    add(
        "--mask",
        choices=MASKS,
        default="auto",
        help="prefix: all tokens of a prompt see each other, as in GPT-JT (default: what the files say)",
    )
    add(
        "--dtype",
        type=known_dtype,
        choices=[dtype for dtype in dtypes if dtype],
        help="what to keep the weights in (default: as stored)",
    )
    add(
        "--kv-dtype",
        type=known_dtype,
        choices=KV_DTYPES,
        help="what to keep the attention cache in (default: f16 with q8 and q4, else f32)",
    )
    add_source(group)
    add("-t", "--threads", type=int, metavar="N", help="threads to use (default: one per core)")


def add_source(group: argparse._ActionsContainer) -> None:
    """Declare which version of a model on the hub is meant, and which tokenizer."""
    group.add_argument(
        "--revision",
        metavar="REVISION",
        help="of a model on the hub: a branch, tag or commit (default: the main branch)",
    )
    group.add_argument(
        "--tokenizer",
        metavar="PATH",
        type=lambda text: False if text == "none" else text,
        help="a tokenizer instead of the model's: its directory or file; none for ids alone",
    )


def unescaped(text: str) -> str:
    r"""A text of the command line with its \n as new lines."""
    return text.replace("\\n", "\n")
