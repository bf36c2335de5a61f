"""One adapter an engine: the same few questions, asked of each library in its own words.

A module here has ``load(path, precision, threads) -> Adapter``, and is the only place that imports its library. Each
adapter runs in a process of its own, so none meets another's threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.peers.lineup import CHECKPOINT
from refgpt.checkpoints import open_checkpoint

CAPACITY = 1024  # positions that a text may take, where an engine wants to know beforehand


class Adapter(Protocol):
    """A loaded model that can be timed.

    Attributes
    ----------
    about : dict
        Versions, and what the library says of itself.
    n_bytes : int
        Weights that a decoded token must read: all but the embedding table.
    """

    about: dict[str, Any]
    n_bytes: int

    def text(self, ids: Sequence[int], n_new: int) -> tuple[float, float]:
        """Seconds for a prompt, up to the scores of the next token, and seconds for ``n_new`` tokens after it."""
        ...

    def texts(self, prompts: Sequence[Sequence[int]], n_new: int) -> float | None:
        """Seconds for ``n_new`` steps of all texts together after their prompts; None if it cannot do that."""
        ...

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Scores for the token after ``ids``. -> [v]"""
        ...


def n_embedding(models: Path) -> int:
    """Weights of the embedding table, of which a decoded token reads one row; 0 where it is the head too."""
    params = open_checkpoint(models / CHECKPOINT).params
    return params.wte.size if "wte" in params.looked_up else 0


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
