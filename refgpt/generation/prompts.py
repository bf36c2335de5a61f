"""Prompts: texts or ids, one or several, and what they are as ids that fit into a model."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeGuard

import numpy as np

from refgpt._common.errors import GenerationError
from refgpt.generation.params import GenerationParams
from refgpt.spec.config import AnyConfig
from refgpt.spec.ids import check_ids
from refgpt.tokenizers import Tokenizer

log = logging.getLogger("refgpt")

Prompt = str | Sequence[int]
BYTES = (bytes, bytearray, memoryview)
#: Parts of the error of a text that has no tokenizer: where there is none, and where the one there is cannot be used.
NO_TOKENIZER, UNUSABLE = "this model has no tokenizer", "this model's tokenizer cannot be used"
BESIDE = "put its tokenizer.json beside the weights"
ANOTHER = "give another: tokenizer='DIRECTORY' (--tokenizer DIRECTORY)"


def _is_list(value: object) -> TypeGuard[Sequence[Any] | np.ndarray]:
    """Whether this can be ids or prompts: bytes are sequences of whole numbers, but nobody means them as ids."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, (str, *BYTES))


def _no_prompt(got: object) -> GenerationError:
    return GenerationError(
        "cannot be used",
        where="prompt",
        got=type(got).__name__,
        wanted="a text, a list of ids, or a list of either",
        fix="decode bytes to a text" if isinstance(got, BYTES) else "",
    )


def is_batch(prompt: object) -> bool:
    """Whether this is a list of prompts rather than one.

    Raises
    ------
    GenerationError
        If it is neither, or an empty list, which could be either.
    """
    if isinstance(prompt, str):
        return False
    if not _is_list(prompt):
        raise _no_prompt(prompt)
    if not len(prompt):
        raise GenerationError(
            "no prompts, or one without tokens",
            where="prompt",
            got="an empty list",
            fix="give '' or [[]] for an empty prompt, or a list of prompts",
        )
    if isinstance(prompt, np.ndarray):
        return prompt.ndim > 1
    kinds = {type(item): item for item in prompt}  # of a million ids, one has to be looked at
    items: Iterable[Any] = prompt if any(issubclass(kind, np.ndarray) for kind in kinds) else kinds.values()
    for item in items:
        if isinstance(item, BYTES):
            raise _no_prompt(item)
    batched = {isinstance(item, str) or _is_list(item) for item in items}
    if len(batched) > 1:
        raise GenerationError("mixes ids with prompts", where="prompt", wanted="a list of ids, or a list of prompts")
    return batched == {True}


def encode_prompt(
    prompt: Prompt | np.ndarray,
    config: AnyConfig,
    tokenizer: Tokenizer | None,
    params: GenerationParams,
    fault: str = "",
) -> list[int]:
    """A prompt as ids that leave room for at least one new token.

    Raises
    ------
    GenerationError
        If the prompt is too long, is a text without a tokenizer, is empty without a token to start from, or has ids
        that do not exist.
    """
    ids = prompt_ids(prompt, config, tokenizer, fault)
    too_long = len(ids) + (params.max_new_tokens if params.truncate else 1) > config.n_ctx
    if too_long and params.truncate and config.n_ctx > 1:
        n_kept = max(config.n_ctx - params.max_new_tokens, config.n_ctx // 2)
        if n_kept < len(ids):
            log.warning("kept the last %d of the prompt's %d tokens", n_kept, len(ids))
            ids = ids[-n_kept:]
    elif too_long and config.n_ctx == 1:
        raise GenerationError(
            "the model's context has one position, and so no room for a new token",
            where="prompt",
            fix="ask for its logits instead",
        )
    elif too_long:
        raise GenerationError(
            "the prompt leaves no room in the model's context for a new token",
            where="prompt",
            got=f"{len(ids)} tokens",
            wanted=f"at most {config.n_ctx - 1}",
            fix="give a shorter prompt, or keep only its end: truncate='left' (--truncate left)",
        )
    return [int(i) for i in check_ids(ids, config)]


def prompt_ids(
    prompt: Prompt | np.ndarray, config: AnyConfig, tokenizer: Tokenizer | None, fault: str = ""
) -> list[int]:
    """The ids of a prompt; of an empty one the id that a text begins with, if there is such an id.

    Raises
    ------
    GenerationError
        If the prompt is a text without a tokenizer.
    """
    if not isinstance(prompt, str):
        ids = list(prompt)
    elif tokenizer is None:
        raise needs_tokenizer("the prompt is text", "give the prompt as a list of ids", fault)
    else:
        ids = tokenizer.encode(prompt)
    if not len(ids):
        starts = (config.bos_id, config.eos_id, None if tokenizer is None else tokenizer.eos_id)
        ids = [start for start in starts if start is not None and start < config.n_vocab][:1]
    return ids


class NoTokenizer(GenerationError):
    """A text was given to a model that takes ids alone."""

    def because(self, fault: str) -> NoTokenizer:
        """The same error for a model whose own tokenizer cannot be used; ``fault`` is why, or "" if it has none."""
        if not fault:
            return self
        what, fix = self.what.replace(NO_TOKENIZER, UNUSABLE), self.fix.replace(BESIDE, ANOTHER)
        return NoTokenizer(what, where=self.where, got=fault, fix=fix)


def needs_tokenizer(why: str, instead: str, fault: str = "") -> NoTokenizer:
    """The error of a text for a model that takes ids alone; ``fault`` is why its own tokenizer cannot be used."""
    return NoTokenizer(f"{why}, and {NO_TOKENIZER}", fix=f"{BESIDE}, or {instead}").because(fault)


def fault_of(model: object) -> str:
    """Why a model's own tokenizer cannot be used; "" if it can, or there is none."""
    return getattr(getattr(model, "checkpoint", None), "tokenizer_fault", "")


@contextmanager
def telling_fault(fault: str) -> Iterator[None]:
    """Within it, the error of a text that has no tokenizer says why the model's own cannot be used."""
    try:
        yield
    except NoTokenizer as error:
        raise error.because(fault) from None
