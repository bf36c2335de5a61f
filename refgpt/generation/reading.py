"""Choose how much of which prompts the next pass reads."""

from __future__ import annotations

from collections.abc import Sequence

from refgpt.generation.sequence import Task

#: Rows of prompts in one pass: while no other text is generated, and while some are, which wait for the pass.
ROWS_ALONE, ROWS_BESIDE = 512, 32
#: Where so many prompts are read at once, a pass beside other texts reads more rows: the last prompt would wait long.
MANY_PROMPTS, ROWS_BESIDE_OF_MANY = 4, 192
#: Most rows of logits that one text gets at once: more would take more memory than the model's activations.
MOST_ROWS_WANTED = 64


def pieces(reading: Sequence[Task], beside: bool) -> list[tuple[Task, int]]:
    """Prompts, and how many rows of each the next pass reads.

    The oldest prompt gets half of the rows, so that no prompt waits for ever. The prompts with the fewest rows left get
    the others, so that a short prompt does not wait for a long one.

    Parameters
    ----------
    reading : sequence of Task
        The texts whose prompts are not read yet, the oldest first.
    beside : bool
        Whether other texts are generated in the same pass.
    """
    if not reading:
        return []
    left = ROWS_ALONE
    if beside:
        left = ROWS_BESIDE if len(reading) < MANY_PROMPTS else ROWS_BESIDE_OF_MANY
    oldest = reading[0]
    sizes = {oldest: max(_least(oldest), min(_most(oldest), -(-left // 2)))}
    left -= sizes[oldest]
    for task in sorted(reading, key=_rows_left):
        had = sizes.get(task, 0)
        size = min(_most(task), had + max(left, 0))
        if size > had and size >= _least(task):
            sizes[task] = size
            left -= size - had
    return [(task, sizes[task]) for task in reading if task in sizes]


def _rows_left(task: Task) -> int:
    """How many ids have not been read yet."""
    return len(task.ids) - task.n_read


def _least(task: Task) -> int:
    """The fewest rows that one pass can read: a prefix goes in one piece."""
    return 0 if task.n_read else task.prefix_len


def _most(task: Task) -> int:
    """The most rows that one pass can read."""
    return min(_rows_left(task), max(task.first_row + 1 - task.n_read, MOST_ROWS_WANTED, _least(task)))
