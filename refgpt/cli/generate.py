"""``refgpt generate``."""

from __future__ import annotations

import argparse

from refgpt.cli.loading import print_continuation
from refgpt.cli.options import Commands, add_command, add_running_arguments, unescaped
from refgpt.cli.prompts import add_prompt_arguments, read_prompt
from refgpt.generation.params import GenerationParams

EXAMPLES = """examples:
  refgpt generate "Once upon a time"
  refgpt generate "Once upon a time" --temperature 0 -n 50        always the most likely token
  refgpt generate "The recipe:" --top-k 40 --seed 7 --stop "\\n"   the same text every time, one line of it
  refgpt generate -m ~/gpt-j-6b -f story.txt --truncate left      a model and a prompt of your own
  echo "Dear diary," | refgpt generate > diary.txt
"""


def add_to(commands: Commands) -> None:
    """Declare ``generate``."""
    generate = add_command(commands, "generate", _generate, "continue a text", EXAMPLES)
    add_prompt_arguments(generate, "text to continue")
    generate.add_argument("--echo", action="store_true", help="print the prompt before its continuation")
    _add_generation_arguments(generate.add_argument_group("what to write"))
    add_running_arguments(generate)


def _add_generation_arguments(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-n", "--max-new-tokens", type=int, default=128, metavar="N", help="write at most N tokens (default: 128)")
    add(
        "--temperature",
        "--temp",
        type=float,
        default=0.8,
        metavar="T",
        help="0: always the most likely token; 1: as the model says; more: wilder (default: 0.8)",
    )
    add("--top-k", type=int, metavar="K", help="choose among the K most likely tokens only (default: among all)")
    add(
        "--top-p",
        type=float,
        default=0.95,
        metavar="P",
        help="choose among the most likely tokens that have probability P together (default: 0.95)",
    )
    add(
        "--repetition-penalty",
        "--repeat-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1: avoid tokens that the text already has, the prompt included (default: 1)",
    )
    add(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="above 0: avoid tokens already written, however often (default: 0)",
    )
    add(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="above 0: avoid tokens already written, the more the oftener (default: 0)",
    )
    add("--seed", type=int, metavar="N", help="the same number gives the same text again (default: a new one)")
    add("--stop", action="append", metavar="TEXT", help=r"end before this text; can be repeated; \n is a new line")
    add(
        "--speculate",
        type=int,
        default=7,
        metavar="N",
        help="guess up to N tokens from what was said before: faster if it copies (default: 7)",
    )
    add("--ignore-eos", action="store_true", help="go on after the model has ended its text")
    add("--truncate", choices=["left"], help="drop the beginning of a prompt that is too long, instead of an error")


def _generate(arguments: argparse.Namespace) -> int:
    prompt = read_prompt(arguments, 'refgpt generate "Once upon a time"')
    params = GenerationParams(  # before the weights: a typing error should not cost a minute
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        presence_penalty=arguments.presence_penalty,
        frequency_penalty=arguments.frequency_penalty,
        seed=arguments.seed,
        stop=[unescaped(stop) for stop in arguments.stop or ()],
        ignore_eos=arguments.ignore_eos,
        speculate=arguments.speculate,
        truncate=arguments.truncate,
    )
    print_continuation(arguments, prompt, params, arguments.echo)
    return 0
