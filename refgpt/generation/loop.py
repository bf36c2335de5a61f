"""From prompts to texts: loops over a scheduler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from refgpt.generation.params import GenerationParams
from refgpt.generation.results import Event, Generation, gathered
from refgpt.generation.scheduler import MOST_TOGETHER, Scheduler, enough_bytes
from refgpt.generation.sequence import Generates


def generate_events(model: Generates, prompts: Sequence[Sequence[int]], params: GenerationParams) -> Iterator[Event]:
    """Continue prompts, yielding each token as soon as it is drawn.

    Parameters
    ----------
    model : object with engine, tokenizer and mask
    prompts : list of list of int
        As ``encode_prompt`` returns them.
    params : GenerationParams
        The same for all of them.

    Yields
    ------
    Event
        The last one of every prompt has a ``finish_reason``.

    Raises
    ------
    GenerationError
        If the model computes logits that are NaN or infinite.
    """
    capacity = min(model.engine.config.n_ctx, max(map(len, prompts)) + params.max_new_tokens)
    most = enough_bytes(model.engine, capacity)
    scheduler = Scheduler(model, min(len(prompts), MOST_TOGETHER), most, capacity=capacity)
    for prompt in prompts:
        scheduler.add_ids(prompt, params)
    while scheduler.busy:
        for event in scheduler.step():
            if event.error is not None:
                raise event.error
            yield event


def generate(model: Generates, prompts: Sequence[Sequence[int]], params: GenerationParams) -> list[Generation]:
    """Run ``generate_events`` to its end and gather what belongs to each prompt."""
    events: list[list[Event]] = [[] for _ in prompts]
    for event in generate_events(model, prompts, params):
        events[event.seq].append(event)
    return [gathered(own, len(prompt)) for own, prompt in zip(events, prompts, strict=True)]


def stream_text(model: Generates, prompt: Sequence[int], params: GenerationParams) -> Iterator[str]:
    """Run ``generate_events`` on one prompt -> its text, piece by piece; all of it so far if Ctrl-C ends it."""
    held = ""
    try:
        for event in generate_events(model, [prompt], params):
            held = event.held
            if event.text:
                yield event.text
    except KeyboardInterrupt:
        if held:
            yield held
        raise
