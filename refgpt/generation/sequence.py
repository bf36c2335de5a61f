"""Texts that the scheduler runs through a session."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from refgpt.generation.draft_pace import DraftPace
from refgpt.generation.matching import ConstraintMatcher
from refgpt.generation.params import Criterion, GenerationParams
from refgpt.generation.prompt_lookup import PromptLookup
from refgpt.generation.prompts import fault_of, needs_tokenizer
from refgpt.generation.results import Event
from refgpt.generation.sampling import Sampler
from refgpt.generation.sampling_params import functions_of, id_list
from refgpt.generation.stopping import Transcript
from refgpt.runtime.engine import Engine, Session, adapter_named
from refgpt.tokenizers import StreamDecoder, Tokenizer


class Generates(Protocol):
    """What generation needs of a model."""

    @property
    def engine(self) -> Engine: ...
    @property
    def tokenizer(self) -> Tokenizer | None: ...
    @property
    def mask(self) -> str: ...


def with_named_adapter(model: Generates, name: str | None) -> Generates:
    """A model with one of its adapters, and the mask with which the adapter was trained; the model itself for None.

    Raises
    ------
    GenerationError
        If the model has no adapter of this name.
    """
    if name is None:
        return model
    found: Generates = adapter_named(getattr(model, "adapters", {}), name)
    return found


@dataclass(frozen=True)
class Masked:
    """A model with another mask than its own."""

    engine: Engine
    tokenizer: Tokenizer | None
    mask: str


@dataclass(eq=False)
class Shared:
    """The state that several continuations of one prompt share; the prompt is read once for all of them.

    Attributes
    ----------
    waiting : deque of Task
        Tasks without a slot. They begin when the first has read the prompt.
    row : ndarray [v] or None
        The prompt's last row of logits, once it is known.
    """

    waiting: deque[Task] = field(default_factory=deque)
    row: np.ndarray | None = None


class Task(ABC):
    """A text in the slots of a session: first its ids are read, then it is continued.

    Parameters
    ----------
    request : int
        The number of its request.
    ids : sequence of int
        The ids to read.
    n_prompt : int
        How many of the ids are the prompt. The rows of logits from the prompt's last token on go to ``take``.
    prefix_len : int
        How many leading positions of the prompt see one another.
    n_positions : int
        The most tokens for which a slot needs room.

    Attributes
    ----------
    slots : list of int
        Its slots: ``n_slots`` of them, or none before it begins.
    n_read : int
        How many of its ids are in its first slot.
    first_row : int
        The first position whose row of logits goes to ``take``: the prompt's last, unless a subclass wants more.
    finished : bool
    shared : Shared
    adapter : str or None
        The name of its adapter in the engine.
    """

    n_slots = 1

    def __init__(self, request: int, ids: Sequence[int], n_prompt: int, prefix_len: int, n_positions: int) -> None:
        self.request, self.ids, self.n_prompt = request, list(ids), n_prompt
        self.prefix_len, self.n_positions = prefix_len, n_positions
        self.slots: list[int] = []
        self.n_read = 0
        self.first_row = n_prompt - 1
        self.finished = False
        self.shared = Shared()
        self.adapter: str | None = None

    @property
    def reads(self) -> bool:
        """Whether some of its ids have not been read yet."""
        return self.n_read < len(self.ids)

    def look_up(self, alone: bool) -> None:
        """Called before each pass. A subclass may draft tokens from earlier text if the task is ``alone``."""
        return

    def next_ids(self) -> list[tuple[int, list[int]]]:
        """The tokens that its slots take next, whose rows of logits it needs. Here there are none."""
        return []

    @abstractmethod
    def take(self, session: Session, rows: np.ndarray) -> list[Event]:
        """Continue with rows of logits [t, v]: those of the ids from the prompt's last on, or of ``next_ids``."""


def prefix_of(model: Generates, prompt: Sequence[int]) -> int:
    """How many leading positions of a prompt see one another."""
    return len(prompt) if model.mask == "prefix" else 0


def ends_of(model: Generates, params: GenerationParams) -> set[int]:
    """The tokens that end a text."""
    if params.ignore_eos:
        return set()
    if params.eos_token_id is not None:
        return set(id_list(params.eos_token_id))
    known = {*model.engine.config.eos_ids, None if model.tokenizer is None else model.tokenizer.eos_id}
    return {token for token in known if token is not None}


def matcher_of(model: Generates, params: GenerationParams, prompt: Sequence[int]) -> ConstraintMatcher | None:
    """The matcher of the constraint on a prompt's continuation, if there is one."""
    if params.constraint is None:
        return None
    if model.tokenizer is None:
        raise needs_tokenizer("a constraint is about text", "leave it out", fault_of(model))
    return ConstraintMatcher(params.constraint, model.tokenizer, ends_of(model, params), prompt)


def sampler_of(
    model: Generates,
    params: GenerationParams,
    prompt: Sequence[int],
    stream: int = 0,
    matcher: ConstraintMatcher | None = None,
) -> Sampler:
    """A sampler for a continuation of a prompt.

    Raises
    ------
    GenerationError
        If a parameter names ids that the model does not have.
    """
    params.check_ids(model.engine.config.n_vocab)
    return Sampler(
        params,
        prompt,
        None if model.tokenizer is None else model.tokenizer.exists,
        ends=ends_of(model, params),
        most_new=min(params.max_new_tokens, model.engine.config.n_ctx - len(prompt)),
        stream=stream,
        n_texts=params.n_drawn,
        matcher=matcher,
    )


