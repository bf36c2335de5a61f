"""Scores of attention heads: how widely they attend, and how similar they are to known kinds of heads.

A score is the share of attention, between 0 and 1, that a head gives to certain keys, averaged over the queries that
have such keys:

previous token   the position before (Clark et al. 2019, https://arxiv.org/abs/1906.04341, in BERT)
duplicate token  earlier positions with the same token (Wang et al. 2022, https://arxiv.org/abs/2211.00593)
induction        positions right after an earlier one with the same token: what followed last time (Olsson et al. 2022,
                 https://arxiv.org/abs/2209.11895)

Use ``repeated_ids`` to test induction heads: it makes a random text that is repeated once, as Olsson et al. did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import GenerationError, RefgptError
from refgpt._common.wording import shown
from refgpt.spec import family_of
from refgpt.spec.config import AnyConfig
from refgpt.spec.ids import check_flat
from refgpt.tracing.recording import visit
from refgpt.tracing.subjects import Subject, Text, engine_of, ids_of


def attention_entropy(pattern: np.ndarray) -> np.ndarray:
    """How widely each query attends: the entropy of its row in nats, from 0 (one key) to log s (all keys equally).

    After Clark et al. 2019, "What does BERT look at?" (https://arxiv.org/abs/1906.04341).

    pattern [h, t, s] -> float64 [h, t]
    """
    p = _patterns(pattern).astype(np.float64)
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)


def previous_token_score(pattern: np.ndarray) -> np.ndarray:
    """Attention to the position before. pattern [h, t, s] -> float64 [h]; NaN for a text of one token."""
    pattern = _patterns(pattern, whole=True)
    return _share(pattern, np.eye(pattern.shape[-1], k=-1, dtype=bool))


def duplicate_token_score(pattern: np.ndarray, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Attention to earlier positions with the same token. pattern [h, t, s] -> float64 [h]; NaN if no token recurs."""
    pattern = _patterns(pattern, whole=True)
    return _share(pattern, _earlier_same(ids, pattern.shape[-1]))


def induction_score(pattern: np.ndarray, ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Attention to positions right after earlier ones with the same token, and before the query itself.

    pattern [h, t, s] -> float64 [h]; NaN if no token recurs with another between
    """
    pattern = _patterns(pattern, whole=True)
    same = _earlier_same(ids, pattern.shape[-1])
    after = np.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    return _share(pattern, np.tril(after, k=-1))


@dataclass(frozen=True, eq=False)
class HeadScores:
    """Scores of all heads, each float64 [n_layer, n_head]; see the module's docstring.

    Attributes
    ----------
    previous_token, duplicate_token, induction : ndarray
        Shares of attention; NaN if the text has no such keys.
    entropy : ndarray
        Mean over the queries, in nats.
    """

    previous_token: np.ndarray
    duplicate_token: np.ndarray
    induction: np.ndarray
    entropy: np.ndarray


def head_scores(model: Subject, ids: Text, prefix_len: int = 0) -> HeadScores:
    """Score every head on one text. Patterns are processed layer by layer, and none is kept.

    Parameters and errors are those of ``record``.
    """
    engine, tokens = engine_of(model), ids_of(model, ids, prefix_len)

    def look(_: str, pattern: np.ndarray) -> np.ndarray:
        return np.stack(
            [
                previous_token_score(pattern),
                duplicate_token_score(pattern, tokens),
                induction_score(pattern, tokens),
                attention_entropy(pattern).mean(axis=-1),
            ]
        )

    found = np.stack(list(visit(engine, tokens, "blocks.*.pattern", look, prefix_len).values()), axis=1)
    return HeadScores(*found)


def repeated_ids(config: AnyConfig, n: int, seed: int = 0) -> np.ndarray:
    """A random text of ``n`` tokens, repeated once, after the begin-of-text token if there is one. -> int64

    Raises
    ------
    GenerationError
        If it does not fit into the model's context.
    """
    family_of(config)
    start = [] if config.bos_id is None else [config.bos_id]
    n = whole_number("n", n, 1, (config.n_ctx - len(start)) // 2, GenerationError)
    seed = whole_number("seed", seed, 0, None, GenerationError)
    once = np.random.default_rng(seed).integers(0, config.n_vocab, n)
    return np.concatenate([np.array(start, np.int64), once, once])


def _patterns(value: np.ndarray, whole: bool = False) -> np.ndarray:
    """Check that a value is the attention patterns of a layer (with all queries, if ``whole``). -> [h, t, s]"""
    array = value if isinstance(value, np.ndarray) else np.empty(0)
    if array.dtype.kind != "f" or array.ndim != 3 or (whole and array.shape[1] != array.shape[2]):
        got = f"an array {list(value.shape)} of {value.dtype}" if isinstance(value, np.ndarray) else shown(value)
        raise RefgptError(
            "is no attention pattern",
            where="pattern",
            got=got,
            wanted=f"an array [h, t, {'t' if whole else 's'}] of floating-point numbers",
            fix="record 'blocks.0.pattern'" + (" with all positions" if whole else ""),
        )
    return array


def _earlier_same(ids: Sequence[int] | np.ndarray, n: int) -> np.ndarray:
    """For each of ``n`` positions, which earlier positions have the same token. -> bool [t, s]"""
    tokens = check_flat(ids)
    if len(tokens) != n:
        raise GenerationError(
            "are not those of the pattern",
            where="ids",
            got=f"{len(tokens)} ids",
            wanted=f"the {n} that it was recorded for",
        )
    return np.tril(tokens[:, None] == tokens[None, :], k=-1)


def _share(pattern: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Attention to some keys, averaged over the queries that have any. pattern [h, t, s], keys bool [t, s] -> [h]."""
    queries = keys.any(axis=-1)
    if not queries.any():
        return np.full(len(pattern), np.nan)
    return np.where(keys, pattern, 0).sum(axis=-1, dtype=np.float64)[:, queries].mean(axis=-1)
