"""Masks: the key positions that each query position may attend to."""

from __future__ import annotations

import numpy as np


def causal_mask(n: int) -> np.ndarray:
    """Each position sees itself and the positions before it. -> bool [t, s], True = may look."""
    return prefix_mask(n, 0)


def local_mask(n: int, window: int) -> np.ndarray:
    """Causal, and no farther back than ``window`` positions, one's own included. -> bool [t, s], True = may look."""
    t, s = np.arange(n)[:, None], np.arange(n)[None, :]
    return (s <= t) & (s > t - window)


def prefix_mask(n: int, prefix_len: int) -> np.ndarray:
    """Causal, except that all positions see the first ``prefix_len`` ones. -> bool [t, s].

    GPT-JT was trained with the prompt as such a prefix; the text after it (an answer, labels to be scored) is causal.
    """
    t, s = np.arange(n)[:, None], np.arange(n)[None, :]
    return (s <= t) | (s < prefix_len)
