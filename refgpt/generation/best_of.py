"""Several continuations of a prompt are written, and only the likeliest are returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from refgpt.generation.params import GenerationParams
from refgpt.generation.results import Event
from refgpt.generation.sequence import Continuation, Generates
from refgpt.runtime.engine import Session


class Ballot:
    """Collects the finished continuations of one request until all are finished.

    Parameters
    ----------
    params : GenerationParams
        As the user gave them.
    """

    def __init__(self, params: GenerationParams) -> None:
        self._params = params
        self._texts: list[list[Event]] = []

    def add(self, events: list[Event]) -> list[Event]:
        """Add a finished continuation. -> the events of the best ones, token by token, once all are finished"""
        self._texts.append(events)
        if len(self._texts) < self._params.n_drawn:
            return []
        scored = sorted(
            ((_mean_logprob(text), text) for text in self._texts), key=lambda pair: (-pair[0], pair[1][0].index)
        )
        found = []
        for index, (score, text) in enumerate(scored[: self._params.num_return_sequences]):
            for event in text:
                choice = event.choice
                if choice is not None and self._params.n_alternatives is None:
                    choice = replace(choice, logprob=None)
                last = event is text[-1]
                found.append(replace(event, choice=choice, held="", index=index, score=score if last else None))
        return found


class Candidate(Continuation):
    """A continuation that is returned only if it is among the best."""

    def __init__(
        self,
        request: int,
        prompt: Sequence[int],
        model: Generates,
        params: GenerationParams,
        index: int,
        ballot: Ballot,
    ) -> None:
        scored = params if params.n_alternatives is not None else replace(params, logprobs=0)
        super().__init__(request, prompt, model, scored, index)
        self._ballot = ballot
        self._events: list[Event] = []

    def take(self, session: Session, rows: np.ndarray) -> list[Event]:
        """Continue; return the events of the best continuations if this was the last one to finish."""
        self._events += super().take(session, rows)
        return self._ballot.add(self._events) if self.finished else []


def _mean_logprob(text: list[Event]) -> float:
    logprobs = [event.choice.logprob or 0.0 for event in text if event.choice is not None]
    return sum(logprobs) / len(logprobs)
