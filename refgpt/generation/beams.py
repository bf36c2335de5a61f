"""Beam search: several continuations of a prompt are written at a time, and the likeliest are kept.

The steps are those of transformers' ``GenerationMixin._beam_search``, in float64. Of equal candidates the one of the
better beam is preferred, then the one with the lower id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refgpt._common.float_state import default_float_state
from refgpt.generation.filters import top_k_kept
from refgpt.generation.params import Criterion, GenerationParams
from refgpt.generation.results import Event
from refgpt.generation.sampling import Choice, nothing_left
from refgpt.generation.sampling_params import functions_of
from refgpt.generation.sequence import Generates, Task, ends_of, matcher_of, prefix_of, sampler_of, transcript_of
from refgpt.runtime.engine import Session


@dataclass(frozen=True)
class Beam:
    """One of the texts: its new ids, and their log-likelihood or, once it has ended, its score."""

    ids: tuple[int, ...]
    score: float


class Beams(Task):
    """The beams of one request, with one slot each. Its events come when all beams are done."""

    def __init__(self, request: int, prompt: Sequence[int], model: Generates, params: GenerationParams) -> None:
        self._most_new = min(params.max_new_tokens, model.engine.config.n_ctx - len(prompt))
        super().__init__(request, prompt, len(prompt), prefix_of(model, prompt), len(prompt) + self._most_new)
        self.n_slots = params.num_beams
        self._model, self._params = model, params
        self._matcher = matcher_of(model, params, prompt)
        self._sampler = sampler_of(model, params, prompt, matcher=self._matcher)
        self._ends = ends_of(model, params)
        self._criteria: tuple[Criterion, ...] = functions_of(params.stopping_criteria or ())
        self._going: list[tuple[Beam, int]] = []  # best first, each with its slot
        self._ended: list[Beam] = []  # best first

    def next_ids(self) -> list[tuple[int, list[int]]]:
        """The last token of each beam."""
        return [(slot, [beam.ids[-1]]) for beam, slot in self._going]

    def take(self, session: Session, rows: np.ndarray) -> list[Event]:
        """Choose the beams to continue, and their tokens."""
        going, p = self._going or [(Beam((), 0.0), self.slots[0])], self._params
        candidates = self._candidates([beam for beam, _ in going], rows)
        n_new = len(going[0][0].ids) + 1
        if not candidates and not self._ended:
            raise nothing_left(self.n_prompt + n_new - 1)
        hits = [self._hits(beam.ids, rows[parent]) for parent, beam in candidates]
        goes_on = [found for found, hit in zip(candidates, hits, strict=True) if not hit][: p.num_beams]
        for (_, beam), hit in zip(candidates[: p.num_beams], hits, strict=False):
            if hit:
                self._ended.append(Beam(beam.ids, beam.score / n_new**p.length_penalty))
        self._ended = sorted(self._ended, key=lambda beam: -beam.score)[: p.num_beams]
        full = len(self._ended) == p.num_beams
        longest = self._most_new if p.early_stopping == "never" and p.length_penalty > 0 else n_new
        if (
            not goes_on
            or (full and p.early_stopping is True)
            or (full and goes_on[0][1].score / longest**p.length_penalty <= self._ended[-1].score)
        ):
            self.finished = True
            return self._events()
        self._go_on(session, [slot for _, slot in going], goes_on)
        return []

    @default_float_state()
    def _candidates(self, beams: list[Beam], rows: np.ndarray) -> list[tuple[int, Beam]]:
        """The best candidates, best first, each with the number of the beam that it continues."""
        n = max(2, 1 + len(self._ends)) * self._params.num_beams
        found: list[tuple[float, int, int]] = []
        for parent, (beam, row) in enumerate(zip(beams, rows, strict=True)):
            scores = self._sampler.log_scores(row, [*self.ids, *beam.ids]) + beam.score
            likely = np.flatnonzero(top_k_kept(scores, n) & (scores > -np.inf))
            found += [(-float(scores[token]), parent, int(token)) for token in likely]
        return [(parent, Beam((*beams[parent].ids, token), -lost)) for lost, parent, token in sorted(found)[:n]]

    def _hits(self, ids: tuple[int, ...], row: np.ndarray) -> bool:
        """Whether a text ends with its last token."""
        if ids[-1] in self._ends or len(ids) == self._most_new:
            return True
        if self._matcher is not None and self._matcher.over(ids):
            return True
        return any([criterion([*self.ids, *ids], row) for criterion in self._criteria])

    def _go_on(self, session: Session, slots: list[int], chosen: list[tuple[int, Beam]]) -> None:
        """Give each chosen text a slot that holds all of it but the last token."""
        kept = {slots[parent] for parent, _ in chosen}
        free = [slot for slot in self.slots if slot not in kept]
        for slot in free:
            session.release(slot)
        going: list[tuple[Beam, int]] = []
        for parent, beam in chosen:
            slot = slots[parent]
            if slot in kept:
                kept.remove(slot)
            else:
                slot = session.fork(slot, free)
                free.remove(slot)
            going.append((beam, slot))
        self._going = going

    def _events(self) -> list[Event]:
        """The texts that are asked for, token by token."""
        events = []
        for index, beam in enumerate(self._ended[: self._params.num_return_sequences]):
            transcript = transcript_of(self._model, self._params, self.ids)
            ends = beam.ids[-1] in self._ends or (self._matcher is not None and self._matcher.complete(beam.ids))
            for i, token in enumerate(beam.ids, 1):
                last = i == len(beam.ids)
                text = "" if token in self._ends else transcript.push(token)
                text += transcript.finish() if last else ""
                reason = None if not last else "length" if i == self._most_new and not ends else "stop"
                score = beam.score if last else None
                events.append(Event(self.request, Choice(token), text, "", reason, index=index, score=score))
        return events
