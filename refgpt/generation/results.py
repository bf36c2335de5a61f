"""The results of generation: events, and finished continuations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from refgpt.generation.sampling import Choice


@dataclass(frozen=True)
class Generation:
    """The continuation of one prompt.

    Attributes
    ----------
    text : str
        The new text, without the stop string or end-of-text token that ended it. A character that the prompt's ids
        begin and the new ids complete is part of it. "" for a model without a tokenizer.
    ids : list of int
        The new tokens, including those that ended it.
    finish_reason : str
        "stop": an end-of-text token or a stop string. "length": ``max_new_tokens``, or the context is full.
    logprobs : list of float or None
        Log-probability of each token of ``ids``, if asked for.
    top_logprobs : list of dict from id to float, or None
        For each token the likeliest ones, best first, if any were asked for (``logprobs`` from 1).
    n_prompt : int
        The number of tokens of the prompt, after any truncation.
    score : float or None
        For a beam: its log-likelihood, divided by its length to the power ``length_penalty``. With ``best_of``: its
        log-likelihood per token.
    """

    text: str
    ids: list[int]
    finish_reason: str
    logprobs: list[float] | None
    top_logprobs: list[dict[int, float]] | None
    n_prompt: int
    score: float | None = None


@dataclass(frozen=True)
class Event:
    """One new token, or the end of a request that cannot go on.

    Attributes
    ----------
    seq : int
        The prompt that it continues: its place in a list of prompts, or the number that ``Scheduler.add`` returned.
    choice : Choice or None
        The token; None if there is an error instead.
    text : str
        The text that has become certain with this token.
    held : str
        The text after it, which is held back because it may become part of a stop string.
    finish_reason : str or None
        Set with the last token, see ``Generation``; "error" if the request has failed.
    error : Exception or None
        The cause of the failure.
    index : int
        The number of the continuation, of several. Those of a beam search, and of ``best_of``, come when all are
        finished, the best first.
    score : float or None
        Set with the last token of a text that has a score, see ``Generation``.
    prompt : tuple of Choice, or None
        Set in the first event if the prompt is scored: the prompt's tokens except the first, with their
        log-probabilities.
    """

    seq: int
    choice: Choice | None
    text: str
    held: str
    finish_reason: str | None
    error: Exception | None = None
    index: int = 0
    score: float | None = None
    prompt: tuple[Choice, ...] | None = None


def gathered(events: Sequence[Event], n_prompt: int) -> Generation:
    """Join all events of a continuation."""
    choices = [event.choice for event in events if event.choice is not None]
    return Generation(
        text="".join(event.text for event in events),
        ids=[choice.id for choice in choices],
        finish_reason=events[-1].finish_reason or "",
        # every token has these or none has
        logprobs=[choice.logprob for choice in choices if choice.logprob is not None] or None,
        top_logprobs=[choice.top_logprobs for choice in choices if choice.top_logprobs is not None] or None,
        n_prompt=n_prompt,
        score=events[-1].score,
    )
