"""Short passes, recorded: one crossing into C for a token, however many kernels it takes."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from refgpt.config import ModelConfig
from refgpt.kernels import Program
from refgpt.runtime.cache import KVCache
from refgpt.runtime.gptj import Rows, Workspace, forward
from refgpt.runtime.packing import PackedParams

#: Passes of more rows spend their time in kernels, and are not worth recording.
MOST_ROWS = 16


class RecordedPass:
    """One pass over rows of a certain number, from ids to logits, to be made again with other rows.

    Parameters
    ----------
    rows : Rows
        The first that will go through it; later ones have as many rows, in as many tiles.
    """

    def __init__(
        self,
        params: PackedParams,
        config: ModelConfig,
        rows: Rows,
        cache: KVCache,
        rotation: tuple[np.ndarray, np.ndarray],
        workspace: Workspace,
        wanted: slice,
    ) -> None:
        self._rows = Rows(**{field.name: getattr(rows, field.name).copy() for field in fields(Rows)})
        self._program, self._threads = Program(), workspace.threads
        self._logits = forward(params, config, self._rows, cache, rotation, workspace, wanted, program=self._program)

    def run(self, rows: Rows) -> np.ndarray:
        """Logits of these rows, which must be able to exist: nothing is checked here."""
        for field in fields(Rows):
            np.copyto(getattr(self._rows, field.name), getattr(rows, field.name))
        self._program.run(self._threads)
        return self._logits.copy()
