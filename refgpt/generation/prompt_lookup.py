"""Guesses at what comes next, read off the text so far: texts that copy say again what they said before.

The last few tokens are looked for further back; what followed them there is the guess. A model can then check several
tokens in one pass over its weights, and what it does not confirm is forgotten: the text is the same with and without
("prompt lookup decoding", a draft without a draft model: https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Sequence

#: How many tokens must have been seen before, in this order: the more, the better the guess; fewer are not tried.
LONGEST, SHORTEST = 4, 2


class PromptLookup:
    """Drafts for one text.

    Parameters
    ----------
    ids : sequence of int
        The text so far.
    most : int
        Tokens of a draft at most.

    Notes
    -----
    A pass over several rows costs more than one over a single row, so a wrong guess is not free. Drafts that are
    confirmed make the next one longer; each that fails makes it shorter, and after some failures in a row only one
    chance in so many is taken.
    """

    def __init__(self, ids: Sequence[int], most: int) -> None:
        self._ids: list[int] = []
        self._most = most
        self._length = most
        self._failures = 0
        self._passed_by = 0
        self._after: dict[tuple[int, ...], int] = {}  # where the token after these stands, the last time they were seen
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        """The text has grown by a token."""
        n = len(self._ids)
        for size in range(SHORTEST, LONGEST + 1):  # what ended before this token is now followed by it
            if n >= size:
                self._after[tuple(self._ids[n - size :])] = n
        self._ids.append(token)

    def draft(self, room: int) -> list[int]:
        """Tokens that may come next, at most ``room``; none where nothing is known or guessing has not paid."""
        start = self._found()
        if start is None or room < 1:
            return []
        if self._passed_by < (1 << self._failures) - 1:
            self._passed_by += 1
            return []
        self._passed_by = 0
        stop, guess = start + min(self._length, room), list(self._ids)
        while len(guess) < stop:  # what is copied may reach into the draft itself, as in "la la la"
            guess.append(guess[start + len(guess) - len(self._ids)])
        return guess[start:stop]

    def learn(self, n_drafted: int, n_confirmed: int) -> None:
        """How a draft fared."""
        if n_confirmed == n_drafted:
            self._length = min(self._most, 2 * self._length)
        else:
            self._length = max(1, min(self._most, n_confirmed + 1))
        self._failures = 0 if n_confirmed else min(self._failures + 1, 5)

    def _found(self) -> int | None:
        """Where the text goes on after the longest end of it that was seen before."""
        for size in range(LONGEST, SHORTEST - 1, -1):
            if len(self._ids) > size and (start := self._after.get(tuple(self._ids[-size:]))) is not None:
                return start
        return None
