"""Which tokens may be drawn: top_k, top_p, min_p, typical_p and the cutoffs, and Mesh Transformer JAX's own order.

Sums go from left to right in a fixed order, so that the same tokens are kept on every machine. Only likely tokens are
sorted: most of a vocabulary of 50,000 tokens are too unlikely to matter.
"""

from __future__ import annotations

import math

import numpy as np

from refgpt.generation.processing import exp, log
from refgpt.generation.sampling_params import SamplingParams


def top_k_kept(scores: np.ndarray, k: int | None) -> np.ndarray:
    """Mask of the scores not below the k-th largest: more than k when several tie with it. None or 0 keeps all."""
    if not k or k >= len(scores):
        return np.ones(len(scores), bool)
    kept: np.ndarray = scores >= np.partition(scores, -k)[-k]
    return kept


def top_p_kept(weights: np.ndarray, p: float) -> np.ndarray:
    """Mask of the nucleus: the least likely tokens are removed while their sum is at most 1 - p of the whole.

    The likeliest token always stays; of equal ones the higher ids are removed first.
    """
    if p == 1:
        return np.ones(len(weights), bool)
    may_go = (1 - p) * np.cumsum(weights)[-1]
    few = weights * len(weights) >= may_go  # the others together are less and are removed; sort these few
    gone = np.cumsum(weights[~few])[-1:].sum()
    ascending = np.sort(weights[few])
    n_going = int(np.searchsorted(gone + np.cumsum(ascending[:-1]), may_go, side="right"))
    return _largest(weights, ascending[n_going], len(ascending) - n_going)


def _largest(weights: np.ndarray, least: float, n: int, lower_ids: bool = True) -> np.ndarray:
    """Mask of the n largest weights, the smallest being ``least``; of equal ones those with lower or higher ids."""
    kept: np.ndarray = weights > least
    equals, n_more = np.flatnonzero(weights == least), n - int(np.count_nonzero(kept))
    kept[equals[:n_more] if lower_ids else equals[len(equals) - n_more :]] = True
    return kept


def mesh_kept(scores: np.ndarray, k: int | None, p: float) -> np.ndarray:
    """Mask of what ``nucleaus_filter`` of Mesh Transformer JAX keeps of scores whose largest is 0.

    Both of its filters sort all tokens by their probabilities without the temperature, in descending order, of equal
    ones the higher ids first. For the tokens from rank k + 1 on, top_k subtracts their ids times a large number, so
    that id 0 is never removed. top_p removes a token if the sum of those before it exceeds p.
    """
    kept = scores > -np.inf
    if p < 1:
        weights = exp(scores)
        total = np.cumsum(weights)[-1]
        # Tokens that are less than 1 - p together are removed. Only the others have to be sorted.
        descending = np.sort(weights[weights * len(weights) >= (1 - p) * total])[::-1]
        n = 1 + int(np.searchsorted(np.cumsum(descending[:-1]), p * total, side="right"))
        kept = _largest(weights, descending[n - 1], n, lower_ids=False)
    ids = np.flatnonzero(kept)
    if k and len(ids) > k + 1:
        values = scores[ids]
        within = _largest(values, np.partition(values, -k - 1)[-k - 1], k + 1, lower_ids=False)
        kept[ids[~within & (ids > 0)]] = False
    return kept


def further_kept(params: SamplingParams, logs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Apply the other filters to the tokens that ``top_k`` and ``top_p`` keep.

    Parameters
    ----------
    logs, weights : ndarray [n]
        Weights in proportion to probabilities, and their logarithms.

    Returns
    -------
    ndarray [n] of bool
        The mask of the kept tokens. The likeliest is always kept.
    """
    kept = np.ones(len(weights), bool)
    if params.min_p:
        kept &= weights >= params.min_p * weights.max()
    if params.typical_p is not None and params.typical_p < 1:
        kept = _within(kept, _typical(*_left(kept, logs, weights), params.typical_p))
    for cutoff, by_entropy in ((params.epsilon_cutoff, False), (params.eta_cutoff, True)):
        if cutoff and cutoff < 1:
            logs_left, left = _left(kept, logs, weights)
            if by_entropy:
                p, _, entropy = _distribution(logs_left, left)
                least = min(cutoff, math.sqrt(cutoff) * float(exp(np.array([-entropy]))[0]))
            else:
                p, least = left / np.cumsum(left)[-1], cutoff
            kept = _within(kept, (p >= least) | (left == left.max()))
    return kept


def _left(kept: np.ndarray, logs: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (logs, weights) if kept.all() else (logs[kept], weights[kept])


def _within(kept: np.ndarray, still: np.ndarray) -> np.ndarray:
    """Turn a mask of the tokens kept so far into one of all tokens."""
    kept[kept] = still
    return kept


def _distribution(logs: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Probabilities, their logarithms, and the entropy."""
    total = float(np.cumsum(weights)[-1])
    p, log_p = weights / total, logs - log(total)
    return p, log_p, max(0.0, -float(np.cumsum(p * log_p)[-1]))


def _typical(logs: np.ndarray, weights: np.ndarray, mass: float) -> np.ndarray:
    p, unusual, entropy = _distribution(logs, weights)
    unusual += entropy  # how far the surprise is from the expected one
    np.abs(unusual, out=unusual)
    order = np.arange(len(p))
    for limit in (0.5, 1, 2, 3, 4, 6):  # sort only the tokens that have the mass together
        few = np.flatnonzero(unusual < limit)
        if p[few].sum() > mass * (1 + 1e-9):  # summed in another order than below
            order = few
            break
    order = order[np.argsort(unusual[order], kind="stable")]
    last = min(int((np.cumsum(p[order]) < mass).sum()), len(order) - 1)
    kept: np.ndarray = unusual <= unusual[order[last]]
    return kept
