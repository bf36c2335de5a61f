"""Prompt-lookup decoding: draft tokens copied from earlier in the text (a draft without a draft model:
https://github.com/apoorvumang/prompt-lookup-decoding).

The last few tokens are searched for earlier in the text; the tokens that followed them there are the draft. A model
then checks several tokens in one pass over its weights, and rejects those that it would not draw: the text is the same
with and without drafts.
"""

from __future__ import annotations

from collections.abc import Sequence

#: How many of the last tokens are searched for, from the longest to the shortest: longer matches give better drafts.
LONGEST, SHORTEST = 4, 2


class PromptLookup:
    """Drafts for one text.

    Parameters
    ----------
    ids : sequence of int
        The text so far.
    most : int
        The most tokens of a draft.

    Notes
    -----
    A pass over several rows costs more than one over a single row, so a rejected draft is not free. An accepted draft
    makes the next one longer, a rejected one makes it shorter, and after some rejections in a row drafts are tried only
    at intervals.
    """

    def __init__(self, ids: Sequence[int], most: int) -> None:
        self._ids: list[int] = []
        self._most = most
        self._length = most
        self._failures = 0
        self._passed_by = 0
        self._after: dict[tuple[int, ...], int] = {}  # the position after the latest occurrence of these tokens
        for token in ids:
            self.push(token)

    def push(self, token: int) -> None:
        """Add a token to the text."""
        n = len(self._ids)
        for size in range(SHORTEST, LONGEST + 1):  # what ended before this token is now followed by it
            if n >= size:
                self._after[tuple(self._ids[n - size :])] = n
        self._ids.append(token)

    def draft(self, room: int) -> list[int]:
        """Draft at most ``room`` tokens; none if there is no match, or drafting has not paid."""
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
        """Record how many drafted tokens were accepted."""
        if n_confirmed == n_drafted:
            self._length = min(self._most, 2 * self._length)
        else:
            self._length = max(1, min(self._most, n_confirmed + 1))
        self._failures = 0 if n_confirmed else min(self._failures + 1, 5)

    def _found(self) -> int | None:
        """The position after the earlier occurrence of the longest end of the text that has one."""
        for size in range(LONGEST, SHORTEST - 1, -1):
            if len(self._ids) > size and (start := self._after.get(tuple(self._ids[-size:]))) is not None:
                return start
        return None
