"""Log-probabilities of given continuations of a prompt: what generation would draw from, read instead of drawn.

A continuation is causal whatever the mask. Where the prompt sees itself both ways (GPT-JT), it ends where the
continuation begins: under a mask of ones over the whole text, as GPT-JT's files store it, each token would see the very
tokens it is to predict.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np

from refgpt._common.errors import GenerationError
from refgpt.generation.prefix_cache import PrefixCache
from refgpt.generation.prompts import BYTES, Prompt, needs_tokenizer, prompt_ids
from refgpt.generation.results import Event
from refgpt.generation.sampling import check_logits, log_softmax
from refgpt.generation.scheduler import MOST_TOGETHER, Scheduler, enough_bytes
from refgpt.generation.sequence import Generates, Task, prefix_of
from refgpt.runtime.engine import Session
from refgpt.spec.config import AnyConfig
from refgpt.spec.ids import check_ids, check_tokens
from refgpt.tokenizers import Tokenizer


class Given(Task):
    """A continuation that is read instead of drawn.

    Attributes
    ----------
    scores : list of float
        Log-probabilities of its tokens, as far as they are known.
    greedy : bool
        Whether each of them was the likeliest.
    """

    def __init__(self, prompt: Sequence[int], prefix_len: int, continuation: Sequence[int], n_positions: int) -> None:
        super().__init__(0, [*prompt, *continuation[:-1]], len(prompt), prefix_len, n_positions)
        self.scores: list[float] = []
        self.greedy = True
        self._continuation = continuation

    def take(self, session: Session, rows: np.ndarray) -> list[Event]:
        """Look up the token that each row predicts."""
        for row in rows:
            check_logits(row)
            token = self._continuation[len(self.scores)]
            self.scores.append(float(log_softmax(row)[token]))
            self.greedy = self.greedy and int(row.argmax()) == token
        self.finished = len(self.scores) == len(self._continuation)
        return []


@overload
def score(
    model: Generates,
    prompt: Sequence[int],
    continuations: Sequence[Sequence[int]],
    return_greedy: Literal[False] = False,
    prefix_cache: PrefixCache | None = None,
) -> list[np.ndarray]: ...
@overload
def score(
    model: Generates,
    prompt: Sequence[int],
    continuations: Sequence[Sequence[int]],
    return_greedy: bool,
    prefix_cache: PrefixCache | None = None,
) -> Any: ...
def score(
    model: Generates,
    prompt: Sequence[int],
    continuations: Sequence[Sequence[int]],
    return_greedy: bool = False,
    prefix_cache: PrefixCache | None = None,
) -> list[np.ndarray] | list[tuple[np.ndarray, bool]]:
    """Log-probability of each token of each continuation, given the prompt and the tokens before it.

    The prompt is computed once, and the continuations after it, as many of them together as there is memory for.

    Parameters
    ----------
    model : object with engine, tokenizer and mask
    prompt : sequence of int
    continuations : sequence of sequences of int
        Both as ``encode_continuations`` returns them.
    return_greedy : bool
        Say too whether a continuation is what greedy decoding would have written.
    prefix_cache : PrefixCache, optional
        Where what was computed for earlier prompts is looked for, and kept. It changes no bit.

    Returns
    -------
    list of ndarray, float64
        One a continuation, one natural logarithm a token. Probabilities are the model's own, over all rows of its head.
        With ``return_greedy`` a list of pairs of such an array and a bool: whether each token was the likeliest, the
        lowest id among equals.

    Raises
    ------
    GenerationError
        If the model computes logits that are NaN or infinite.
    """
    longest = max(map(len, continuations), default=0)
    if not longest:
        return [(np.empty(0), True) for _ in continuations] if return_greedy else [np.empty(0) for _ in continuations]
    n_positions = len(prompt) + longest - 1  # the last token is predicted, and predicts nothing
    tasks = [Given(prompt, prefix_of(model, prompt), ids, n_positions) for ids in continuations]
    some = [task for task, ids in zip(tasks, continuations, strict=True) if len(ids)]
    scheduler = Scheduler(
        model,
        min(len(some), MOST_TOGETHER),
        enough_bytes([model.engine], n_positions),
        capacity=n_positions,
        prefix_cache=prefix_cache,
    )
    scheduler.add_tasks(some)
    while scheduler.busy:
        for event in scheduler.step():
            if event.error is not None:
                raise event.error
    scores = [np.array(task.scores, np.float64) for task in tasks]
    return [(one, task.greedy) for one, task in zip(scores, tasks, strict=True)] if return_greedy else scores


def encode_continuations(
    prompt: Prompt | np.ndarray,
    continuations: Sequence[Prompt] | np.ndarray,
    config: AnyConfig,
    tokenizer: Tokenizer | None,
    fault: str = "",
) -> tuple[list[int], list[list[int]]]:
    """A prompt and what may follow it, as ids that fit into the model's context.

    A continuation that is text, after a prompt that is text, gets the ids that it has within the whole: those that
    follow the prompt's in the encoding of both together. So a word is spelt as it would be in the midst of a text, with
    sentencepiece too, which puts a space before a text of its own. Where the whole does not begin with the prompt's
    ids, since a token would span the seam, and after a prompt of ids, the continuation is encoded by itself. With
    byte-level BPE the two ways agree if the prompt does not end with a space and the continuation begins with one.

    Returns
    -------
    prompt : list of int
        Of an empty prompt the id that a text begins with.
    continuations : list of list of int
        An empty continuation has none.

    Raises
    ------
    GenerationError
        If ids do not exist, a text has no tokenizer, an empty prompt no id to start from, or a prompt with a
        continuation is longer than the context.
    """
    listlike = isinstance(continuations, Sequence) or (isinstance(continuations, np.ndarray) and continuations.ndim > 0)
    if isinstance(continuations, (str, *BYTES)) or not listlike:
        raise GenerationError(
            "cannot be used",
            where="continuations",
            got=type(continuations).__name__,
            wanted="a list of texts, or of lists of ids",
        )
    given = prompt if isinstance(prompt, str) else _ids("prompt", prompt, config)
    start = check_ids(prompt_ids(given, config, tokenizer, fault), config).tolist()
    before = (prompt, tokenizer.encode(prompt)) if isinstance(prompt, str) and tokenizer is not None else None
    encoded = []
    for i, continuation in enumerate(continuations):
        where = f"continuations[{i}]"
        if not isinstance(continuation, str):
            ids = _ids(where, continuation, config)
        elif tokenizer is None:
            raise needs_tokenizer(f"{where} is text", "give it as a list of ids", fault)
        else:
            ids = _ids(where, encode_after(before, continuation, tokenizer), config)
        if len(start) + len(ids) > config.n_ctx + 1:
            raise GenerationError(
                "is too long for the model's context",
                where=where,
                got=f"{len(ids)} tokens after {len(start)} of the prompt",
                wanted=f"at most {config.n_ctx + 1} together, as the last is only predicted",
                fix="shorten either",
            )
        encoded.append(ids)
    return start, encoded


def encode_after(before: tuple[str, list[int]] | None, text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text after another. ``before`` is the other text with its ids; None if it was given as ids."""
    if before is not None:
        prompt, prompt_ids = before
        whole = tokenizer.encode(prompt + text)
        if whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
    return tokenizer.encode(text)


def _ids(where: str, given: Sequence[int] | np.ndarray, config: AnyConfig) -> list[int]:
    """Ids that exist; anything else is refused with its place."""
    if isinstance(given, BYTES):
        raise GenerationError(
            "cannot be used",
            where=where,
            got=type(given).__name__,
            wanted="a text or a list of ids",
            fix="decode bytes to a text",
        )
    try:
        ids: list[int] = check_tokens(given, config).tolist()
        return ids
    except GenerationError as error:
        raise error.within(where) from None
