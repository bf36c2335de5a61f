"""Which tokens may be drawn: top_k, top_p, min_p, typical_p and the cutoffs, and Mesh Transformer JAX's own order.

Sums go from left to right in a fixed order, so that the same tokens are kept on every machine. Only likely tokens are
sorted: most of a vocabulary of 50,000 tokens are too unlikely to matter.
"""

from __future__ import annotations

import math

import numpy as np

from refgpt.generation.processing import CHUNK, exp, log, total
from refgpt.generation.sampling_params import SamplingParams

#: More than ``FEW`` keys are first counted into ``N_BINS`` bins, ``BINS_PER_NAT`` of them for each nat.
FEW, BINS_PER_NAT, N_BINS = 512, 512, 4096


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
    may_go = (1 - p) * total(weights)
    few = weights * len(weights) >= may_go  # the others together are less and are removed; sort these few
    gone = total(weights[~few])
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
        whole = total(weights)
        # Tokens that are less than 1 - p together are removed. Only the others have to be sorted.
        descending = np.sort(weights[weights * len(weights) >= (1 - p) * whole])[::-1]
        n = 1 + int(np.searchsorted(np.cumsum(descending[:-1]), p * whole, side="right"))
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
                p, least = left / total(left), cutoff
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
    whole = total(weights)
    p, log_p = weights / whole, logs - log(whole)
    return p, log_p, max(0.0, -total(p, log_p))


def _typical(logs: np.ndarray, weights: np.ndarray, mass: float) -> np.ndarray:
    p, unusual, entropy = _distribution(logs, weights)
    unusual += entropy  # how far the surprise is from the expected one
    np.abs(unusual, out=unusual)
    kept: np.ndarray = unusual <= typical_key(unusual, p, mass)
    return kept


def typical_key(keys: np.ndarray, shares: np.ndarray, mass: float) -> float:
    """The key at which the sum of the shares, in ascending order of their keys >= 0, reaches ``mass``.

    Of equal keys the first comes first. If the sum never reaches it, the largest key.

    Many keys are not sorted: they are counted into bins, and those of one bin are sorted. Sums by bins may differ from
    sums in order by their rounding. Where that could matter, all keys are sorted after all.
    """
    if len(keys) > FEW:
        bins, sums = np.empty(len(keys), np.int16), np.zeros(N_BINS)
        for start in range(0, len(keys), CHUNK):
            some = slice(start, start + CHUNK)
            bins[some] = np.minimum(keys[some] * BINS_PER_NAT, N_BINS - 1)  # never descending where keys ascend
            sums += np.bincount(bins[some], shares[some], N_BINS)
        np.cumsum(sums, out=sums)
        i = int(np.searchsorted(sums, mass))
        if i < N_BINS:
            inside = np.flatnonzero(bins == i)
            order = inside[np.argsort(keys[inside], kind="stable")]
            reached = np.cumsum(np.concatenate([sums[i - 1 : i], shares[order]]))
            if np.abs(reached - mass).min() > len(keys) * 1e-15:  # more than rounding can be
                return float(keys[order[int(np.searchsorted(reached, mass)) - len(reached) + len(order)]])
    order = np.argsort(keys, kind="stable")
    return float(keys[order[min(int(np.searchsorted(np.cumsum(shares[order]), mass)), len(order) - 1)]])
