"""``refgpt lm-eval``."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from unittest import mock

from refgpt.cli.options import Commands

ABOUT = """Runs lm-evaluation-harness's own command with the model "refgpt" registered, which is the default here.
Every argument is lm-eval's: refgpt lm-eval --help lists them. Needs pip install "refgpt[eval]".
"""
EXAMPLES = """examples:
  refgpt lm-eval --tasks lambada_openai,piqa --model_args pretrained=~/gpt-j-6b-q4
  refgpt lm-eval --tasks hellaswag --model_args pretrained=EleutherAI/gpt-j-6b,revision=float16,dtype=q4 --limit 100
  refgpt lm-eval ls tasks
"""


def add_to(commands: Commands) -> None:
    """Declare ``lm-eval``. All arguments are passed on to lm-eval."""
    added = commands.add_parser(
        "lm-eval",
        help="run lm-evaluation-harness with a model run by refgpt",
        description=ABOUT,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        prefix_chars="\0",
    )
    added.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="an argument of lm-eval")
    added.set_defaults(run=_lm_eval, parser=added)


def _lm_eval(arguments: argparse.Namespace) -> int:
    import_module("refgpt.evaluation.lm_eval")  # registers the model, or says what is missing
    from lm_eval.__main__ import cli_evaluate

    with mock.patch.object(sys, "argv", ["lm-eval", *with_model(arguments.arguments)]):
        cli_evaluate()
    return 0


def with_model(given: list[str]) -> list[str]:
    """lm-eval's arguments, with our model added if they run tasks and name no model."""
    if not given or given[0] in ("ls", "validate", "-h", "--help"):
        return given
    given = given if given[0] == "run" else ["run", *given]
    named = any(one.split("=")[0] in ("--model", "-M", "--config", "-C", "-h", "--help") for one in given)
    return given if named or len(given) == 1 else [given[0], "--model", "refgpt", *given[1:]]
