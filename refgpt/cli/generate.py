"""``refgpt generate``."""

from __future__ import annotations

import argparse

from refgpt.cli.loading import print_continuation
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.cli.prompts import add_prompt_arguments, read_prompt
from refgpt.cli.sampling import add_sampling_arguments, sampling_of

EXAMPLES = """examples:
  refgpt generate "Once upon a time"
  refgpt generate "Once upon a time" --temperature 0 -n 50        always the most likely token
  refgpt generate "The recipe:" --top-k 40 --seed 7 --stop "\\n"   the same text every time, up to the end of a line
  refgpt generate -m ~/gpt-j-6b -f story.txt --truncate left      a model and a prompt of your own
  echo "Dear diary," | refgpt generate > diary.txt
"""


def add_to(commands: Commands) -> None:
    """Declare ``generate``."""
    generate = add_command(commands, "generate", _generate, "continue a text", EXAMPLES)
    add_prompt_arguments(generate, "text to continue")
    generate.add_argument("--echo", action="store_true", help="print the prompt before its continuation")
    generate.add_argument(
        "--truncate", choices=["left"], help="if the prompt is too long, drop its beginning instead of raising an error"
    )
    add_sampling_arguments(generate)
    add_running_arguments(generate)


def _generate(arguments: argparse.Namespace) -> int:
    prompt = read_prompt(arguments, 'refgpt generate "Once upon a time"')
    params = sampling_of(arguments, truncate=arguments.truncate)  # refuse bad options before the weights are read
    print_continuation(arguments, prompt, params, arguments.echo)
    return 0
