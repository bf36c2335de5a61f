"""What a model is asked: contexts and continuations as the ids that are scored.

There are two ways from texts to ids. ``LM_EVAL`` is that of lm-evaluation-harness (with its Hugging Face backend):
context and continuation are encoded as one text, spaces at the end of the context count as part of the continuation,
and a text that is too long is cut to its last ``n_ctx + 1`` tokens (the last one is only predicted). ``GPT_J`` is that
of GPT-J's own table (``tasks/eval_harness.py`` of Mesh Transformer JAX): the context begins with the end-of-text token,
both texts are cleaned with ftfy and normalised to NFKC, they are encoded separately, and the last ``n_ctx`` tokens
remain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from refgpt._common.arguments import flag, one_of
from refgpt._common.errors import DataError, GenerationError
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompts import prompt_ids
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

SEAMS = ("together", "apart")


@dataclass(frozen=True)
class Framing:
    """How contexts and continuations become ids.

    Attributes
    ----------
    seam : "together" or "apart"
        Whether a context and its continuation are encoded as one text and then split, or each by itself.
    leading_end : bool
        Whether every context begins with the end-of-text token.
    ftfy : bool
        Whether texts are repaired with ftfy and normalised to NFKC first. Needs the package ftfy.
    beyond : int
        Of a text that is too long, so many tokens more than the context remain: 1 if the last token of a full context
        may still predict one, otherwise 0.

    Raises
    ------
    DataError
        If a setting cannot be used.
    """

    seam: str = "together"
    leading_end: bool = False
    ftfy: bool = False
    beyond: int = 1

    def __post_init__(self) -> None:
        one_of("seam", self.seam, SEAMS, DataError)
        for name in ("leading_end", "ftfy"):
            flag(name, getattr(self, name), DataError)

    def cleaner(self) -> Callable[[str], str]:
        """What texts pass through first; a DataError if it needs a package that is not installed."""
        if not self.ftfy:
            return str
        try:
            import ftfy
        except ImportError:
            raise DataError(
                "cleaning texts needs a package that is not installed",
                where="ftfy",
                fix='pip install "refgpt[eval]"',
            ) from None
        return lambda text: str(ftfy.fix_text(text, normalization="NFKC"))

    def describe(self) -> dict[str, Any]:
        """Its settings by name."""
        return asdict(self)


LM_EVAL = Framing()
GPT_J = Framing("apart", leading_end=True, ftfy=True, beyond=0)
FRAMINGS = {"lm-eval": LM_EVAL, "gpt-j": GPT_J}


@dataclass(frozen=True)
class Likelihoods:
    """A prompt and continuations of it, whose log-likelihoods are wanted. Each has one token or more."""

    prompt: list[int]
    continuations: list[list[int]]


@dataclass(frozen=True)
class Text:
    """A prompt, to be continued by generation."""

    prompt: list[int]
    params: GenerationParams


def encode_pairs(
    pairs: Sequence[tuple[str, str]],
    framing: Framing,
    config: AnyConfig,
    tokenizer: Tokenizer,
    clean: Callable[[str], str] = str,
) -> list[Likelihoods]:
    """Contexts with their continuations as ids; neighbours that share a context become one request.

    Parameters
    ----------
    pairs : sequence of (context, continuation)
    framing : Framing
    config : Config
    tokenizer : Tokenizer
    clean : callable
        What ``framing.cleaner()`` returned.

    Returns
    -------
    list of Likelihoods
        Their continuations, in order, are those of ``pairs``.

    Raises
    ------
    GenerationError
        If a continuation has no tokens of its own, or more than fit into the context, or an empty context has no token
        to start from.
    """
    requests: list[Likelihoods] = []
    for context, continuation in pairs:
        prompt, ids = encode_pair(clean(context), clean(continuation), framing, config, tokenizer)
        if requests and requests[-1].prompt == prompt:
            requests[-1].continuations.append(ids)
        else:
            requests.append(Likelihoods(prompt, [ids]))
    return requests


def encode_pair(
    context: str, continuation: str, framing: Framing, config: AnyConfig, tokenizer: Tokenizer
) -> tuple[list[int], list[int]]:
    """One context and its continuation as ids that fit into the model. Errors are those of ``encode_pairs``."""
    if framing.seam == "apart":
        before, after = tokenizer.encode(context), tokenizer.encode(continuation)
    elif context:
        bare = context.rstrip()
        before = tokenizer.encode(bare)
        after = tokenizer.encode(context + continuation)[len(before) :]
    else:
        before, after = [], tokenizer.encode(continuation)
    if framing.leading_end and before[:1] != (start := start_ids(config, tokenizer)):
        before = start + before
    if not before:
        start = start_ids(config, tokenizer)
        # As in lm-eval, a continuation that begins with the token itself is not given it twice.
        before, after = (after[:1], after[1:]) if after[:1] == start else (start, after)
    return cut_left(before, after, config.n_ctx + framing.beyond)


def cut_left(before: list[int], after: list[int], most: int) -> tuple[list[int], list[int]]:
    """The last ``most`` tokens of a prompt and its continuation: the prompt loses its beginning.

    Raises
    ------
    GenerationError
        If the continuation is empty, or leaves no token of the prompt.
    """
    if not after or len(after) >= most:
        raise GenerationError(
            "the continuation has no tokens of its own" if not after else "the continuation is too long",
            got=f"{len(after)} tokens",
            wanted=f"1 to {most - 1}",
        )
    return before[max(0, len(before) + len(after) - most) :], after


def windows(ids: Sequence[int], start: Sequence[int], n_ctx: int) -> list[Likelihoods]:
    """A long text in pieces whose log-likelihoods add up to that of the text, as lm-eval cuts it.

    Each token is predicted once. The first window predicts ``n_ctx`` tokens from the start token on, as does each
    later one from the token before it; the last is moved back until it is full, and predicts only what is left.

    Parameters
    ----------
    ids : sequence of int [t]
    start : sequence of int
        The one token that stands before the text.
    n_ctx : int
    """
    found = []
    for begin in range(0, len(ids), n_ctx):
        end = min(begin + n_ctx, len(ids))
        before = [*start] if not begin else [*ids[max(0, end - n_ctx - 1) : begin]]
        found.append(Likelihoods(before, [list(ids[begin:end])]))
    return found


def start_ids(config: AnyConfig, tokenizer: Tokenizer | None) -> list[int]:
    """The token that stands before a text that has nothing before it, as a list of one.

    Raises
    ------
    GenerationError
        If the model has no such token.
    """
    found = prompt_ids([], config, tokenizer)
    if not found:
        raise GenerationError(
            "an empty context needs a token that a text begins with, and this model has none", where="context"
        )
    return found
