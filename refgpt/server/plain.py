"""Plain texts, for the interfaces that take one prompt and return its continuation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from refgpt._common.errors import RefgptError
from refgpt.generation.params import GenerationParams
from refgpt.generation.results import Event
from refgpt.server.errors import ApiError
from refgpt.server.jobs import Job
from refgpt.tokenizers import Tokenizer


class PlainText:
    """A text that is assembled from its events.

    Attributes
    ----------
    text : str
        So far, without the stop string.
    stop : str
        The stop string that ended it, if one did.
    ids : list of int
    finish_reason : str or None
    """

    def __init__(self, prompt: Sequence[int], stops: Sequence[str], tokenizer: Tokenizer | None) -> None:
        self.text = self.stop = ""
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self._prompt, self._stops, self._tokenizer = prompt, stops, tokenizer

    def take(self, event: Event) -> str:
        """Add an event, and return the text that it adds."""
        if event.choice is not None:
            self.ids.append(event.choice.id)
        self.text += event.text
        self.finish_reason = event.finish_reason
        if event.finish_reason == "stop":
            self.stop = self._stop()
        return event.text

    def _stop(self) -> str:
        """The shortest stop string that follows the text: a longer one would have been completed later."""
        if self._tokenizer is None or not self._stops:
            return ""
        decoder, after = self._tokenizer.stream_decoder(), ""
        for token_id in self._prompt:
            if self._tokenizer.has(token_id):
                decoder.push(token_id)
        for token_id in self.ids:
            if self._tokenizer.has(token_id):
                after += decoder.push(token_id)
        rest = after[len(self.text) :]
        return min((stop for stop in self._stops if rest.startswith(stop)), key=len, default="")


async def finished_texts(job: Job, tokenizer: Tokenizer | None) -> list[PlainText]:
    """The continuations of a job's only prompt, when they are finished."""
    texts = [PlainText(job.prompts[0], job.params.stops, tokenizer) for _ in range(job.params.num_return_sequences)]
    async for some in job.events():
        for _, event in some:
            texts[event.index].take(event)
    return texts


def params(names: Mapping[str, str], status: int = 400, **values: Any) -> GenerationParams:
    """Generation parameters; an error names a parameter as ``names`` has it."""
    try:
        return GenerationParams(**values)
    except RefgptError as error:
        where = names.get(str(error.where), str(error.where))
        wanted = f"; wanted {error.wanted}" if error.wanted is not None else ""
        raise ApiError(status, f"{where}: {error.what}; got {error.got}{wanted}", param=where) from None
