"""A continuation whose prompt is scored too: each of its tokens gets a log-probability, from the pass that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from refgpt.generation.params import GenerationParams
from refgpt.generation.results import Event
from refgpt.generation.sampling import Choice, check_logits
from refgpt.generation.sequence import Continuation, Generates
from refgpt.runtime.engine import Session


class ScoredContinuation(Continuation):
    """A continuation that begins with the prompt's own log-probabilities.

    They are those of ``Model.score`` for all of the prompt after its first token, to the last bit, and so causal: where
    the mask is "prefix" a token would see itself, and ``go_on`` has to be False.

    Parameters
    ----------
    go_on : bool
        Whether to generate text. Otherwise the only event has the prompt's scores and no token.

    Other parameters are those of ``Continuation``.
    """

    def __init__(
        self, request: int, prompt: Sequence[int], model: Generates, params: GenerationParams, go_on: bool = True
    ) -> None:
        super().__init__(request, prompt, model, params)
        if not go_on:
            self.ids = self.ids[:-1] or self.ids  # the last token is predicted but not read
            self.n_prompt = self.n_positions = len(self.ids)
            self.prefix_len = 0
        self.first_row = 0
        self._go_on, self._given, self._scores = go_on, list(prompt), list[Choice]()
        self._begun = False

    def take(self, session: Session, rows: np.ndarray) -> list[Event]:
        """Look up the tokens of the prompt, and draw those that follow."""
        if self._begun:
            return super().take(session, rows)
        n_left = len(self._given) - 1 - len(self._scores)
        for row in rows[:n_left]:
            check_logits(row)
            self._scores.append(self.sampler.report(row, self._given[len(self._scores) + 1]))
        if self.reads:
            return []
        self._begun = True
        if self._go_on:
            first, *others = super().take(session, rows[-1:])
            return [replace(first, prompt=tuple(self._scores)), *others]
        self.finished = True
        return [Event(self.request, None, "", "", "length", prompt=tuple(self._scores))]
