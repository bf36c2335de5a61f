"""Recorded short passes: one call into C per token, for all kernels of the pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from refgpt.kernels import Program
from refgpt.runtime.batch import Batch

#: Passes with more rows spend their time in kernels, so recording them gains nothing.
MOST_ROWS = 16


class RecordedPass:
    """One pass over a fixed number of rows, from ids to logits, that can be run again with other rows.

    Parameters
    ----------
    record : callable
        ``record(batch, program)`` adds the calls of a pass to the program and returns the array for its logits.
    batch : Batch
        The rows of the first run. Later runs have as many rows and tiles, the same logit rows, and the same cache.
    threads : int
    """

    def __init__(self, record: Callable[[Batch, Program], np.ndarray], batch: Batch, threads: int) -> None:
        self._batch = batch.copy()
        self._program, self._threads = Program(), threads
        self._logits = record(self._batch, self._program)

    def run(self, batch: Batch) -> np.ndarray:
        """Logits of these rows, which must be valid: they are not checked here."""
        for ours, theirs in zip(self._batch.arrays, batch.arrays, strict=True):
            ours[...] = theirs
        self._program.run(self._threads)
        return self._logits.copy()
