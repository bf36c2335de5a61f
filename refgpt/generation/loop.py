"""Generate texts from prompts: loops over a scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from refgpt._common.errors import GenerationError
from refgpt.generation.params import GenerationParams
from refgpt.generation.prefix_cache import PrefixKeeper
from refgpt.generation.prompts import is_batch
from refgpt.generation.results import Event, gathered
from refgpt.generation.scheduler import MOST_TOGETHER, Scheduler, engines_of, enough_bytes
from refgpt.generation.sequence import Generates
from refgpt.tokenizers import Tokenizer


def generate_events(
    model: Generates,
    prompts: Sequence[Sequence[int]],
    params: GenerationParams,
    prefix_cache: PrefixKeeper | None = None,
    draft: Generates | None = None,
) -> Iterator[Event]:
    """Continue prompts, yielding each token as soon as it is drawn.

    Parameters
    ----------
    model : object with engine, tokenizer and mask
    prompts : list of list of int
        As ``encode_prompt`` returns them.
    params : GenerationParams
        The same for all of them.
    prefix_cache : PrefixCache or PromptFile, optional
        See ``Scheduler``.
    draft : object with engine, tokenizer and mask, optional
        A smaller model with the same ids, which drafts tokens for this one to check: see ``Scheduler``.

    Yields
    ------
    Event
        The last one of every prompt has a ``finish_reason``.

    Raises
    ------
    GenerationError
        If the model computes logits that are NaN or infinite, or the draft model cannot be used.
    """
    capacity = min(model.engine.config.n_ctx, max(map(len, prompts)) + params.max_new_tokens)
    n_texts = len(prompts) * max(params.num_beams, params.n_drawn)
    scheduler = Scheduler(
        model,
        max(params.num_beams, min(n_texts, MOST_TOGETHER)),
        enough_bytes(engines_of(model, draft), params.num_beams * capacity),
        capacity=capacity,
        prefix_cache=prefix_cache,
        draft=draft,
    )
    for prompt in prompts:
        scheduler.add_ids(prompt, params)
    while scheduler.busy:
        for event in scheduler.step():
            if event.error is not None:
                raise event.error
            yield event


def generate(
    model: Generates,
    prompts: Sequence[Sequence[int]],
    params: GenerationParams,
    prefix_cache: PrefixKeeper | None = None,
    draft: Generates | None = None,
) -> list[Any]:
    """Run ``generate_events`` to its end and gather what belongs to each prompt.

    Returns
    -------
    list of Generation
        One for each prompt; with several ``num_return_sequences``, a list for each prompt, beams with the best first.
    """
    events: list[dict[int, list[Event]]] = [{} for _ in prompts]
    for event in generate_events(model, prompts, params, prefix_cache, draft):
        events[event.seq].setdefault(event.index, []).append(event)
    texts = [
        [gathered(own[index], len(prompt)) for index in sorted(own)]
        for own, prompt in zip(events, prompts, strict=True)
    ]
    return texts if params.num_return_sequences > 1 else [own[0] for own in texts]


def check_streamed(prompt: object, params: GenerationParams, tokenizer: Tokenizer | None, fault: str) -> None:
    """Refuse a prompt that is not a single text.

    Parameters
    ----------
    prompt : object
        The user's prompt.
    fault : str
        Why the model's own tokenizer cannot be used, if it cannot.

    Raises
    ------
    GenerationError
    """
    if is_batch(prompt):
        got = f"a list of {len(prompt)}"  # type: ignore[arg-type]
        raise GenerationError("takes one prompt", where="stream", got=got, fix="use generate for several")
    if max(params.n_drawn, params.num_beams) > 1:
        raise GenerationError(
            "gives one text, token by token",
            where="stream",
            got=f"num_return_sequences {params.n_drawn}, num_beams {params.num_beams}",
            fix="use generate for several, and for beams",
        )
    if tokenizer is None:
        raise GenerationError(
            "this model has no tokenizer, so there is no text to stream",
            where="stream",
            got=fault or None,
            fix="use generate, whose result has .ids",
        )


def stream_text(
    model: Generates,
    prompt: Sequence[int],
    params: GenerationParams,
    prefix_cache: PrefixKeeper | None = None,
    draft: Generates | None = None,
) -> Iterator[str]:
    """Run ``generate_events`` on one prompt -> its text, piece by piece; all of it so far if Ctrl-C ends it."""
    held = ""
    try:
        for event in generate_events(model, [prompt], params, prefix_cache, draft):
            held = event.held
            if event.text:
                yield event.text
    except KeyboardInterrupt:
        if held:
            yield held
        raise
