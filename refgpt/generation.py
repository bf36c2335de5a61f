"""From prompts to a stream of tokens, through any engine.

Each prompt is prefilled by itself; then all sequences take a token at a time together, each at its own position, and a
finished one makes room for the next prompt in line.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeGuard

import numpy as np

from refgpt.arguments import one_of, whole_number
from refgpt.config import ModelConfig
from refgpt.drafting import PromptLookup
from refgpt.engine import Engine, Session
from refgpt.errors import GenerationError
from refgpt.params import STORED_DTYPES
from refgpt.prompts import check_ids
from refgpt.sampling import Choice, Sampler, SamplingParams
from refgpt.stopping import Transcript
from refgpt.tokenizers import StreamDecoder, Tokenizer

log = logging.getLogger("refgpt")

#: Sequences that are decoded together at most, and bytes that their caches may take together (one may take more); more
#: prompts than this wait in line. Results do not depend on it.
MOST_TOGETHER = 16
MOST_DRAFTED = 15
MOST_CACHE = 2 << 30

Prompt = str | Sequence[int]
BYTES = (bytes, bytearray, memoryview)


@dataclass(frozen=True)
class GenerationParams(SamplingParams):
    """How to continue a prompt: ``SamplingParams`` and when to end.

    Attributes
    ----------
    max_new_tokens : int
        At most so many tokens; fewer if the model's context (prompt and new tokens together) is full before.
    stop : str or sequence of str
        The text ends before the first of these to be completed.
    ignore_eos : bool
        Go on after the end-of-text token.
    speculate : int
        While one text is written alone, guess up to so many tokens from what the text said before, and check them in
        one pass: faster where a text copies, and the same text whatever the number. 0: do not.
    truncate : "left" or None
        What to do with a prompt that is too long: an error (None), or drop its beginning so that ``max_new_tokens`` fit
        behind it ("left"), though half the context is left to the prompt whatever is asked for.

    Raises
    ------
    GenerationError
        Naming the first parameter that cannot be used.
    """

    max_new_tokens: int = 128
    stop: str | Sequence[str] | None = None
    ignore_eos: bool = False
    speculate: int = 0
    truncate: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        whole_number("max_new_tokens", self.max_new_tokens, 1, None, GenerationError)
        whole_number("speculate", self.speculate, 0, MOST_DRAFTED, GenerationError)
        if not isinstance(self.stop, (str, Sequence, type(None))):
            raise GenerationError(
                "cannot be used", where="stop", got=repr(self.stop), wanted="a text or a list of texts"
            )
        for stop in self.stops:
            if not isinstance(stop, str) or not stop:
                raise GenerationError(
                    "cannot be used", where="stop", got=repr(stop), wanted="a text of one character or more"
                )
        if not isinstance(self.ignore_eos, (bool, np.bool_)):
            raise GenerationError(
                "cannot be used", where="ignore_eos", got=repr(self.ignore_eos), wanted="True or False"
            )
        one_of("truncate", self.truncate, (None, "left"), GenerationError)

    @classmethod
    def of(cls, params: GenerationParams | None, changes: dict[str, Any]) -> GenerationParams:
        """Parameters (None: the defaults) with some fields changed.

        Raises
        ------
        GenerationError
            Naming what is no field, or the first field that cannot be used.
        """
        if not isinstance(params, GenerationParams | None):
            raise GenerationError("cannot be used", where="params", got=repr(params), wanted="GenerationParams or None")
        known = [field.name for field in fields(cls)]
        for name in changes:
            if name not in known:
                raise GenerationError("there is no such parameter", where=name, wanted=f"one of {', '.join(known)}")
        return replace(params or cls(), **changes)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, whether one or several were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


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
    """

    text: str
    ids: list[int]
    finish_reason: str
    logprobs: list[float] | None
    top_logprobs: list[dict[int, float]] | None
    n_prompt: int


