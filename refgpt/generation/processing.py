"""How the parameters change scores before and after the temperature, in transformers' order.

These come before it, and also apply to greedy decoding and beam search: ``sequence_bias`` and ``logit_bias``;
``repetition_penalty``; ``presence_penalty`` and ``frequency_penalty``, which transformers lacks;
``no_repeat_ngram_size``; ``bad_words_ids``; ``min_new_tokens``; ``forced_eos_token_id``;
``exponential_decay_length_penalty``; ``suppress_tokens``; ``begin_suppress_tokens``; ``logits_processor``; and last
``constraint``, which nothing can undo. These come after it, if a token is drawn: ``top_k``, ``top_p``, ``min_p``,
``typical_p``, ``epsilon_cutoff``, ``eta_cutoff`` (``GenerationMixin._get_logits_processor``).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np

from refgpt._common.errors import GenerationError
from refgpt.generation.matching import ConstraintMatcher
from refgpt.generation.sampling_params import Processor, SamplingParams, functions_of, id_list


class Processing:
    """Changes the scores of one text before the temperature.

    Parameters
    ----------
    params : SamplingParams
    n_prompt : int
        Number of tokens of the prompt.
    ends : collection of int
        The tokens that end a text.
    most_new : int or None
        The largest number of new tokens. ``forced_eos_token_id`` may force the last of them.
    matcher : ConstraintMatcher or None
        Says which tokens the constraint allows.
    """

    def __init__(
        self,
        params: SamplingParams,
        n_prompt: int,
        ends: Collection[int] = (),
        most_new: int | None = None,
        matcher: ConstraintMatcher | None = None,
    ) -> None:
        self._params, self._n_prompt, self._most_new, self._matcher = params, n_prompt, most_new, matcher
        self._ends = np.array(sorted(ends), np.intp)
        words = params.bad_words_ids or ()
        self._bad_words = [word for word in words if len(word) > 1 or word[0] not in ends]
        single = dict(params.logit_bias or {})
        self._biases = [*dict(params.sequence_bias or {}).items(), *(((i,), bias) for i, bias in single.items())]
        self._processors: tuple[Processor, ...] = functions_of(params.logits_processor or ())
        self._idle = params.repetition_penalty == 1 and not any(
            (
                self._biases,
                self._bad_words,
                self._processors,
                matcher is not None,
                params.presence_penalty,
                params.frequency_penalty,
                params.no_repeat_ngram_size,
                params.min_new_tokens,
                params.forced_eos_token_id is not None,
                params.exponential_decay_length_penalty,
                params.suppress_tokens,
                params.begin_suppress_tokens,
            )
        )

    def __call__(self, scores: np.ndarray, ids: Sequence[int]) -> np.ndarray:
        """Change the float64 scores [v] of the token that follows ``ids``, in place or in a new array."""
        if self._idle:
            return scores
        p, text = self._params, np.asarray(ids, np.intp)
        n_new, ends = len(text) - self._n_prompt, self._ends[self._ends < len(scores)]
        allowed = None if self._matcher is None else self._matcher.possible(ids[self._n_prompt :])[: len(scores)]
        if self._biases:
            _add_biases(scores, text, self._biases)
        if p.repetition_penalty != 1:
            window = text if p.repeat_last_n is None else text[-p.repeat_last_n :]
            seen = window[window < len(scores)]  # an id that occurs twice is penalised once
            scores[seen] = np.where(
                scores[seen] < 0, scores[seen] * p.repetition_penalty, scores[seen] / p.repetition_penalty
            )
        if (p.presence_penalty or p.frequency_penalty) and n_new:
            seen, counts = np.unique(text[self._n_prompt :], return_counts=True)
            scores[seen] -= p.presence_penalty + p.frequency_penalty * counts
        if p.no_repeat_ngram_size:
            _ban(scores, _completing(text, p.no_repeat_ngram_size))
        if self._bad_words:
            _ban(scores, np.array([word[-1] for word in self._bad_words if _stands_before(text, word)], np.intp))
        if n_new < p.min_new_tokens:
            scores[ends] = -np.inf
        if p.forced_eos_token_id is not None and n_new + 1 == self._most_new:
            forced = np.array(id_list(p.forced_eos_token_id), np.intp)
            forced = forced[forced < len(scores)]
            if allowed is None or allowed[forced].any():
                scores[:] = -np.inf
                scores[forced] = 0
        if p.exponential_decay_length_penalty is not None:
            start, factor = p.exponential_decay_length_penalty
            possible = ends[scores[ends] > -np.inf]
            scores[possible] += np.abs(scores[possible]) * (_power(factor, max(0, n_new - start)) - 1)
        if p.suppress_tokens:
            _ban(scores, np.array(p.suppress_tokens, np.intp))
        if p.begin_suppress_tokens and not n_new:
            _ban(scores, np.array(p.begin_suppress_tokens, np.intp))
        for processor in self._processors:
            scores = _processed(processor, text, scores)
        if allowed is not None:
            scores[~allowed] = -np.inf
        return scores


def _processed(processor: Processor, text: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The scores that the caller's function returns, after a check that they can be used."""
    changed = np.array(processor(text.tolist(), scores), np.float64)
    if changed.shape != scores.shape or np.isnan(changed).any() or (changed == np.inf).any():
        raise GenerationError(
            "gave scores that cannot be used",
            where="logits_processor",
            got=f"shape {changed.shape}" if changed.shape != scores.shape else "NaN or infinity",
            wanted=f"{len(scores)} numbers, or -inf for what must not be drawn",
        )
    return changed


