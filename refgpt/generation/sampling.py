"""From a row of logits to the next id: penalties, filters, one draw.

The order is that of transformers' ``generate``: repetition penalty, temperature, top_k, top_p
(``GenerationMixin._get_logits_processor``); the presence and frequency penalties, which transformers lacks, follow the
repetition penalty.

What decides which id is drawn uses only operations that IEEE 754 rounds in one way (add, multiply, divide, compare)
and sums from left to right, so that equal logits and an equal seed give equal ids on every machine. NumPy's own
``exp`` differs between machines in the last bit; ``_exp`` does not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refgpt._common.arguments import keep_whole
from refgpt._common.errors import GenerationError
from refgpt._common.float_state import default_float_state
from refgpt._common.wording import shown


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token. Building one validates it; the defaults draw from the model's own distribution.

    Attributes
    ----------
    temperature : float
        The logits are divided by it; 0 takes the most likely token, the lowest id among equals.
    top_k : int or None
        Keep the k most likely tokens, and any that ties with the last of them; 0 or None keeps all.
    top_p : float
        After temperature and top_k, keep the fewest most likely tokens whose probabilities sum to at least this.
    repetition_penalty : float
        The logit of every token of the prompt and of the new text is divided by it if positive, else multiplied
        (CTRL, https://arxiv.org/abs/1909.05858, as in transformers). 1 changes nothing.
    presence_penalty, frequency_penalty : float
        Subtracted from a token's logit once if it has been generated, and once for each time it has been. Only new
        tokens count, not the prompt's: OpenAI's definition. 0 changes nothing.
    seed : int or None
        Whole number from 0. None draws a new one from the operating system.
    logprobs : int, bool or None
        How many of the most likely tokens to report beside the chosen one. 0 or True reports the chosen one alone,
        None or False nothing.

    Raises
    ------
    GenerationError
        Naming the first parameter that cannot be used.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logprobs: int | bool | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0, 1e6)
        keep_whole(self, "top_k", 0, None, GenerationError, optional=True)
        _number("top_p", self.top_p, 0, 1)
        if self.top_p == 0:
            raise GenerationError(
                "cannot be used",
                where="top_p",
                got=0,
                wanted="a number above 0, at most 1",
                fix="for the most likely token use temperature 0",
            )
        _number("repetition_penalty", self.repetition_penalty, 1e-3, 1e3)
        _number("presence_penalty", self.presence_penalty, -1e3, 1e3)
        _number("frequency_penalty", self.frequency_penalty, -1e3, 1e3)
        keep_whole(self, "seed", 0, None, GenerationError, optional=True)
        if not isinstance(self.logprobs, bool):
            keep_whole(self, "logprobs", 0, None, GenerationError, optional=True)

    @property
    def n_alternatives(self) -> int | None:
        """How many likely tokens to report beside the chosen one; None when no log-probabilities are wanted."""
        if self.logprobs is None or self.logprobs is False:
            return None
        return 0 if self.logprobs is True else self.logprobs


@dataclass(frozen=True)
class Choice:
    """A drawn token, its log-probability and the likeliest ones' (natural logarithms); None where not wanted."""

    id: int
    logprob: float | None = None
    top_logprobs: dict[int, float] | None = None


