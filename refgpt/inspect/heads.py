"""Titles of attention heads: what kind of head each is on one prompt, and which head to look at first.

A head's score for a kind is the share of attention that it gives to the keys of this kind, averaged over the queries
that have such keys (see ``refgpt.tracing.head_scores``):

induction        the token after an earlier one like the query's (Olsson et al. 2022, https://arxiv.org/abs/2209.11895)
duplicate token  an earlier token like the query's (Wang et al. 2022, https://arxiv.org/abs/2211.00593)
previous token   the position before (Clark et al. 2019, https://arxiv.org/abs/1906.04341)
same position    the query's own position
first token      position 0, to which heads attend that find nothing (Xiao et al. 2023, https://arxiv.org/abs/2309.17453)

A head has a title if its score is at least ``LEAST_SHARE``, and ``LEAST_TIMES`` the score of a head that attends to
all visible keys equally, and if at least ``LEAST_QUERIES`` queries have such keys: on few tokens any pattern may look
like a kind. If several kinds qualify, the one of the highest score is the title.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refgpt.spec import prefix_mask
from refgpt.tracing import duplicate_token_score, induction_score, previous_token_score

#: The kinds, in the order in which a page prefers them for the head that it shows first. The last two are common and
#: say little.
KINDS = ("induction", "duplicate token", "previous token", "same position", "first token")
TELLING = KINDS[:3]
LEAST_SHARE, LEAST_TIMES, LEAST_QUERIES = 0.4, 2.0, 3


def kind_scores(pattern: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The scores of a layer's heads for each of ``KINDS``. pattern [h, t, t] -> float64 [h, kinds], NaN without keys"""
    shares = (
        induction_score(pattern, ids),
        duplicate_token_score(pattern, ids),
        previous_token_score(pattern),
        pattern.diagonal(axis1=-2, axis2=-1)[:, 1:].mean(axis=-1) if len(ids) > 1 else np.full(len(pattern), np.nan),
        pattern[:, 1:, 0].mean(axis=-1) if len(ids) > 1 else np.full(len(pattern), np.nan),
    )
    return np.stack(shares, axis=-1).astype(np.float64)


def titles(scores: np.ndarray, ids: np.ndarray, prefix_len: int) -> list[dict[str, Any]]:
    """The heads that have a title, layer by layer.

    Parameters
    ----------
    scores : ndarray [n_layer, n_head, kinds]
    ids : ndarray [t]
    prefix_len : int

    Returns
    -------
    list of dict
        Each with "layer", "head", "kind" and "score".
    """
    n = len(ids)
    seen = prefix_mask(n, prefix_len)
    even = kind_scores((seen / seen.sum(axis=-1, keepdims=True))[None], ids)[0]
    recurring = n - len(np.unique(ids))
    queries = np.array([recurring, recurring, n - 1, n - 1, n - 1])
    with np.errstate(invalid="ignore"):  # NaN: the prompt has no such keys
        high = (scores >= LEAST_SHARE) & (scores >= LEAST_TIMES * even) & (queries >= LEAST_QUERIES)
    found = []
    for layer, head in np.argwhere(high.any(axis=-1)).tolist():
        best = int(np.where(high[layer, head], scores[layer, head], -1).argmax())
        score = round(float(scores[layer, head, best]), 4)
        found.append({"layer": layer, "head": head, "kind": KINDS[best], "score": score})
    return found


def opening(found: list[dict[str, Any]], attribution: Any) -> dict[str, int]:
    """The head that a page shows first.

    It is the head with the highest score for the first kind of ``TELLING`` that is the title of any head. Without such
    a title, it is the head that adds most to the logit of the likeliest next token.
    """
    for kind in TELLING:
        if alike := [title for title in found if title["kind"] == kind]:
            best: Mapping[str, Any] = max(alike, key=lambda title: title["score"])
            return {"layer": best["layer"], "head": best["head"]}
    if attribution is None:
        return {"layer": 0, "head": 0}
    layer, head = np.unravel_index(np.argmax(attribution.heads), attribution.heads.shape)
    return {"layer": int(layer), "head": int(head)}