@dataclass(frozen=True)
class Event:
    """One new token.

    Attributes
    ----------
    seq : int
        Which of the prompts it continues.
    choice : Choice
        The token.
    text : str
        What has become certain with it.
    held : str
        What follows, unless it becomes part of a stop string.
    finish_reason : str or None
        Of the last token, see ``Generation``.
    """

    seq: int
    choice: Choice
    text: str
    held: str
    finish_reason: str | None


class Generates(Protocol):
    """What this module needs of a model."""

    @property
    def engine(self) -> Engine: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def mask(self) -> str: ...


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
    for item in prompt:
        if isinstance(item, BYTES):
            raise _no_prompt(item)
    batched = {isinstance(item, str) or _is_list(item) for item in prompt}
    if len(batched) > 1:
        raise GenerationError("mixes ids with prompts", where="prompt", wanted="a list of ids, or a list of prompts")
    return batched == {True}


def encode_prompt(
    prompt: Prompt | np.ndarray, config: ModelConfig, tokenizer: Tokenizer | None, params: GenerationParams
) -> list[int]:
    """A prompt as ids that leave room for at least one new token.

    Raises
    ------
    GenerationError
        If the prompt is too long, is a text without a tokenizer, is empty without a token to start from, or has ids
        that do not exist.
    """
    ids = prompt_ids(prompt, config, tokenizer)
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