def transcript_of(model: Generates, params: GenerationParams, prompt: Sequence[int]) -> Transcript:
    """The transcript of the text that follows a prompt, still empty."""
    if params.stops and model.tokenizer is None:
        raise needs_tokenizer("stop strings are text", "leave them out", fault_of(model))
    decoder = None if model.tokenizer is None else _decoder_after(prompt, model.tokenizer)
    if params.constraint is not None and decoder is not None:
        decoder.finish()  # half a character at the end of the prompt is not part of the text
    return Transcript(decoder, params.stops)


class Continuation(Task):
    """One continuation of a prompt: it draws its tokens, keeps its text and knows when to end.

    Attributes
    ----------
    text : list of int
        The prompt and its continuation so far.
    sampler : Sampler
    draft : list of int
        Tokens that may follow the text, which the next pass checks.
    ends : set of int
        The tokens that end it.
    pace : DraftPace or None
        How many tokens a draft model drafts; None without a draft model.
    """

    def __init__(
        self, request: int, prompt: Sequence[int], model: Generates, params: GenerationParams, index: int = 0
    ) -> None:
        n_positions = min(model.engine.config.n_ctx, len(prompt) + params.max_new_tokens)
        super().__init__(request, prompt, len(prompt), prefix_of(model, prompt), n_positions)
        self._index = index
        self.text = list(prompt)
        self.draft: list[int] = []
        self.pace: DraftPace | None = None
        self._looked_up = self._forced = False
        self._most_drafted = params.speculate
        self._left = n_positions - len(prompt)
        self._lookup = PromptLookup(prompt, params.speculate) if params.speculate else None
        self._matcher = matcher_of(model, params, prompt)
        self.sampler = sampler_of(model, params, prompt, index, self._matcher)
        self._transcript = transcript_of(model, params, prompt)
        self.ends = ends_of(model, params)
        self._criteria: tuple[Criterion, ...] = functions_of(params.stopping_criteria or ())

    @property
    def room(self) -> int:
        """The most tokens that a draft may have: one more is drawn after it."""
        return self._left - 1

    def look_up(self, alone: bool) -> None:
        """If the text is alone, draft the tokens that the constraint forces, or else what followed its last tokens
        earlier."""
        self.draft, self._looked_up, self._forced = [], False, False
        if not alone or self._lookup is None:
            return
        new, matcher = self.text[self.n_prompt :], self._matcher
        forced = [] if matcher is None else matcher.forced(new)[: min(self.room, self._most_drafted)]
        self.draft = forced or self._lookup.draft(self.room)
        if self.draft and matcher is not None:
            del self.draft[matcher.n_possible(new, self.draft) :]
        self._forced, self._looked_up = bool(forced and self.draft), bool(self.draft and not forced)

    def next_ids(self) -> list[tuple[int, list[int]]]:
        """The last token, and the drafted tokens after it."""
        return [(self.slots[0], [self.text[-1], *self.draft])]

    def take(self, session: Session, rows: np.ndarray) -> list[Event]:
        """Draw a token, or several if drafted tokens are accepted, each from the row that it would have alone."""
        if not self.draft:
            return [self._take(rows[0])]
        n_held, n_confirmed, events = len(self.text), 0, []
        for row, guess in zip(rows, [*self.draft, None], strict=True):
            events.append(self._take(row))
            if self.finished or self.text[-1] != guess:
                break
            n_confirmed += 1
        session.truncate(self.slots[0], n_held + n_confirmed)
        drafted_by = None if self._forced else self._lookup if self._looked_up else self.pace
        if drafted_by is not None:
            drafted_by.learn(len(self.draft), n_confirmed)
        return events

    def _take(self, logits: np.ndarray) -> Event:
        choice = self.sampler.choose(logits)
        self.text.append(choice.id)
        if self._lookup is not None:
            self._lookup.push(choice.id)
        self._left -= 1
        ended = choice.id in self.ends
        stopped = any([criterion(list(self.text), logits) for criterion in self._criteria])
        if self._matcher is not None and not ended:
            new = self.text[self.n_prompt :]
            stopped |= self._matcher.over(new) or (not self._left and self._matcher.complete(new))
        text = "" if ended else self._transcript.push(choice.id)
        if ended or stopped or not self._left:
            text += self._transcript.finish()
        reason = None
        if ended or stopped or self._transcript.stopped:
            reason = "stop"
        elif not self._left:
            reason = "length"
        self.finished = reason is not None
        return Event(self.request, choice, text, self._transcript.held, reason, index=self._index)


def _decoder_after(prompt: Sequence[int], tokenizer: Tokenizer) -> StreamDecoder:
    """A decoder that has read a prompt, for the text after it.

    Some sentencepiece models drop the space at the start of a text, and a prompt of ids may end in half a character.
    Ids of the prompt that the tokenizer lacks (a head may have more rows) have no text.
    """
    decoder = tokenizer.stream_decoder()
    for token_id in prompt:
        if tokenizer.has(token_id):
            decoder.push(token_id)
    return decoder
