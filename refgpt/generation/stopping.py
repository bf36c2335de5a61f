"""The text of a sequence while it grows, ended by the first stop string that is completed."""

from __future__ import annotations

from collections.abc import Sequence

from refgpt.tokenizers import StreamDecoder


class Transcript:
    """Turns ids into text as soon as it is certain, and holds back what could still become a stop string.

    What comes out does not depend on how the text is cut into tokens.

    Parameters
    ----------
    decoder : StreamDecoder or None
        None for a model without tokenizer: the text stays empty.
    stops : sequence of str
        Of several, the one that is completed first ends the text; of two completed by the same character, the longer.

    Attributes
    ----------
    stopped : bool
        Whether a stop string was found; nothing comes out after it.
    held : str
        The end of the text so far, which has not come out because it may become a stop string.
    """

    def __init__(self, decoder: StreamDecoder | None, stops: Sequence[str] = ()) -> None:
        self.stopped = False
        self.held = ""
        self._decoder = decoder
        self._stops = stops

    def push(self, id: int) -> str:
        """The text that has become certain with this token."""
        return self._release("" if self._decoder is None else self._decoder.push(id))

    def finish(self) -> str:
        """The rest of the text: nothing more will come."""
        text = self._release("" if self._decoder is None else self._decoder.finish())
        rest, self.held = self.held, ""
        return text + rest

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self.held + new
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self.stopped, self.held = True, ""
            return text[: min(found)[1]]
        n_held = max((n for stop in self._stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        self.held = text[len(text) - n_held :]
        return text[: len(text) - n_held]
