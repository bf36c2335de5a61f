"""Which texts each step learns from: shuffled in every epoch, short ones put together to rows.

A row is a budget of tokens, not one long text: its texts stay texts of their own, so that none sees another and each
begins at position 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

#: Rows with room left, among which one is looked for.
MOST_OPEN = 64


@dataclass(frozen=True)
class PlannedStep:
    """The texts of a step: their numbers, by row, and which epoch it is part of."""

    epoch: int
    rows: tuple[tuple[int, ...], ...]


def plan_steps(
    lengths: Sequence[int], n_rows: int, row_length: int, pack: bool, seed: int, n_epochs: int | None = None
) -> Iterator[PlannedStep]:
    """The steps of a training, one after the other.

    Parameters
    ----------
    lengths : sequence of int
        Tokens of each text.
    n_rows : int
        Rows of a step; the last of an epoch may have fewer.
    row_length : int
        Most tokens of a row.
    pack : bool
        Whether to put several texts in a row.
    seed : int
        Of the order of the texts.
    n_epochs : int, optional
        How often each text is seen; None: without end.
    """
    epoch = 0
    while n_epochs is None or epoch < n_epochs:
        order = np.random.RandomState([seed, epoch]).permutation(len(lengths)).tolist()
        rows = pack_rows(lengths, order, row_length) if pack else [(i,) for i in order]
        for at in range(0, len(rows), n_rows):
            yield PlannedStep(epoch, tuple(rows[at : at + n_rows]))
        epoch += 1


def pack_rows(lengths: Sequence[int], order: Sequence[int], row_length: int) -> list[tuple[int, ...]]:
    """Texts by row: each goes into the first row with room for it among the latest, or begins another."""
    rows: list[list[int]] = []
    room: list[int] = []  # of each row
    open_rows: list[int] = []
    for i in order:
        at = next((row for row in open_rows if room[row] >= lengths[i]), None)
        if at is None:
            at = len(rows)
            rows.append([])
            room.append(row_length)
            open_rows.append(at)
            if len(open_rows) > MOST_OPEN:
                open_rows.remove(min(open_rows, key=lambda row: room[row]))
        rows[at].append(i)
        room[at] -= lengths[i]
    return [tuple(row) for row in rows]
