"""Log-probabilities of given continuations of a prompt: what generation would draw from, read instead of drawn.

A continuation is causal whatever the mask. Where the prompt sees itself both ways (GPT-JT), it ends where the
continuation begins: under a mask of ones over the whole text, as GPT-JT's files store it, each token would see the very
tokens it is to predict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from refgpt._common.errors import GenerationError
from refgpt.generation.loop import Generates
from refgpt.generation.prompts import BYTES, Prompt, needs_tokenizer, prompt_ids
from refgpt.generation.sampling import check_logits, log_softmax
from refgpt.runtime.engine import Session
from refgpt.spec.config import AnyConfig
from refgpt.spec.ids import check_ids, check_tokens
from refgpt.tokenizers import Tokenizer

#: Rows of logits held at once: those of a long continuation would take more memory than the model's activations.
ROWS_TOGETHER = 64


def score(model: Generates, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Log-probability of each token of each continuation, given the prompt and the tokens before it.

    The prompt is computed once, and each continuation after it.

    Parameters
    ----------
    model : object with engine, tokenizer and mask
    prompt : sequence of int
    continuations : sequence of sequences of int
        Both as ``encode_continuations`` returns them.

    Returns
    -------
    list of ndarray, float64
        One a continuation, one natural logarithm a token. Probabilities are the model's own, over all rows of its head.

    Raises
    ------
    GenerationError
        If the model computes logits that are NaN or infinite.
    """
    longest = max(map(len, continuations), default=0)
    if not longest:
        return [np.empty(0) for _ in continuations]
    session = model.engine.session(1, len(prompt) + longest - 1)  # the last token is predicted, and predicts nothing
    first = session.prefill(0, prompt, len(prompt) if model.mask == "prefix" else 0)
    scores = []
    for ids in continuations:
        rows = _rows(session, first, ids)
        scores.append(np.array([_logprob(row, token) for row, token in zip(rows, ids, strict=True)], np.float64))
        session.truncate(0, len(prompt))
    return scores


def _rows(session: Session, first: np.ndarray, ids: Sequence[int]) -> Iterator[np.ndarray]:
    """The row of logits that predicts each of ``ids``, which follow what slot 0 holds; ``first`` is its last row."""
    if len(ids):
        yield first
    fed = ids[:-1]
    for start in range(0, len(fed), ROWS_TOGETHER):
        yield from session.extend(0, fed[start : start + ROWS_TOGETHER])


def _logprob(row: np.ndarray, token: int) -> float:
    check_logits(row)
    return float(log_softmax(row)[token])


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
            ids = _ids(where, _encode_after(before, continuation, tokenizer), config)
        if len(start) + len(ids) > config.n_ctx:
            raise GenerationError(
                "is too long for the model's context",
                where=where,
                got=f"{len(ids)} tokens after {len(start)} of the prompt",
                wanted=f"at most {config.n_ctx} together",
                fix="shorten either",
            )
        encoded.append(ids)
    return start, encoded


def _encode_after(before: tuple[str, list[int]] | None, text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text after another, of which the ids are given too; None if that was not a text."""
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
