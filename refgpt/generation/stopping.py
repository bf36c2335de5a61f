"""The text of a sequence while it grows, ended by the first stop string that is completed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from refgpt.tokenizers import StreamDecoder


class StopMatcher:
    """Finds the first of some strings that a text completes, reading each character of the text once.

    The automaton of Aho and Corasick 1975 (https://doi.org/10.1145/360825.360855): a state is a prefix of one of the
    strings, the longest that the text so far ends with. State 0 is the empty prefix.

    Parameters
    ----------
    stops : sequence of str
        None of them empty.

    Attributes
    ----------
    depths : list of int
        Of each state, the length of its prefix.
    matches : list of int
        Of each state, the length of the longest of the strings that its prefix ends with; 0 for none.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.depths, self.matches = [0], [0]
        self._next: dict[tuple[int, str], int] = {}
        self._fallbacks = [0]  # of each state, the longest other state that its prefix ends with
        parents, characters = [0], [""]
        for stop in stops:
            state = 0
            for depth, character in enumerate(stop, 1):
                following = self._next.get((state, character))
                if following is None:
                    following = self._next[state, character] = len(self.depths)
                    self.depths.append(depth)
                    self.matches.append(0)
                    self._fallbacks.append(0)
                    parents.append(state)
                    characters.append(character)
                state = following
            self.matches[state] = len(stop)
        for state in sorted(range(1, len(self.depths)), key=self.depths.__getitem__):
            if parents[state]:
                self._fallbacks[state] = self.step(self._fallbacks[parents[state]], characters[state])
            self.matches[state] = self.matches[state] or self.matches[self._fallbacks[state]]

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while (following := self._next.get((state, character))) is None and state:
            state = self._fallbacks[state]
        return following or 0


@lru_cache(maxsize=1)
def _matcher_of(stops: tuple[str, ...]) -> StopMatcher:
    """The prompts of a batch share their stop strings, and so one matcher."""
    return StopMatcher(stops)


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
        self._matcher = _matcher_of(tuple(stops))
        self._state = 0

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
        for n_read, character in enumerate(new, len(self.held) + 1):
            self._state = self._matcher.step(self._state, character)
            if n_stop := self._matcher.matches[self._state]:
                self.stopped, self.held = True, ""
                return text[: n_read - n_stop]
        n_held = self._matcher.depths[self._state]
        self.held = text[len(text) - n_held :]
        return text[: len(text) - n_held]
