"""Measure the included model: the figures and samples of its card, and what the settings of sampling change.

    python weights/measure.py CORPUS
    python weights/measure.py CORPUS --settings

CORPUS is the folder that the model was trained from (see train.py): ``train_*.txt`` and ``val_*.txt``. The first
command prints tables in Markdown:

- bits per byte of each held-out text, over the windows of ``refgpt evaluate perplexity``, and those of bz2;
- of samples at the settings of ``refgpt generate``, and of the held-out texts: the share of words that occur nowhere in
  the training texts, the share of runs of four words that stood earlier in the same sample, and the number of
  different words in a thousand;
- the samples of seeds 1 to 3, unedited.

The second prints the shares for a table of settings. Low temperatures misspell less and repeat more, so compare the
three columns with those of the held-out texts.
"""

from __future__ import annotations

import argparse
import bz2
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import refgpt
from refgpt.cli import build_parser
from refgpt.cli.sampling import sampling_of
from refgpt.evaluation import Perplexity, evaluate, read_rows
from refgpt.generation import GenerationParams

N_TOKENS = 120
OPENINGS = (
    "Once upon a time",
    "There was once a poor woman who",
    "The king looked at his daughter and",
    "One fine morning the little rabbit",
    '"Oh, dear!" cried the',
    "The children ran down to the river, and",
    "When the old man came home,",
    "In the middle of the forest",
)
RUN = 4  # words
TEMPERATURES = (0.6, 0.7, 0.8, 1.0)
FILTERS = ({"top_p": 0.9}, {"top_p": 0.95}, {"min_p": 0.05}, {"min_p": 0.1})
PENALTIES = (1.0, 1.15)
WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; quotation marks around them do not belong to them."""
    return WORD.findall(text.lower())


def share_unknown(texts: Iterable[Sequence[str]], known: set[str]) -> float:
    """The share of words that are not known."""
    words = [word for text in texts for word in text]
    return sum(word not in known for word in words) / max(len(words), 1)


def share_repeated(texts: Iterable[Sequence[str]]) -> float:
    """The share of runs of four words that stood earlier in the same text."""
    n_runs = n_repeated = 0
    for text in texts:
        runs = list(zip(*(text[i:] for i in range(RUN)), strict=False))
        n_runs += len(runs)
        n_repeated += len(runs) - len(set(runs))
    return n_repeated / max(n_runs, 1)


def per_thousand(texts: Iterable[Sequence[str]]) -> float:
    """The number of different words in a thousand, the average over consecutive thousands; NaN if there is none."""
    words = [word for text in texts for word in text]
    counts = [len(set(words[i : i + 1000])) for i in range(0, len(words) - 999, 1000)]
    return sum(counts) / len(counts) if counts else float("nan")


def default_params() -> GenerationParams:
    """The settings of ``refgpt generate``."""
    return sampling_of(build_parser().parse_args(["generate", "-n", str(N_TOKENS)]))


def sample(model: refgpt.Model, params: GenerationParams, n_samples: int) -> list[list[str]]:
    """The words that the model continues the openings with, but for a last one that may be cut off."""
    found = []
    for seed in range(1, -(-n_samples // len(OPENINGS)) + 1):
        for done in model.generate(list(OPENINGS), params, seed=seed):
            words = words_of(done.text)
            found.append(words[:-1] if done.finish_reason == "length" else words)
    return found[:n_samples]


def pieces(text: str, n_words: int, n_pieces: int) -> list[list[str]]:
    """Parts of a text, evenly spread, as long as a sample."""
    words = words_of(text)
    step = max(len(words) // n_pieces, n_words)
    return [words[i : i + n_words] for i in range(0, len(words) - n_words + 1, step)]


def print_held_out(model: refgpt.Model, files: Sequence[Path]) -> None:
    """Bits per byte of each text."""
    print("| text | bits per byte | bz2 -9, for comparison |\n| --- | --- | --- |")
    for file in files:
        text = file.read_bytes()
        bits = evaluate(model, Perplexity(read_rows(file, whole=True))).results["bits_per_byte"].value
        print(f"| {file.name} | {bits:.3f} | {8 * len(bz2.compress(text, 9)) / len(text):.3f} |", flush=True)


def print_shares(what: str, texts: list[list[str]], known: set[str]) -> None:
    """A row of the table of shares."""
    unknown, repeated, different = 100 * share_unknown(texts, known), 100 * share_repeated(texts), per_thousand(texts)
    shown = "too few words" if math.isnan(different) else f"{different:.0f}"
    print(f"| {what} | {unknown:.2f} % | {repeated:.2f} % | {shown} |", flush=True)


def print_samples(model: refgpt.Model) -> None:
    """What ``refgpt generate "Once upon a time" --echo -n 120 --seed S`` prints for the first three seeds."""
    for seed in (1, 2, 3):
        text = OPENINGS[0] + model.generate(OPENINGS[0], default_params(), seed=seed).text
        print(f"\nSeed {seed}:\n")
        print("\n".join(f"> {line}".rstrip() for line in text.split("\n")))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--model", type=Path, help="another model's directory (default: the included model)")
    parser.add_argument("--samples", type=int, default=200, help=f"of {N_TOKENS} tokens each (default: 200)")
    parser.add_argument("--settings", action="store_true", help="compare settings of sampling instead")
    args = parser.parse_args(arguments)
    train_files, val_files = (sorted(args.corpus.glob(f"{part}_*.txt")) for part in ("train", "val"))
    if not train_files or not val_files:
        raise SystemExit(f"{args.corpus}: needs train_*.txt and val_*.txt")
    model = refgpt.load(args.model)
    if not args.settings:
        print_held_out(model, val_files)
        print()
    known = {word for file in train_files for word in words_of(file.read_text(encoding="utf-8"))}
    print("| | words never read | repeated runs | different words in 1,000 |\n| --- | --- | --- | --- |")
    samples = sample(model, default_params(), args.samples)
    n_words = sum(map(len, samples)) // len(samples)
    for file in val_files:
        print_shares(file.name, pieces(file.read_text(encoding="utf-8"), n_words, args.samples), known)
    print_shares("`refgpt generate`", samples, known)
    if not args.settings:
        return print_samples(model)
    for temperature, kept, penalty in itertools.product(TEMPERATURES, FILTERS, PENALTIES):
        params = GenerationParams(max_new_tokens=N_TOKENS, temperature=temperature, repetition_penalty=penalty, **kept)
        ((name, value),) = kept.items()
        what = f"temperature {temperature}, {name} {value}, repetition penalty {penalty}"
        print_shares(what, sample(model, params, args.samples), known)


if __name__ == "__main__":
    main()