def _add_biases(scores: np.ndarray, text: np.ndarray, biases: Sequence[tuple[tuple[int, ...], float]]) -> None:
    total = np.zeros_like(scores)
    for word, bias in biases:
        if word[-1] < len(scores) and _stands_before(text, word):
            total[word[-1]] += bias
    scores += total


def _stands_before(text: np.ndarray, word: Sequence[int]) -> bool:
    """Whether a text ends with all but the last token of a word."""
    n = len(word) - 1
    return n <= len(text) and (not n or bool((text[-n:] == word[:-1]).all()))


def _completing(text: np.ndarray, size: int) -> np.ndarray:
    """The tokens that would complete an n-gram that the text already has."""
    if len(text) < size:
        return np.empty(0, np.intp)
    rows = np.lib.stride_tricks.sliding_window_view(text, size)
    same = (rows[:, :-1] == text[len(text) + 1 - size :]).all(1)
    return rows[same, -1]


def _ban(scores: np.ndarray, ids: np.ndarray) -> None:
    scores[ids[ids < len(scores)]] = -np.inf


def _power(x: float, n: int) -> float:
    """The lesser of x to the power n and 1e30, by multiplications alone: the same bits on every machine."""
    result = 1.0
    while n and result < 1e30 and result:
        result, n = result * x, n - 1
    return min(result, 1e30)


def log_probabilities(scores: np.ndarray) -> np.ndarray:
    """Log-probabilities of scores [v], the same bits on every machine."""
    shifted: np.ndarray = scores - scores.max()
    return shifted - log(total(exp(shifted)))


_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
_INVERSE_FACTORIALS = [1 / math.factorial(n) for n in range(13, -1, -1)]


#: How many numbers are computed at a time: they stay in the processor's cache.
CHUNK = 8192


def exp(x: np.ndarray) -> np.ndarray:
    """e to the power x [n] for x <= 0, within 2 units in the last place of float64 and the same bits on every machine.

    ``x = m ln2 + r`` with ``|r| <= ln2 / 2``. The Taylor series of ``exp(r)`` to r^13, whose remainder is less than
    1e-17, is multiplied by 2^m. Below -700 (1e-304) the result is 0, so that none is subnormal.
    """
    y = np.full(x.shape, _INVERSE_FACTORIALS[0])
    for start in range(0, len(x), CHUNK):
        chunk, part = x[start : start + CHUNK], y[start : start + CHUNK]
        tiny = chunk < -700
        if tiny.any():
            chunk = np.where(tiny, 0, chunk)
        m = np.rint(chunk * 1.4426950408889634)
        r = (chunk - m * _LN2_HIGH) - m * _LN2_LOW  # the first product is exact: ln2's high part ends in zeros
        for coefficient in _INVERSE_FACTORIALS[1:]:
            part *= r
            part += coefficient
        part.view(np.int64)[:] += m.astype(np.int64) << 52  # adds m to the exponent
        part[tiny] = 0
    return y


def total(x: np.ndarray, factors: np.ndarray | None = None) -> float:
    """The sum of x [n], or of its products with as many factors, from left to right.

    That is ``np.cumsum(x)[-1]`` without an array of that length, which would be new memory for each token.
    """
    found = 0.0
    for start in range(0, len(x), CHUNK):
        some = slice(start, start + CHUNK)
        part = x[some].copy() if factors is None else x[some] * factors[some]
        part[0] += found
        found = float(np.add.accumulate(part, out=part)[-1])
    return found


def log_of(x: np.ndarray) -> np.ndarray:
    """``log`` of each x > 0 [n]."""
    m, n = np.frexp(x)
    low = m < math.sqrt(0.5)
    m, n = np.where(low, 2 * m, m), n - low
    t = (m - 1) / (m + 1)
    total = np.zeros_like(t)
    for k in range(23, 0, -2):
        total = total * t * t + 1 / k
    found: np.ndarray = (2 * t * total + n * _LN2_LOW) + n * _LN2_HIGH
    return found


def log(x: float) -> float:
    """The natural logarithm of x > 0, the same bits on every machine.

    ``x = 2^n m`` with m near 1, and ``log m = 2 artanh((m - 1) / (m + 1))``. The remainder of its series after the 23rd
    power is less than 1e-18.
    """
    m, n = math.frexp(x)
    if m < math.sqrt(0.5):
        m, n = 2 * m, n - 1
    t = (m - 1) / (m + 1)  # at most 0.172
    total = 0.0
    for k in range(23, 0, -2):
        total = total * t * t + 1 / k
    return (2 * t * total + n * _LN2_LOW) + n * _LN2_HIGH
