"""Choose the texts of each step: they are shuffled in every epoch, and short ones share a row.

A row is a budget of tokens, not one long text: its texts stay separate, so that none sees another and each begins at
position 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

#: Most rows that stay open for more texts; beyond that, the fullest is closed.
MOST_OPEN = 64


@dataclass(frozen=True)
class PlannedStep:
    """The texts of a step: their numbers, by row, and the step's epoch."""

    epoch: int
    rows: tuple[tuple[int, ...], ...]


def plan_steps(
    lengths: Sequence[int], n_rows: int, row_length: int, pack: bool, seed: int, n_epochs: int | None = None
) -> Iterator[PlannedStep]:
    """The steps of a training, one after the other.

    Parameters
    ----------
    lengths : sequence of int
        The number of tokens of each text.
    n_rows : int
        Rows of a step; the last step of an epoch may have fewer.
    row_length : int
        The most tokens of a row.
    pack : bool
        Whether to put several texts in a row.
    seed : int
        The seed of the texts' order.
    n_epochs : int, optional
        How often each text is seen. None gives steps without end.
    """
    epoch = 0
    while n_epochs is None or epoch < n_epochs:
        order = np.random.RandomState([seed, epoch]).permutation(len(lengths)).tolist()
        rows = pack_rows(lengths, order, row_length) if pack else [(i,) for i in order]
        for at in range(0, len(rows), n_rows):
            yield PlannedStep(epoch, tuple(rows[at : at + n_rows]))
        epoch += 1


def pack_rows(lengths: Sequence[int], order: Sequence[int], row_length: int) -> list[tuple[int, ...]]:
    """Texts by row: each goes into the first open row with room for it, or begins a new row."""
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
