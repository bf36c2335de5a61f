"""How many tokens a draft model should draft next, from its cost and its acceptance rate.

A pass of few rows is bound by reading the weights, so that a few drafted tokens are checked at almost no cost; further
rows cost arithmetic. The length of drafts never changes a text, only the number of passes.
"""

from __future__ import annotations

from collections.abc import Callable

#: Rows that one pass checks at most, of all texts together. The kernels record passes of up to as many.
MOST_CHECKED = 16
#: The weight of the last drafted token in the running share of accepted ones, and what that share begins with.
WEIGHT, FIRST_RATE = 0.12, 0.5
#: Tokens between two attempts at most, while drafting does not pay.
LONGEST_WAIT = 63


def pass_cost(n_rows: int) -> float:
    """The cost of a pass over some rows, where a pass over one costs 1.

    Measured at 6B's width in 4 bits on two threads: 1.17 for 4 rows, 1.87 for 8, 3.5 for 16; in 8 bits and in float16
    much the same.
    """
    return 1 + 0.06 * (n_rows - 1) + 0.16 * max(0, n_rows - 4)


class DraftPace:
    """The lengths of the drafts of one text.

    Parameters
    ----------
    most : int
        The most tokens of a draft.
    cost : float
        The cost of drafting a token, relative to a pass of the large model over one row.
    rate : float
        The share of accepted tokens to begin with.
    learned : callable, optional
        Called after each draft with the numbers of drafted and of accepted tokens.
    """

    def __init__(
        self,
        most: int,
        cost: float,
        rate: float = FIRST_RATE,
        learned: Callable[[int, int], object] = lambda n_drafted, n_accepted: None,
    ) -> None:
        self._most, self._cost, self._rate, self._learned = most, cost, rate, learned
        self._wait = self._waited = 0

    def length(self, room: int, n_texts: int = 1) -> int:
        """Tokens to draft now, at most ``room``, where ``n_texts`` texts share a pass; 0 if it would not save time.

        A single token is still tried at intervals, which grow while it is rejected.
        """
        most = min(self._most, room, MOST_CHECKED // n_texts - 1)
        if most < 1:
            return 0
        best = max(range(most + 1), key=lambda n: self._speed(n, n_texts))
        if best or self._waited >= self._wait:
            self._waited = 0
            return max(1, best)
        self._waited += 1
        return 0

    def learn(self, n_drafted: int, n_accepted: int) -> None:
        """Record how many drafted tokens were accepted. Tokens after the first rejected one are not counted."""
        for i in range(min(n_drafted, n_accepted + 1)):
            self._rate += WEIGHT * ((i < n_accepted) - self._rate)
        self._wait = 0 if n_accepted else min(2 * self._wait + 1, LONGEST_WAIT)
        self._learned(n_drafted, n_accepted)

    def _speed(self, n: int, n_texts: int) -> float:
        """Expected tokens per cost, if each of ``n_texts`` texts drafts ``n`` tokens."""
        expected = sum(self._rate**i for i in range(n + 1))
        return n_texts * expected / (pass_cost(n_texts * (n + 1)) + n * self._cost * pass_cost(n_texts))
