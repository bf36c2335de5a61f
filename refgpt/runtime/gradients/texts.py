"""Texts that go through a pass together: one after the other in its rows, each with positions of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from refgpt.spec.gradients import Text


@dataclass(frozen=True, eq=False)
class Texts:
    """The rows of some texts.

    Attributes
    ----------
    texts : tuple of Text
    starts : ndarray of int64 [n_texts + 1]
        The first row of each, and how many rows there are.
    positions, slots, prefix_lens : ndarray of int64 [t]
        Of each row: its place in its text, which text that is, and how many of it see one another.
    """

    texts: tuple[Text, ...]
    starts: np.ndarray
    positions: np.ndarray
    slots: np.ndarray
    prefix_lens: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[Text]) -> Texts:
        """The rows of these texts."""
        lens = [len(text.ids) for text in texts]
        starts = np.array([0, *accumulate(lens)], np.int64)
        positions = np.concatenate([np.arange(n, dtype=np.int64) for n in lens])
        slots = np.repeat(np.arange(len(texts), dtype=np.int64), lens)
        prefix_lens = np.repeat(np.array([text.prefix_len for text in texts], np.int64), lens)
        return cls(tuple(texts), starts, positions, slots, prefix_lens)

    @property
    def ids(self) -> np.ndarray:
        """The ids of all rows, int64 [t]."""
        return np.concatenate([text.ids for text in self.texts])

    @property
    def n_longest(self) -> int:
        """Tokens of the longest text."""
        return max(len(text.ids) for text in self.texts)

    @property
    def n_visible(self) -> np.ndarray:
        """Each row sees the keys of its text before this one, int64 [t]."""
        return np.maximum(self.positions + 1, self.prefix_lens)


def groups(
    texts: Sequence[Text], row_bytes: int, key_bytes: int, most_rows: int, most_bytes: int
) -> Iterator[list[Text]]:
    """Texts that go together, in their order: as many as there is room for, and at least one.

    A row takes ``row_bytes``. Besides, each text of a group takes ``key_bytes`` for every token of its longest.
    """
    group: list[Text] = []
    n_rows = n_longest = 0
    for text in texts:
        n_rows, n_longest = n_rows + len(text.ids), max(n_longest, len(text.ids))
        n_bytes = n_rows * row_bytes + (len(group) + 1) * n_longest * key_bytes
        if group and (n_rows > most_rows or n_bytes > most_bytes):
            yield group
            group, n_rows, n_longest = [], len(text.ids), len(text.ids)
        group.append(text)
    if group:
        yield group
