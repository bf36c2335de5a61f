"""Short passes, recorded: one crossing into C for a token, however many kernels it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np

from refgpt.kernels import Program
from refgpt.runtime.batch import Batch

#: Passes of more rows spend their time in kernels, and are not worth recording.
MOST_ROWS = 16


class RecordedPass:
    """One pass over rows of a certain number, from ids to logits, to be made again with other rows.

    Parameters
    ----------
    record : callable
        ``record(batch, program)`` adds the calls of a pass to the program and returns where its logits will be.
    batch : Batch
        The first rows that will go through it; later ones are as many, in as many tiles.
    threads : int
    """

    def __init__(self, record: Callable[[Batch, Program], np.ndarray], batch: Batch, threads: int) -> None:
        self._batch = Batch(**{field.name: getattr(batch, field.name).copy() for field in fields(Batch)})
        self._program, self._threads = Program(), threads
        self._logits = record(self._batch, self._program)

    def run(self, batch: Batch) -> np.ndarray:
        """Logits of these rows, which must be able to exist: nothing is checked here."""
        for field in fields(Batch):
            np.copyto(getattr(self._batch, field.name), getattr(batch, field.name))
        self._program.run(self._threads)
        return self._logits.copy()