class Sampler:
    """The sampler of one sequence: its parameters, its random stream and the tokens it has seen.

    Parameters
    ----------
    params : SamplingParams
    prompt : sequence of int
        What the repetition penalty counts as seen from the start.
    exists : ndarray [n] of bool, optional
        Which ids may be drawn, those from ``n`` on not: the head may have rows for which the tokenizer has no token,
        and the tokenizer tokens for which the head has no row.

    Notes
    -----
    The random stream depends on the seed alone, so a prompt gets the same text alone and in any batch
    (and equal prompts of one seeded batch get equal texts).
    """

    def __init__(self, params: SamplingParams, prompt: Sequence[int] = (), exists: np.ndarray | None = None) -> None:
        self.params = params
        self._n_ids = None if exists is None else len(exists)
        self._gaps = np.array([], np.intp) if exists is None else np.flatnonzero(~exists)
        self._seen = set(prompt)
        self._counts: dict[int, int] = {}
        self._bits = np.random.PCG64(np.random.SeedSequence(params.seed))

    @default_float_state()
    def choose(self, logits: np.ndarray) -> Choice:
        """Draw the next token and remember it.

        Parameters
        ----------
        logits : ndarray [v]
            The model's output for the last position, untouched.

        Returns
        -------
        Choice
            Its log-probabilities are the model's own over all v rows, before any penalty or filter.

        Raises
        ------
        GenerationError
            If a logit is NaN or infinite, or no id may be drawn.
        """
        ids, weights = self.candidates(logits)
        cumulative = np.cumsum(weights)
        # 52 bits, one fewer than a float64 holds: a product with them stays strictly below the sum.
        threshold = float(self._bits.random_raw() >> 12) * 2.0**-52 * cumulative[-1]
        chosen = int(ids[np.searchsorted(cumulative, threshold, side="right")])
        self._seen.add(chosen)
        self._counts[chosen] = self._counts.get(chosen, 0) + 1
        if self.params.n_alternatives is None:
            return Choice(chosen)
        logprobs = log_softmax(logits)
        n = self.params.n_alternatives
        if n == 0:
            return Choice(chosen, float(logprobs[chosen]))
        likely = self._likeliest(self._drawable(logits), n)
        likeliest = likely[np.argsort(-logits[likely], kind="stable")][:n]
        return Choice(chosen, float(logprobs[chosen]), {int(i): float(logprobs[i]) for i in likeliest})

    @default_float_state()
    def candidates(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What may be drawn next.

        Parameters
        ----------
        logits : ndarray [v]

        Returns
        -------
        ids : ndarray [n]
            In ascending order.
        weights : ndarray [n]
            Proportional to their probabilities; the likeliest has 1.

        Raises
        ------
        GenerationError
            If a logit is NaN or infinite, or no id may be drawn.
        """
        check_logits(logits)
        p = self.params
        scores = self._penalised(self._drawable(logits))
        if p.temperature == 0:
            return np.array([scores.argmax()]), np.ones(1)
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
            scores = (scores - scores.max()) / p.temperature
        ids = self._likeliest(scores, p.top_k)
        weights = _exp(scores[ids])
        kept = top_p_kept(weights, p.top_p)
        return ids[kept], weights[kept]

    def _drawable(self, logits: np.ndarray) -> np.ndarray:
        """A copy of the logits in float64, as far as ids exist, with -inf in the gaps between them."""
        scores: np.ndarray = logits[: self._n_ids].astype(np.float64)
        gaps = self._gaps_below(len(scores))
        if len(gaps) == len(scores):
            raise GenerationError(
                "no row of the model's head has a token, so nothing can be drawn",
                where="tokenizer",
                fix="use the tokenizer that came with the model",
            )
        scores[gaps] = -np.inf
        return scores

    def _gaps_below(self, n_rows: int) -> np.ndarray:
        """The ids below ``n_rows`` that mean no token; a vocabulary may be larger than the head."""
        return self._gaps[: np.searchsorted(self._gaps, n_rows)]

    def _likeliest(self, scores: np.ndarray, k: int | None) -> np.ndarray:
        """The ids that ``top_k_kept`` keeps and that exist, in ascending order."""
        kept = top_k_kept(scores, k)
        kept[self._gaps_below(len(kept))] = False
        return np.flatnonzero(kept)

    def _penalised(self, scores: np.ndarray) -> np.ndarray:
        """Apply the three penalties in place."""
        p = self.params
        if p.repetition_penalty != 1:
            seen = np.array([i for i in self._seen if i < len(scores)], np.intp)
            scores[seen] = np.where(
                scores[seen] < 0, scores[seen] * p.repetition_penalty, scores[seen] / p.repetition_penalty
            )
        if p.presence_penalty or p.frequency_penalty:
            ids = np.fromiter(self._counts, np.intp)
            scores[ids] -= p.presence_penalty + p.frequency_penalty * np.fromiter(self._counts.values(), np.float64)
        return scores


def top_k_kept(scores: np.ndarray, k: int | None) -> np.ndarray:
    """Mask of the scores not below the k-th largest: more than k when several tie with it. None or 0 keeps all."""
    if not k or k >= len(scores):
        return np.ones(len(scores), bool)
    kept: np.ndarray = scores >= np.partition(scores, -k)[-k]
    return kept


def top_p_kept(weights: np.ndarray, p: float) -> np.ndarray:
    """Mask of the nucleus: from the least likely up, tokens go while their sum stays within 1 - p of the whole.

    The best always stays; among equals the higher ids go first.
    """
    if p == 1:
        return np.ones(len(weights), bool)
    may_go = (1 - p) * np.cumsum(weights)[-1]
    kept: np.ndarray = weights * len(weights) >= may_go  # the others go, being less than that together; sort these few
    gone = np.cumsum(weights[~kept])[-1:].sum()
    ascending = np.flatnonzero(kept)[np.argsort(-weights[kept], kind="stable")[::-1]]
    kept[ascending[:-1]] = gone + np.cumsum(weights[ascending[:-1]]) > may_go
    return kept


def check_logits(logits: np.ndarray) -> None:
    """Refuse logits among which one is NaN or infinite: a GenerationError."""
    if not np.isfinite(logits).all():
        raise GenerationError(
            "the model computed logits that are not finite",
            where="logits",
            fix="look for the first bad activation with `refgpt verify`",
        )


@default_float_state()
def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities over the last axis in float64."""
    shifted: np.ndarray = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


_LN2_HIGH, _LN2_LOW = float.fromhex("0x1.62e42fee00000p-1"), float.fromhex("0x1.a39ef35793c76p-33")
_INVERSE_FACTORIALS = [1 / math.factorial(n) for n in range(13, -1, -1)]


def _exp(x: np.ndarray) -> np.ndarray:
    """e to the power x for x <= 0, within 2 units in the last place of float64 and the same bits on every machine.

    ``x = n ln2 + r`` with ``|r| <= ln2 / 2``; the Taylor series of ``exp(r)`` to r^13 leaves less than 1e-17; then
    times 2^n.
    """
    tiny = x < -700  # 1e-304: taken for 0, which keeps clear of subnormal numbers
    x = np.where(tiny, 0, x)
    n = np.rint(x * 1.4426950408889634)
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW  # the first product is exact: ln2's high part ends in zeros
    y = np.zeros_like(r)
    for coefficient in _INVERSE_FACTORIALS:
        y *= r
        y += coefficient
    return np.where(tiny, 0, np.ldexp(y, n.astype(np.int32)))


def _number(name: str, value: object, least: float, most: float) -> None:
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.integer, np.floating))
        or not least <= value <= most
    ):
        raise GenerationError(
            "cannot be used", where=name, got=shown(value), wanted=f"a number from {least:g} to {most:g}"
        )
