"""What to write: the options of ``generate`` and ``chat`` that make a ``GenerationParams``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from refgpt.cli.options import unescaped
from refgpt.generation.params import GenerationParams


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what ``sampling_of`` reads of the arguments."""
    add = parser.add_argument_group("what to write").add_argument
    add("-n", "--max-new-tokens", type=int, default=128, metavar="N", help="write at most N tokens (default: 128)")
    add(
        "--temperature",
        "--temp",
        type=float,
        default=0.7,
        metavar="T",
        help="0: always the most likely token; 1: the model's own distribution (default: 0.7)",
    )
    add("--top-k", type=int, metavar="K", help="choose among the K most likely tokens only (default: among all)")
    add(
        "--top-p",
        type=float,
        default=0.9,
        metavar="P",
        help="choose among the most likely tokens that have probability P together (default: 0.9)",
    )
    add(
        "--repetition-penalty",
        "--repeat-penalty",
        type=float,
        default=1.15,
        metavar="X",
        help="above 1: penalise tokens of the text so far, prompt included (default: 1.15; 1: off)",
    )
    add(
        "--presence-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="above 0: penalise tokens that were generated before, however often (default: 0)",
    )
    add(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="above 0: penalise tokens in proportion to how often they were generated (default: 0)",
    )
    add("--seed", type=int, metavar="N", help="the same number gives the same text again (default: a new one)")
    add("--stop", action="append", metavar="TEXT", help=r"end before this text; can be repeated; \n is a new line")
    add(
        "--speculate",
        type=int,
        default=7,
        metavar="N",
        help="draft up to N tokens by copying from earlier in the text, and check them together: faster where a text "
        "repeats itself, and the same text (default: 7; 0: off)",
    )
    add("--ignore-eos", action="store_true", help="go on after the model has ended its text")


def sampling_of(
    arguments: argparse.Namespace, stop: Sequence[str] = (), truncate: str | None = None
) -> GenerationParams:
    """The parameters that the arguments ask for, with more stop strings before theirs.

    Raises
    ------
    GenerationError
        Naming the first that cannot be used.
    """
    return GenerationParams(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        presence_penalty=arguments.presence_penalty,
        frequency_penalty=arguments.frequency_penalty,
        seed=arguments.seed,
        stop=[*stop, *(unescaped(text) for text in arguments.stop or ())],
        ignore_eos=arguments.ignore_eos,
        speculate=arguments.speculate,
        truncate=truncate,
    )
