"""Choose the next id from a row of logits: penalties, filters, one draw.

The order is that of transformers' ``generate``: see ``refgpt.generation.processing``.

The choice of an id uses only operations that IEEE 754 rounds in one way (add, multiply, divide, compare) and sums from
left to right, so that equal logits and an equal seed give equal ids on every machine. NumPy's own ``exp`` differs
between machines in the last bit; that of ``processing`` does not.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import numpy as np

from refgpt._common.errors import GenerationError
from refgpt._common.float_state import default_float_state
from refgpt.generation.filters import further_kept, mesh_kept, top_k_kept, top_p_kept
from refgpt.generation.matching import ConstraintMatcher
from refgpt.generation.mesh_random import Draw, mesh_draws
from refgpt.generation.processing import Processing, exp, log_probabilities
from refgpt.generation.sampling_params import SamplingParams

__all__ = ["Choice", "Sampler", "SamplingParams", "check_logits", "log_softmax"]


@dataclass(frozen=True)
class Choice:
    """A drawn token, its log-probability and those of the likeliest tokens (natural logarithms), or None if not asked
    for."""

    id: int
    logprob: float | None = None
    top_logprobs: dict[int, float] | None = None


class Sampler:
    """The sampler of one sequence: its parameters, its random stream and the tokens it has seen.

    Parameters
    ----------
    params : SamplingParams
    prompt : sequence of int
        The tokens that the repetition penalty counts from the start.
    exists : ndarray [n] of bool, optional
        Which ids may be drawn; ids from ``n`` on may not. The head may have rows for which the tokenizer has no token,
        and the tokenizer may have tokens for which the head has no row.
    ends : collection of int
        The tokens that end a text.
    most_new : int, optional
        The largest number of tokens that will be drawn.
    stream : int
        The number of the seed's stream of random numbers; each of several continuations has its own.
    n_texts : int
        The number of continuations, which is the size of the batch with the sampler "mesh".
    matcher : ConstraintMatcher, optional
        The constraint on the text.

    Notes
    -----
    The random stream depends only on the seed and the stream's number, so a prompt gets the same text alone and in any
    batch (and equal prompts of one seeded batch get equal texts).
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int] = (),
        exists: np.ndarray | None = None,
        *,
        ends: Collection[int] = (),
        most_new: int | None = None,
        stream: int = 0,
        n_texts: int = 1,
        matcher: ConstraintMatcher | None = None,
    ) -> None:
        self.params = params
        self._n_ids = None if exists is None else len(exists)
        self._gaps = np.array([], np.intp) if exists is None else np.flatnonzero(~exists)
        self._text = list(prompt)
        self._process = Processing(params, len(prompt), ends, most_new, matcher)
        # A function of the caller's may remember its calls: it is called for tokens that are drawn, never for guesses.
        self._process_guess = self._process
        if params.logits_processor:
            self._process_guess = Processing(
                replace(params, logits_processor=None), len(prompt), ends, most_new, matcher
            )
        self._draws = mesh_draws(params.seed, stream, n_texts) if params.sampler == "mesh" else _draws(params, stream)
        self._ahead: deque[Draw] = deque()  # draws to come, which guesses have looked at

    @default_float_state()
    def choose(self, logits: np.ndarray) -> Choice:
        """Draw the next token and remember it.

        Parameters
        ----------
        logits : ndarray [v]
            The model's output for the last position; it is not changed.

        Returns
        -------
        Choice
            Its log-probabilities are the model's own over all v rows, before any penalty or filter.

        Raises
        ------
        GenerationError
            If a logit is NaN or infinite, or no id may be drawn.
        """
        chosen = self._draw_ahead(0)(*self.candidates(logits), len(logits))
        self._ahead.popleft()
        self._text.append(chosen)
        return self.report(logits, chosen)

    @default_float_state()
    def report(self, logits: np.ndarray, chosen: int) -> Choice:
        """A token, however it was chosen, with the log-probabilities that the parameters ask for. logits [v]"""
        if self.params.n_alternatives is None:
            return Choice(chosen)
        logprobs = log_softmax(logits)
        n = self.params.n_alternatives
        if n == 0:
            return Choice(chosen, float(logprobs[chosen]))
        likely = self._likeliest(self._existing(logits, logits.dtype), n)
        likeliest = likely[np.argsort(-logits[likely], kind="stable")][:n]
        return Choice(chosen, float(logprobs[chosen]), {int(i): float(logprobs[i]) for i in likeliest})

    @default_float_state()
    def candidates(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that may be drawn next.

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
        return self._kept(self._process(self.drawable(logits), self._text), len(self._text))

    @default_float_state()
    def guess(self, logits: np.ndarray, text: Sequence[int], n_ahead: int) -> int | None:
        """The token that ``choose`` would draw from these logits after ``text``, with the random number of a later
        draw.

        Nothing is remembered, and ``logits_processor`` is not called. If another model's logits are similar to this
        model's, the guess is mostly right, because both draws use the same random number.

        Parameters
        ----------
        logits : ndarray [v]
            Another model's logits.
        text : sequence of int
            The text so far, with earlier guesses.
        n_ahead : int
            The number of draws before this one.

        Returns
        -------
        int or None
            None if no id may be drawn, for example because the constraint allows none.

        Raises
        ------
        GenerationError
            If a logit is NaN or infinite.
        """
        check_logits(logits)
        scores = self._process_guess(self.drawable(logits), text)
        if scores.max() == -np.inf:
            return None
        return self._draw_ahead(n_ahead)(*self._kept(scores, len(text)), len(logits))

    def _draw_ahead(self, n_ahead: int) -> Draw:
        """A draw to come, with its random number."""
        while len(self._ahead) <= n_ahead:
            self._ahead.append(next(self._draws))
        return self._ahead[n_ahead]

    def _kept(self, scores: np.ndarray, n_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Apply temperature and filters to scores [v] after a text of ``n_tokens``: ids and weights of what is kept."""
        p = self.params
        best = scores.max()
        if best == -np.inf:
            raise nothing_left(n_tokens)
        if p.temperature == 0:
            return np.array([scores.argmax()]), np.ones(1)
        scores -= best
        kept = None if p.sampler == "transformers" else mesh_kept(scores, p.top_k, p.top_p)
        with np.errstate(over="ignore"):  # a tiny temperature sends all but the best to -inf, as it should
            scores /= p.temperature
        ids = self._likeliest(scores, p.top_k) if kept is None else np.flatnonzero(kept)
        weights = exp(scores if len(ids) == len(scores) else scores[ids])
        if kept is None and p.top_p < 1:
            kept = top_p_kept(weights, p.top_p)
            ids, weights = ids[kept], weights[kept]
        if p.min_p or p.typical_p or p.epsilon_cutoff or p.eta_cutoff:
            if not weights.all():
                possible = weights > 0
                ids, weights = ids[possible], weights[possible]
            kept = further_kept(p, scores if len(ids) == len(scores) else scores[ids], weights)
            ids, weights = ids[kept], weights[kept]
        return ids, weights

    @default_float_state()
    def log_scores(self, logits: np.ndarray, text: Sequence[int]) -> np.ndarray:
        """The scores that rank beams: log-probabilities [v] of the token after ``text``, changed by the parameters.

        Raises
        ------
        GenerationError
            If a logit is NaN or infinite.
        """
        check_logits(logits)
        scores = self._process(log_probabilities(self.drawable(logits)), text)
        return log_probabilities(scores) if self.params.renormalize_logits and scores.max() > -np.inf else scores

    def drawable(self, logits: np.ndarray) -> np.ndarray:
        """A float64 copy of the logits [v] up to the last id that exists, with -inf for ids that do not."""
        return self._existing(logits, np.dtype(np.float64))

    def _existing(self, logits: np.ndarray, dtype: np.dtype) -> np.ndarray:
        scores: np.ndarray = logits[: self._n_ids].astype(dtype)
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
        """The ids below ``n_rows`` that are not tokens; a vocabulary may be larger than the head."""
        return self._gaps[: np.searchsorted(self._gaps, n_rows)]

    def _likeliest(self, scores: np.ndarray, k: int | None) -> np.ndarray:
        """The ids that ``top_k_kept`` keeps and that exist, in ascending order."""
        gaps = self._gaps_below(len(scores))
        if not k and not len(gaps):
            return _every_id(len(scores))
        kept = top_k_kept(scores, k)
        kept[gaps] = False
        return np.flatnonzero(kept)


@lru_cache(maxsize=4)
def _every_id(n: int) -> np.ndarray:
    """The ids below n."""
    ids = np.arange(n)
    ids.flags.writeable = False
    return ids


def _draws(params: SamplingParams, stream: int) -> Iterator[Draw]:
    """The draws of a text. The first of several texts has the numbers that it would have alone."""
    bits = np.random.PCG64(np.random.SeedSequence(params.seed, spawn_key=(stream,) if stream else ()))
    while True:
        yield partial(_drawn, random=bits.random_raw())


def _drawn(ids: np.ndarray, weights: np.ndarray, n_rows: int, *, random: int) -> int:
    """One of the ids [n], drawn in proportion to the weights [n] with a random number of 64 bits."""
    cumulative = np.cumsum(weights)
    # 52 bits, one fewer than a float64 holds: a product with them stays strictly below the sum.
    threshold = float(random >> 12) * 2.0**-52 * cumulative[-1]
    return int(ids[np.searchsorted(cumulative, threshold, side="right")])


def nothing_left(n: int) -> GenerationError:
    """The error that no token may follow a text of ``n`` tokens."""
    return GenerationError(
        "no token is left that may be drawn",
        where=f"after {n} tokens",
        fix="ban fewer of them, as by bad_words_ids, suppress_tokens, no_repeat_ngram_size, min_new_tokens, constraint",
    )


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
