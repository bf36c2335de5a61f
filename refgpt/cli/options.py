"""Parts that the commands share: declaring a command, and the options about a model."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from refgpt._common.wording import shown
from refgpt._load import DTYPES
from refgpt.checkpoints import MASKS
from refgpt.cli.printing import print_line
from refgpt.numbers.dtypes import COMPUTES, KV_DTYPES, known_dtype

Commands = argparse._SubParsersAction
Run = Callable[[argparse.Namespace], int]

MODEL_HELP = "a model's directory or file, or its name on the Hugging Face hub (default: the included small model)"


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
    """Declare -q and -v, for the program and for each command."""
    add = parser.add_argument
    add(
        "-q",
        "--quiet",
        dest="log_level",
        action="store_const",
        const=logging.ERROR,
        default=default,
        help="print only errors on standard error, and no progress bars",
    )
    add(
        "-v",
        "--verbose",
        dest="log_level",
        action="store_const",
        const=logging.DEBUG,
        default=default,
        help="print more on standard error, with a traceback for an error",
    )


class ShowVersion(argparse.Action):
    """Prints the version, which takes a while to find, and exits."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print_line(f"refgpt {import_module('refgpt').__version__}")
        parser.exit()


class StoreModel(argparse.Action):
    """Stores the model, which can be given with -m or, for some commands, as a positional argument."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if values is None:  # the positional argument is absent; -m may have been given
            return
        if getattr(namespace, "model", None) is not None:
            raise argparse.ArgumentError(self, "the model is given twice")
        namespace.model = values


class StoreAdapter(argparse.Action):
    """Stores an adapter: DIRECTORY as ``adapter``, and NAME=DIRECTORY among ``adapters``.

    A command that uses one adapter for everything ignores the name. A directory may have an equals sign in its name:
    what is there is no NAME=DIRECTORY.
    """

    def __init__(self, *given: Any, named: bool = False, **options: Any) -> None:
        super().__init__(*given, **options)
        self._named = named

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        name, equals, directory = values.partition("=")
        if not equals or os.sep in name or os.path.exists(values):
            name, directory = "", values
        directory = os.path.expanduser(directory)
        if not (self._named and name):
            if namespace.adapter is not None:
                once = "only one can be without a name" if self._named else "this command uses one adapter"
                raise argparse.ArgumentError(self, once)
            namespace.adapter = directory
        elif name in namespace.adapters:
            raise argparse.ArgumentError(self, f"the name {shown(name)} is given twice")
        else:
            namespace.adapters = {**namespace.adapters, name: directory}


def add_model(parser: argparse.ArgumentParser, positional: bool = False) -> None:
    """Declare the model: -m and, if ``positional``, a positional argument too."""
    if positional:
        parser.add_argument("model", nargs="?", action=StoreModel, metavar="MODEL", help=MODEL_HELP)
        parser.add_argument("-m", "--model", action=StoreModel, metavar="MODEL", help="the same as MODEL")
    else:
        parser.add_argument("-m", "--model", action=StoreModel, metavar="MODEL", help=MODEL_HELP)


def add_json(parser: argparse.ArgumentParser, help: str = "print one JSON object") -> None:
    """Declare --json."""
    parser.add_argument("--json", action="store_true", help=help)


def add_running_arguments(parser: argparse.ArgumentParser, named_adapters: bool = False) -> None:
    """Declare the model and the options for running it, for a command that supports both backends.

    ``named_adapters``: its requests may choose among several adapters.
    """
    add_model(parser)
    running = parser.add_argument_group("running")
    running.add_argument(
        "--backend",
        choices=DTYPES,
        default="c",
        help="c: the C kernels; numpy: the slow, readable spec, which supports f64 (default: c)",
    )
    add_loading_arguments(running, DTYPES["numpy"], named_adapters)


def add_loading_arguments(
    group: argparse._ActionsContainer, dtypes: Sequence[str | None], named_adapters: bool = False
) -> None:
    """Declare the arguments that ``load_model`` reads, except the path and the backend."""
    add = group.add_argument
    add(
        "--mask",
        choices=MASKS,
        default="auto",
        help="attention mask; prefix: all tokens of a prompt see each other, as in GPT-JT (default: as the files say)",
    )
    add(
        "--dtype",
        type=known_dtype,
        choices=[dtype for dtype in dtypes if dtype],
        help="dtype of the weights in memory (default: as stored)",
    )
    add(
        "--kv-dtype",
        type=known_dtype,
        choices=KV_DTYPES,
        help="dtype of the attention cache; q8 is half of f16 (default: f16 with quantised weights, otherwise f32)",
    )
    several = "; NAME=DIRECTORY, which can be repeated: used for the requests that name it"
    add(
        "--compute",
        type=known_dtype,
        choices=COMPUTES,
        help="dtype in which numbers are multiplied in linear layers with float weights, and in training with any "
        "weights; bf16 is faster where the processor has AVX512_BF16 (default: f32)",
    )
    add(
        "--adapter",
        action=StoreAdapter,
        named=named_adapters,
        metavar="[NAME=]DIRECTORY" if named_adapters else "DIRECTORY",
        help=f"a LoRA adapter in PEFT's format, applied beside the weights{several if named_adapters else ''}",
    )
    group.set_defaults(adapters={})
    add(
        "--copy",
        action="store_true",
        help="copy all weights into memory instead of mapping the files, which may then be written to",
    )
    add_source(group)
    add("-t", "--threads", type=int, metavar="N", help="threads to use (default: one per core)")


def add_source(group: argparse._ActionsContainer) -> None:
    """Declare which version of a model on the hub is meant, and which tokenizer."""
    group.add_argument(
        "--revision",
        metavar="REVISION",
        help="branch, tag or commit of a model on the hub (default: the main branch)",
    )
    group.add_argument(
        "--tokenizer",
        metavar="PATH",
        type=lambda text: False if text == "none" else text,
        help="a tokenizer instead of the model's: its directory or file; none: use ids only",
    )


def unescaped(text: str) -> str:
    r"""A text of the command line with each \n turned into a new line."""
    return text.replace("\\n", "\n")
