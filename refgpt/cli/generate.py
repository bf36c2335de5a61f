"""``refgpt generate``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

from refgpt._common.arguments import path_of
from refgpt._common.errors import GenerationError, RefgptError
from refgpt._common.small_files import read_bytes
from refgpt.cli.loading import add_draft_arguments, print_continuation
from refgpt.cli.options import Commands, add_command, add_running_arguments
from refgpt.cli.prompts import add_prompt_arguments, read_prompt
from refgpt.cli.sampling import add_sampling_arguments, sampling_of
from refgpt.generation import Constraint, grammar, json_schema, regex

#: Most bytes of a grammar or a schema.
LARGEST_GRAMMAR = 1 << 22

EXAMPLES = r"""examples:
  refgpt generate "Once upon a time"
  refgpt generate "Once upon a time" --temperature 0 -n 50        always the most likely token
  refgpt generate "The recipe:" --top-k 40 --seed 7 --stop "\n"   the same text every time, up to the end of a line
  refgpt generate "Once upon a time" --num-beams 4 -n 30          the likeliest text that a beam search finds
  refgpt generate "Once upon a time" --num-return-sequences 3     three texts
  refgpt generate "The toad is" --regex " (old|green|[0-9]+ years old)\."    a text of this form
  refgpt generate -m ~/gpt-j-6b -f story.txt --truncate left      a model and a prompt of your own
  refgpt generate -f story.txt --prompt-cache story.state         the second time the story is not read again
  refgpt generate -m ~/gpt-j-6b --draft ~/gpt-neo-125m "Once"     the same text, drafted by a smaller model
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
    generate.add_argument(
        "--prompt-cache",
        metavar="FILE",
        help="keep the prompt's keys and values in a file, and reuse those of an earlier prompt with the same "
        "beginning; the text does not change",
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
        "--best-of",
        type=int,
        metavar="N",
        help="draw N continuations and write the --num-return-sequences likeliest of them",
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
        help="when a beam search ends: as soon as enough texts have ended (yes), when a better text is unlikely (no), "
        "or when it is impossible (never) (default: no)",
    )
    what = generate.add_argument_group('constraints on the text (needs pip install "refgpt[constrain]")')
    either = what.add_mutually_exclusive_group().add_argument
    either("--json-schema", metavar="FILE", help="JSON that matches the schema in this file")
    either("--regex", metavar="REGEX", help="a text that matches this regular expression")
    either(
        "--grammar",
        metavar="FILE",
        help="a text that matches the grammar in this file: Lark's syntax or llama.cpp's GBNF",
    )
    add_running_arguments(generate)
    add_draft_arguments(generate)


def _generate(arguments: argparse.Namespace) -> int:
    prompt = read_prompt(arguments, 'refgpt generate "Once upon a time"')
    # A mistake is found before the weights are read.
    params = replace(
        sampling_of(arguments, truncate=arguments.truncate),
        num_return_sequences=arguments.num_return_sequences,
        best_of=arguments.best_of,
        num_beams=arguments.num_beams,
        length_penalty=arguments.length_penalty,
        early_stopping={"yes": True, "no": False}.get(arguments.early_stopping, "never"),
        constraint=_constraint_of(arguments),
    )
    print_continuation(arguments, prompt, params, arguments.echo, arguments.prompt_cache)
    return 0


def _constraint_of(arguments: argparse.Namespace) -> Constraint | None:
    """The constraint on the text, or None."""
    if arguments.regex is not None:
        return regex(arguments.regex)
    if arguments.json_schema is not None:
        return _from_file(arguments.json_schema, "--json-schema", json_schema)
    if arguments.grammar is not None:
        return _from_file(arguments.grammar, "--grammar", grammar)
    return None


def _from_file(file: str, option: str, make: Callable[[str], Constraint]) -> Constraint:
    raw = read_bytes(path_of(option, file, GenerationError), GenerationError, LARGEST_GRAMMAR)
    try:
        return make(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        got = f"byte {error.start}"
        raise GenerationError("is not UTF-8 text", where=file, got=got, fix="save it as UTF-8") from None
    except RefgptError as error:
        raise error.within(file) from None
