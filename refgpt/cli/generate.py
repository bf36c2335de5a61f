"""``refgpt generate``."""

from __future__ import annotations

import argparse
from dataclasses import replace

from refgpt.cli.loading import print_continuation
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.cli.prompts import add_prompt_arguments, read_prompt
from refgpt.cli.sampling import add_sampling_arguments, sampling_of

EXAMPLES = """examples:
  refgpt generate "Once upon a time"
  refgpt generate "Once upon a time" --temperature 0 -n 50        always the most likely token
  refgpt generate "The recipe:" --top-k 40 --seed 7 --stop "\\n"   the same text every time, up to the end of a line
  refgpt generate "Once upon a time" --num-beams 4 -n 30          the likeliest text that a beam search finds
  refgpt generate "Once upon a time" --num-return-sequences 3     three texts
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
    add = generate.add_argument_group("several texts").add_argument
    add(
        "--num-return-sequences",
        type=int,
        default=1,
        metavar="N",
        help="write N continuations; with --num-beams the best N (default: 1)",
    )
    add(
        "--num-beams",
        type=int,
        default=1,
        metavar="N",
        help="look for the likeliest text with N beams instead of drawing one (default: 1, off)",
    )
    add(
        "--length-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="a beam's log-likelihood is divided by its length to this power: higher prefers longer texts (default: 1)",
    )
    add(
        "--early-stopping",
        choices=["yes", "no", "never"],
        default="no",
        help="end a beam search as soon as there are enough ended texts; when a better one is unlikely; or when it is "
        "impossible (default: no)",
    )
    add_running_arguments(generate)


def _generate(arguments: argparse.Namespace) -> int:
    prompt = read_prompt(arguments, 'refgpt generate "Once upon a time"')
    # A mistake is found before the weights are read.
    params = replace(
        sampling_of(arguments, truncate=arguments.truncate),
        num_return_sequences=arguments.num_return_sequences,
        num_beams=arguments.num_beams,
        length_penalty=arguments.length_penalty,
        early_stopping={"yes": True, "no": False}.get(arguments.early_stopping, "never"),
    )
    print_continuation(arguments, prompt, params, arguments.echo)
    return 0
