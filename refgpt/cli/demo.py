"""``refgpt demo``."""

from __future__ import annotations

import argparse
from dataclasses import replace

from refgpt.cli.loading import print_continuation
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.evaluation import DEMO_SETTINGS, DEMOS

EXAMPLES = """examples:
  refgpt demo sentiment -m ~/gpt-jt
  refgpt demo qa "What is the capital of Norway?"
"""


def add_to(commands: Commands) -> None:
    """Declare ``demo``."""
    demo = add_command(commands, "demo", _demo, "show one of the four demonstrations of GPT-JT", EXAMPLES)
    demo.add_argument("name", choices=DEMOS, help="; ".join(f"{name}: {shown.about}" for name, shown in DEMOS.items()))
    demo.add_argument("text", nargs="?", metavar="TEXT", help="text to use instead of the demonstration's own")
    demo.add_argument(
        "-n",
        "--max-new-tokens",
        type=int,
        default=DEMO_SETTINGS.max_new_tokens,
        metavar="N",
        help="generate at most N tokens (default: %(default)s)",
    )
    add_running_arguments(demo)
    demo.set_defaults(draft=None)


def _demo(arguments: argparse.Namespace) -> int:
    params = replace(DEMO_SETTINGS, max_new_tokens=arguments.max_new_tokens)
    prompt = DEMOS[arguments.name].prompt(arguments.text)
    print_continuation(arguments, prompt, params, echo=True)
    return 0
