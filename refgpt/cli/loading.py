"""Loads a model for a command, with a progress bar on a terminal."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from refgpt._common.progress import Progress
from refgpt._load import DTYPES, check_options, load, start
from refgpt._model import Model
from refgpt._open import open_adapter, open_adapters, open_model
from refgpt.checkpoints import Checkpoint
from refgpt.cli.printing import print_text
from refgpt.generation.drafting import check_params, check_same_ids
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompt_file import PromptFile
from refgpt.generation.prompts import encode_prompt, telling_fault
from refgpt.numbers.dtypes import known_dtype
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

log = logging.getLogger("refgpt")

T = TypeVar("T")

#: Below this many bytes, loading takes about a second and needs no progress bar.
WORTH_A_BAR = 500_000_000


def load_model(arguments: argparse.Namespace, backend: str) -> Model:
    """Load the model that the arguments name."""
    with progress_bar() as progress:
        return load(
            arguments.model,
            backend=backend,
            dtype=arguments.dtype,
            mask=arguments.mask,
            threads=arguments.threads,
            kv_dtype=arguments.kv_dtype,
            progress=progress,
            revision=arguments.revision,
            copy=arguments.copy,
            adapter=arguments.adapter,
            tokenizer=arguments.tokenizer,
            adapters=arguments.adapters,
            compute=arguments.compute,
        )


def load_for(arguments: argparse.Namespace, encode: Callable[[AnyConfig, Tokenizer | None], T]) -> tuple[Model, T]:
    """Load the model that the arguments name, and encode a prompt with ``encode``.

    The prompt is encoded first, so that a bad one is refused before the weights are read.
    """
    return load_after(arguments, lambda checkpoint, tokenizer: encode(checkpoint.config, tokenizer))


def load_after(arguments: argparse.Namespace, look: Callable[[Checkpoint, Tokenizer | None], T]) -> tuple[Model, T]:
    """Load the model that the arguments name, after ``look`` has inspected its files without raising."""
    backend, dtype, threads, kv_dtype = arguments.backend, arguments.dtype, arguments.threads, arguments.kv_dtype
    check_options(backend, dtype, threads, kv_dtype, arguments.compute)
    with progress_bar() as progress:
        checkpoint, tokenizer = open_model(
            arguments.model, arguments.mask, progress, arguments.revision, arguments.tokenizer
        )
        checkpoint, pairs = open_adapter(arguments.adapter, checkpoint, arguments.mask)
        named = open_adapters(arguments.adapters, arguments.adapter, checkpoint, arguments.mask)
        with telling_fault(checkpoint.tokenizer_fault):
            seen = look(checkpoint, tokenizer)
        model = start(
            checkpoint,
            tokenizer,
            backend,
            dtype,
            arguments.mask,
            threads,
            kv_dtype,
            progress,
            copy=arguments.copy,
            pairs=pairs,
            named=named,
            compute=arguments.compute,
        )
        return model, seen


def add_draft_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that ``load_with_draft`` reads beside those of ``load_for``."""
    add = parser.add_argument_group("draft model").add_argument
    add(
        "--draft",
        metavar="MODEL",
        help="a smaller model with the same vocabulary: it drafts up to 15 tokens, which one pass of the model "
        "checks; faster if the two mostly agree, with the same result",
    )
    add(
        "--draft-dtype",
        type=known_dtype,
        choices=[dtype for dtype in DTYPES["numpy"] if dtype],
        help="dtype of the draft model's weights in memory (default: as stored)",
    )


def load_with_draft(
    arguments: argparse.Namespace, encode: Callable[[AnyConfig, Tokenizer | None], T]
) -> tuple[Model, Model | None, T]:
    """``load_for``, and the draft model that the arguments name, if any. Both are opened before weights are read."""
    if arguments.draft is None:
        model, encoded = load_for(arguments, encode)
        return model, None, encoded
    backend, dtype, threads, kv_dtype = arguments.backend, arguments.draft_dtype, arguments.threads, arguments.kv_dtype
    check_options(backend, dtype, threads, None)

    def encode_and_open(config: AnyConfig, tokenizer: Tokenizer | None) -> tuple[T, Checkpoint, Tokenizer | None]:
        encoded = encode(config, tokenizer)
        draft, draft_tokenizer = open_model(arguments.draft)
        check_same_ids(config, tokenizer, draft.config, draft_tokenizer)
        return encoded, draft, draft_tokenizer

    model, (encoded, checkpoint, tokenizer) = load_for(arguments, encode_and_open)
    with progress_bar("loading the draft model") as progress:
        draft = start(checkpoint, tokenizer, backend, dtype, "auto", threads, kv_dtype, progress)
    return model, draft, encoded


def print_continuation(
    arguments: argparse.Namespace,
    prompt: str,
    params: GenerationParams,
    echo: bool,
    prompt_cache: str | None = None,
) -> None:
    """Print what the model that the arguments ask for writes after a prompt, and the prompt before it if ``echo``.

    Several texts have a line of three hyphens between them. ``prompt_cache`` is that of ``Model.generate``.
    """
    options: dict[str, Any] = {}
    if prompt_cache is not None:
        PromptFile(prompt_cache)  # a file that is not a prompt cache is refused before the weights are read
        options["prompt_cache"] = prompt_cache
    if arguments.draft is not None:
        check_params(params)
    model, draft, ids = load_with_draft(
        arguments, lambda config, tokenizer: encode_prompt(prompt, config, tokenizer, params)
    )
    if draft is not None:
        options["draft"] = draft
    if max(params.n_drawn, params.num_beams) > 1:
        texts = model.generate(ids, params, **options)
        for i, one in enumerate(texts if isinstance(texts, list) else [texts]):
            print_text("---\n" if i else "")
            print_text(f"{prompt if echo else ''}{one.text}\n")
        return
    pieces = model.stream(ids, params, **options)
    if echo:
        print_text(prompt)
    for piece in pieces:
        print_text(piece)
    print_text("\n")


def watched() -> bool:
    """Whether progress bars are shown: standard error is a terminal and -q was not given."""
    return sys.stderr.isatty() and log.isEnabledFor(logging.WARNING)


@contextmanager
def progress_bar(what: str = "loading") -> Iterator[Progress | None]:
    """Show a bar on standard error while many bytes are loaded or written, if ``watched()``."""
    if not watched():
        yield None
        return
    from tqdm import tqdm

    with ExitStack() as stack:
        bars: list[tqdm] = []

        def progress(n_done: int, n_total: int) -> None:
            if not bars and n_total >= WORTH_A_BAR:
                bars.append(stack.enter_context(tqdm(desc=what, unit="B", unit_scale=True, leave=False, total=n_total)))
            for bar in bars:
                if bar.total != n_total:  # an archive has been unpacked and its weights are packed next
                    bar.reset(n_total)
                bar.update(n_done - bar.n)

        yield progress