def prompt_ids(prompt: Prompt | np.ndarray, config: ModelConfig, tokenizer: Tokenizer | None) -> list[int]:
    """The ids of a prompt; of an empty one the id that a text begins with, if there is such an id.

    Raises
    ------
    GenerationError
        If the prompt is a text without a tokenizer.
    """
    if not isinstance(prompt, str):
        ids = list(prompt)
    elif tokenizer is None:
        raise needs_tokenizer("the prompt is text", "give the prompt as a list of ids")
    else:
        ids = tokenizer.encode(prompt)
    if not len(ids):
        starts = (config.bos_id, config.eos_id, tokenizer and tokenizer.eos_id)
        ids = [start for start in starts if start is not None][:1]
    return ids


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
    """
    waiting = deque(_Sequence(i, prompt, model, params) for i, prompt in enumerate(prompts))
    capacity = min(model.engine.config.n_ctx, max(map(len, prompts)) + params.max_new_tokens)
    n_slots = min(len(prompts), _n_together(model.engine, capacity))
    session = model.engine.session(n_slots, capacity)
    free = list(range(n_slots))
    active: dict[int, _Sequence] = {}
    while waiting or active:
        if waiting and free:
            slot = free.pop(0)
            active[slot] = sequence = waiting.popleft()
            prefix_len = len(sequence.prompt) if model.mask == "prefix" else 0
            yield sequence.take(session.prefill(slot, sequence.prompt, prefix_len))
        elif len(active) == 1:
            ((slot, sequence),) = active.items()
            yield from _next_tokens(session, slot, sequence)
        else:
            rows = session.decode(list(active), [sequence.last_id for sequence in active.values()])
            for sequence, row in zip(active.values(), rows, strict=True):
                yield sequence.take(row)
        for slot in [slot for slot, sequence in active.items() if sequence.finished]:
            del active[slot]
            free.append(slot)


def _next_tokens(session: Session, slot: int, sequence: _Sequence) -> Iterator[Event]:
    """One token of a text, or several if it went on as was guessed: each is drawn from the row it would have alone."""
    draft = sequence.draft()
    if not draft:
        yield sequence.take(session.decode([slot], [sequence.last_id])[0])
        return
    n_held = sequence.n_tokens - 1  # of which the cache has the keys
    rows = session.extend(slot, [sequence.last_id, *draft])
    n_confirmed = 0
    for row, guess in zip(rows, [*draft, None], strict=True):
        yield sequence.take(row)
        if sequence.finished or sequence.last_id != guess:
            break
        n_confirmed += 1
    session.truncate(slot, n_held + 1 + n_confirmed)
    sequence.learn(len(draft), n_confirmed)


def _n_together(engine: Engine, capacity: int) -> int:
    """How many sequences of ``capacity`` positions to keep in the cache at once."""
    config = engine.config
    n_bytes = (
        2 * config.n_layer * capacity * config.d_model * STORED_DTYPES[engine.kv_dtype].itemsize
    )  # keys and values
    return max(1, min(MOST_TOGETHER, MOST_CACHE // n_bytes))


def generate(model: Generates, prompts: Sequence[Sequence[int]], params: GenerationParams) -> list[Generation]:
    """Run ``generate_events`` to its end and gather what belongs to each prompt."""
    gathered: list[list[Event]] = [[] for _ in prompts]
    for event in generate_events(model, prompts, params):
        gathered[event.seq].append(event)
    return [
        Generation(
            text="".join(event.text for event in own),
            ids=[event.choice.id for event in own],
            finish_reason=own[-1].finish_reason or "",
            # every token has these or none has
            logprobs=[e.choice.logprob for e in own if e.choice.logprob is not None] or None,
            top_logprobs=[e.choice.top_logprobs for e in own if e.choice.top_logprobs is not None] or None,
            n_prompt=len(prompt),
        )
        for own, prompt in zip(gathered, prompts, strict=True)
    ]


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


class _Sequence:
    """One prompt on its way: draws its tokens, keeps its text, knows when to end."""

    def __init__(self, index: int, prompt: Sequence[int], model: Generates, params: GenerationParams) -> None:
        tokenizer = model.tokenizer
        if params.stops and tokenizer is None:
            raise needs_tokenizer("stop strings are text", "leave them out")
        self.prompt = prompt
        self.n_tokens = len(prompt)
        self.finished = False
        self.last_id = prompt[-1]
        self._index = index
        self._left = min(params.max_new_tokens, model.engine.config.n_ctx - len(prompt))
        self._lookup = PromptLookup(prompt, params.speculate) if params.speculate else None
        self._sampler = Sampler(params, prompt, None if tokenizer is None else tokenizer.exists)
        self._transcript = Transcript(None if tokenizer is None else _decoder_after(prompt, tokenizer), params.stops)
        self._eos = (
            set() if params.ignore_eos else {model.engine.config.eos_id, tokenizer and tokenizer.eos_id} - {None}
        )

    def draft(self) -> list[int]:
        """Tokens that may come after the last one, where they are to be guessed."""
        return [] if self._lookup is None else self._lookup.draft(self._left - 1)

    def learn(self, n_drafted: int, n_confirmed: int) -> None:
        """How many of a draft's tokens were drawn."""
        if self._lookup is not None:
            self._lookup.learn(n_drafted, n_confirmed)

    def take(self, logits: np.ndarray) -> Event:
        """Draw the next token from the last position's logits [v]."""
        choice = self._sampler.choose(logits)
        self.last_id = choice.id
        self.n_tokens += 1
        if self._lookup is not None:
            self._lookup.push(choice.id)
        self._left -= 1
        ended = choice.id in self._eos
        text = "" if ended else self._transcript.push(choice.id)
        if ended or not self._left:
            text += self._transcript.finish()
        reason = None
        if ended or self._transcript.stopped:
            reason = "stop"
        elif not self._left:
            reason = "length"
        self.finished = reason is not None
        return Event(self._index, choice, text, self._transcript.held, reason)


def _decoder_after(prompt: Sequence[int], tokenizer: Tokenizer) -> StreamDecoder:
    """A decoder that has read a prompt: what follows is in the midst of a text.

    Some sentencepiece models drop the space at the start of a text, and a prompt of ids may end in half a character.
    Ids of the prompt that the tokenizer lacks (a head may have more rows) mean no text.
    """
    decoder = tokenizer.stream_decoder()
    for token_id in prompt:
        if tokenizer.has(token_id):
            decoder.push(token_id)
    return decoder


def needs_tokenizer(why: str, instead: str) -> GenerationError:
    """The error of a text for a model that takes ids alone."""
    return GenerationError(
        f"{why}, and this model has no tokenizer", fix=f"put its tokenizer.json beside the weights, or {instead}"
    )
