"""What comes out of generation: events, and continuations when they are whole."""

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
        The new text as it follows the prompt's, without the stop string or end-of-text token that ended it; a character
        that the prompt's ids begin and the new ones complete is part of it. "" for a model without tokenizer.
    ids : list of int
        The new tokens, including those that ended it.
    finish_reason : str
        "stop": an end-of-text token or a stop string. "length": ``max_new_tokens``, or the context is full.
    logprobs : list of float or None
        Log-probability of each token of ``ids``, if asked for.
    top_logprobs : list of dict from id to float, or None
        At each token the likeliest ones, best first, if any were asked for (``logprobs`` from 1).
    n_prompt : int
        Tokens of the prompt, after any truncation.
    score : float or None
        Of a beam: its log-likelihood, divided by its length to the power ``length_penalty``. Of one of the best
        (``best_of``): its log-likelihood a token.
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
        Which of the prompts it continues: in a list of prompts its place, and else what ``Scheduler.add`` returned.
    choice : Choice or None
        The token. None where an error came in its place.
    text : str
        What has become certain with it.
    held : str
        What follows, unless it becomes part of a stop string.
    finish_reason : str or None
        Of the last token, see ``Generation``; "error" where the request has failed.
    error : Exception or None
        Why it has failed.
    index : int
        Which of several continuations of the prompt. Those of a beam search, and the best of several, come when all are
        whole, the best first.
    score : float or None
        Of the last token of a text that has one, see ``Generation``.
    prompt : tuple of Choice, or None
        Of the first event where the prompt is scored: the prompt's tokens but the first, with their log-probabilities.
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
    """The continuation that all its events make."""
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
