"""From prompts to a stream of tokens, through any engine.

Each prompt is prefilled by itself; then all sequences take a token at a time together, each at its own position, and a
finished one makes room for the next prompt in line.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from refgpt.generation.params import GenerationParams
from refgpt.generation.prompt_lookup import PromptLookup
from refgpt.generation.prompts import needs_tokenizer
from refgpt.generation.sampling import Choice, Sampler
from refgpt.generation.stopping import Transcript
from refgpt.numbers.dtypes import STORED_DTYPES
from refgpt.runtime.engine import Engine, Session
from refgpt.tokenizers import StreamDecoder, Tokenizer

log = logging.getLogger("refgpt")

#: Sequences that are decoded together at most, and bytes that their caches may take together (one may take more); more
#: prompts than this wait in line. Results do not depend on it.
MOST_TOGETHER = 16
MOST_CACHE = 2 << 30


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
            set()
            if params.ignore_eos
            else {*model.engine.config.eos_ids, None if tokenizer is None else tokenizer.eos_id} - {None}
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
