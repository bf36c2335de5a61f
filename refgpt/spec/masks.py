"""Which key positions a query position may look at."""

from __future__ import annotations

import numpy as np


def causal_mask(n: int) -> np.ndarray:
    """Each position sees itself and what came before. -> bool [t, s], True = may look."""
    return prefix_mask(n, 0)


def local_mask(n: int, window: int) -> np.ndarray:
    """Causal, and no farther back than ``window`` positions, one's own included. -> bool [t, s], True = may look."""
    t, s = np.arange(n)[:, None], np.arange(n)[None, :]
    return (s <= t) & (s > t - window)


def prefix_mask(n: int, prefix_len: int) -> np.ndarray:
    """Causal, but the first ``prefix_len`` positions are seen by all, each other included. -> bool [t, s].

    GPT-JT was trained with the prompt as such a prefix; what follows it (an answer, labels to be scored) stays causal.
    """
    t, s = np.arange(n)[:, None], np.arange(n)[None, :]
    return (s <= t) | (s < prefix_len)
