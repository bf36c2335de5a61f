"""Sampling options of ``generate`` and ``chat``, and the ``GenerationParams`` made from them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from refgpt.cli.options import unescaped
from refgpt.generation.params import GenerationParams


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that ``sampling_of`` reads."""
    add = parser.add_argument_group("sampling").add_argument
    add("-n", "--max-new-tokens", type=int, default=128, metavar="N", help="generate at most N tokens (default: 128)")
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
        help="choose among the most likely tokens whose probabilities add up to P (default: 0.9)",
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
        help="above 0: penalise tokens that were generated before, however often they were (default: 0)",
    )
    add(
        "--frequency-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="above 0: penalise tokens in proportion to how often they were generated (default: 0)",
    )
    add(
        "--repeat-last-n",
        type=int,
        metavar="N",
        help="the repetition penalty looks at the last N tokens only (default: at all of them)",
    )
    add(
        "--no-repeat-ngram-size",
        type=int,
        default=0,
        metavar="N",
        help="write no N tokens in a row that stand in the text already (default: 0, off)",
    )
    add(
        "--min-p",
        type=float,
        metavar="P",
        help="leave out tokens less likely than P times the likeliest one (default: off)",
    )
    add(
        "--typical-p",
        type=float,
        metavar="P",
        help="choose among tokens that are about as surprising as expected, of probability P together (default: off)",
    )
    add("--epsilon-cutoff", type=float, metavar="X", help="leave out tokens less likely than X (default: off)")
    add(
        "--eta-cutoff",
        type=float,
        metavar="X",
        help="the same, but less strict where the model is less certain (default: off)",
    )
    add(
        "--min-new-tokens",
        type=int,
        default=0,
        metavar="N",
        help="do not end the text before N tokens (default: 0)",
    )
    add(
        "--suppress-token",
        type=int,
        action="append",
        metavar="ID",
        help="never write this token; can be repeated",
    )
    add(
        "--sampler",
        choices=["transformers", "mesh"],
        default="transformers",
        help="order of temperature, top-k and top-p, and random numbers; mesh: those of GPT-J's first demo, which used "
        "--temperature 1 --top-p 0.9 --repetition-penalty 1 (default: transformers)",
    )
    add("--seed", type=int, metavar="N", help="the same number gives the same text again (default: a new one)")
    add("--stop", action="append", metavar="TEXT", help=r"end before this text; can be repeated; \n is a new line")
    add(
        "--speculate",
        type=int,
        default=7,
        metavar="N",
        help="draft up to N tokens by copying from earlier in the text, "
        "and check them in one pass: faster where a text "
        "repeats itself, with the same result (default: 7; 0: off)",
    )
    add("--ignore-eos", action="store_true", help="continue after the model's end-of-text token")


def sampling_of(
    arguments: argparse.Namespace, stop: Sequence[str] = (), truncate: str | None = None
) -> GenerationParams:
    """The generation parameters given by the arguments, with extra stop strings put before theirs.

    Raises
    ------
    GenerationError
        Names the first option that cannot be used.
    """
    return GenerationParams(
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        repetition_penalty=arguments.repetition_penalty,
        presence_penalty=arguments.presence_penalty,
        frequency_penalty=arguments.frequency_penalty,
        repeat_last_n=arguments.repeat_last_n,
        no_repeat_ngram_size=arguments.no_repeat_ngram_size,
        min_p=arguments.min_p,
        typical_p=arguments.typical_p,
        epsilon_cutoff=arguments.epsilon_cutoff,
        eta_cutoff=arguments.eta_cutoff,
        min_new_tokens=arguments.min_new_tokens,
        suppress_tokens=arguments.suppress_token,
        sampler=arguments.sampler,
        seed=arguments.seed,
        stop=[*stop, *(unescaped(text) for text in arguments.stop or ())],
        ignore_eos=arguments.ignore_eos,
        speculate=arguments.speculate,
        truncate=truncate,
    )
