"""The parts of a text that are sent to a client: its pieces, and the log-probabilities of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from refgpt.generation.openai_answers import by_text, keys_of, token_text
from refgpt.generation.results import Event
from refgpt.generation.sampling import Choice
from refgpt.tokenizers import Tokenizer


@dataclass
class Entries:
    """Tokens with their log-probabilities, in the order of the text.

    Attributes
    ----------
    choices : list of Choice or None
        None for a prompt's first token, which has no prediction.
    ids : list of int
    offsets : list of int
        Where each token begins in the text, in characters.
    """

    choices: list[Choice | None] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def add(self, token_id: int, choice: Choice | None, offset: int) -> None:
        """Add a token."""
        self.choices.append(choice)
        self.ids.append(token_id)
        self.offsets.append(offset)

    def extend(self, other: Entries) -> None:
        """Add several tokens."""
        self.choices += other.choices
        self.ids += other.ids
        self.offsets += other.offsets

    def completion_form(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """ "logprobs" of a completion, with "token_ids" and, by the keys of "top_logprobs", "top_token_ids"."""
        likely = [_likely(choice) for choice in self.choices]
        return {
            "tokens": [token_text(token_id, tokenizer) for token_id in self.ids],
            "token_logprobs": [None if choice is None else choice.logprob for choice in self.choices],
            "top_logprobs": [None if top is None else by_text(top, tokenizer) for top in likely],
            "text_offset": self.offsets,
            "token_ids": self.ids,
            "top_token_ids": [None if top is None else keys_of(top, tokenizer) for top in likely],
        }

    def chat_form(self, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """ "logprobs" of a chat completion."""

        def entry(token_id: int, logprob: float | None) -> dict[str, Any]:
            known = tokenizer is not None and tokenizer.has(token_id)
            raw = list(tokenizer.token_bytes(token_id)) if known and tokenizer is not None else None
            return {"token": token_text(token_id, tokenizer), "logprob": logprob, "bytes": raw}

        content = [
            {
                **entry(choice.id, choice.logprob),
                "top_logprobs": [entry(*pair) for pair in (choice.top_logprobs or {}).items()],
            }
            for choice in self.choices
            if choice is not None
        ]
        return {"content": content, "refusal": None}


def _likely(choice: Choice | None) -> dict[int, float] | None:
    """The likeliest tokens, and the actual one."""
    if choice is None or choice.logprob is None:
        return None
    return {**(choice.top_logprobs or {}), choice.id: choice.logprob}


class PromptText:
    """A prompt as part of an answer.

    Parameters
    ----------
    prompt : str or sequence of int
        The client's prompt.
    ids : sequence of int
        The ids that the model reads.
    """

    def __init__(self, prompt: str | Sequence[int], ids: Sequence[int], tokenizer: Tokenizer | None) -> None:
        self.ids, self._prompt, self._tokenizer = ids, prompt, tokenizer
        self.scores: Sequence[Choice] = ()

    @cached_property
    def _decoded(self) -> tuple[list[int], str]:
        return _offsets(self.ids, self._tokenizer)

    @cached_property
    def text(self) -> str:
        """The prompt as text."""
        return self._prompt if isinstance(self._prompt, str) else self._decoded[1]

    def decode(self) -> None:
        """Decode the prompt now, if it was not decoded yet, so that ``text`` and ``entries`` take no time."""
        _ = self._decoded

    def entries(self) -> Entries:
        """Its tokens with their log-probabilities."""
        offsets = [min(offset, len(self.text)) for offset in self._decoded[0]]
        return Entries([None, *self.scores], list(self.ids), offsets)


def _offsets(ids: Sequence[int], tokenizer: Tokenizer | None) -> tuple[list[int], str]:
    """Where tokens begin in their text, and the part of that text that is complete."""
    offsets, text = [], []
    n, decoder = 0, None if tokenizer is None else tokenizer.stream_decoder()
    for token_id in ids:
        offsets.append(n)
        if decoder is not None and tokenizer is not None and tokenizer.has(token_id):
            text.append(decoder.push(token_id))
            n += len(text[-1])
    return offsets, "".join(text)


@dataclass
class Piece:
    """What an event adds to a text."""

    text: str
    entries: Entries | None
    finish_reason: str | None


class TextWriter:
    """Turns the events of one text into pieces of an answer.

    Parameters
    ----------
    prompt : PromptText
        Shared by all that continue it.
    echo : bool
        Whether the first piece begins with the prompt.
    logprobs : bool
        Whether pieces have entries.

    Attributes
    ----------
    n_tokens : int
        The number of new tokens so far.
    total : float
        Sum of their log-probabilities.
    """

    def __init__(self, prompt: PromptText, tokenizer: Tokenizer | None, echo: bool, logprobs: bool) -> None:
        self.n_tokens, self.total = 0, 0.0
        self._prompt, self._tokenizer, self._echoes, self._logprobs = prompt, tokenizer, echo, logprobs
        self._offset = len(prompt.text) if logprobs else 0
        self._decoder = None
        if logprobs and tokenizer is not None:
            self._decoder = tokenizer.stream_decoder()
            for token_id in prompt.ids:
                if tokenizer.has(token_id):
                    self._decoder.push(token_id)

    def take(self, event: Event) -> Piece:
        """The piece of the answer that an event adds."""
        if event.prompt is not None:
            self._prompt.scores = event.prompt
        text, entries = event.text, Entries() if self._logprobs else None
        if self._echoes and (event.choice is not None or event.finish_reason is not None):
            self._echoes = False
            text = self._prompt.text + text
            if entries is not None:
                entries.extend(self._prompt.entries())
        if event.choice is not None:
            self.n_tokens += 1
            self.total += event.choice.logprob or 0.0
            if entries is not None:
                entries.add(event.choice.id, event.choice, self._offset)
                if self._decoder is not None and self._tokenizer is not None and self._tokenizer.has(event.choice.id):
                    self._offset += len(self._decoder.push(event.choice.id))
        return Piece(text, entries, event.finish_reason)
