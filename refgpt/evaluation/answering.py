"""Many requests answered together, and their answers in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from refgpt._common.errors import GenerationError
from refgpt.evaluation.requests import Likelihoods, Text
from refgpt.generation.prefix_cache import BLOCK, PrefixCache
from refgpt.generation.results import Event, Generation, gathered
from refgpt.generation.scheduler import MOST_TOGETHER, Scheduler, enough_bytes
from refgpt.generation.scoring import Given
from refgpt.generation.sequence import Generates, prefix_of

#: Requests that wait for a slot at most: enough that no slot is ever empty.
AHEAD = 2 * MOST_TOGETHER
#: Bytes for keys and values of what prompts begin with, where many begin alike.
MOST_KNOWN = 1 << 29


@dataclass(frozen=True)
class Scored:
    """The answer to ``Likelihoods``.

    Attributes
    ----------
    logprobs : list of ndarray [t], float64
        For each continuation the log-probability of each token.
    greedy : list of bool
        Whether each continuation is what greedy decoding would write.
    """

    logprobs: list[np.ndarray]
    greedy: list[bool]

    @property
    def sums(self) -> list[float]:
        """The log-likelihood of each continuation."""
        return [float(one.sum()) for one in self.logprobs]


Request = Likelihoods | Text
Answer = Scored | Generation


@dataclass
class _Asked:
    """A request on its way."""

    request: Request
    number: int = -1
    tasks: list[Given] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def read(self) -> bool:
        """Whether its prompt is read, so that others may have it from the cache."""
        return self.tasks[0].shared.row is not None if self.tasks else bool(self.events)

    @property
    def finished(self) -> bool:
        if self.tasks:
            return all(task.finished for task in self.tasks)
        return bool(self.events) and self.events[-1].finish_reason is not None

    def answer(self) -> Answer:
        if self.tasks:
            scores = [np.array(task.scores, np.float64) for task in self.tasks]
            return Scored(scores, [task.greedy for task in self.tasks])
        return gathered(self.events, len(self.request.prompt))


class _Order:
    """Which requests wait until another has read what they begin with, so that it is not read twice."""

    def __init__(self) -> None:
        self._known: set[int] = set()  # a hash of each block with all before it
        self._reading: list[tuple[_Asked, list[int]]] = []

    def has_to_wait(self, asked: _Asked) -> bool:
        """Whether a prompt begins with blocks that another is about to read. If not, it is the one that reads them."""
        for one, blocks in self._reading:
            if one.read:
                self._known.update(blocks)
        self._reading = [(one, blocks) for one, blocks in self._reading if not one.read]
        own, before = [], 0
        for start in range(0, len(asked.request.prompt) - BLOCK, BLOCK):
            before = hash((before, *asked.request.prompt[start : start + BLOCK]))
            own.append(before)
        new = set(own) - self._known
        if any(not new.isdisjoint(blocks) for _, blocks in self._reading):
            return True
        # Beams give no sign before their end, so that nobody waits for them.
        if isinstance(asked.request, Likelihoods) or asked.request.params.num_beams == 1:
            self._reading.append((asked, own))
        return False


def answers(model: Generates, requests: Sequence[Request]) -> Iterator[Answer]:
    """Answer requests, as many of them together as there are slots and memory for.

    Results are bitwise independent of which requests are made together. What many prompts have in common, as
    examples before each question, is computed once.

    Parameters
    ----------
    model : object with engine, tokenizer and mask
    requests : sequence of Likelihoods or Text
        Of a ``Text`` the best continuation alone is returned.

    Yields
    ------
    Scored or Generation
        One for each request, in their order, as soon as it and those before it are known.

    Raises
    ------
    GenerationError
        If the model computes logits that are NaN or infinite.
    """
    if not requests:
        return
    config = model.engine.config
    capacity = max(min(config.n_ctx, _n_positions(request)) for request in requests)
    n_beams = max((one.params.num_beams for one in requests if isinstance(one, Text)), default=1)
    shared = model.mask != "prefix" and prefixes_are_shared([one.prompt for one in requests])
    scheduler = Scheduler(
        model,
        max(MOST_TOGETHER, n_beams),
        enough_bytes([model.engine], n_beams * capacity),
        capacity=capacity,
        prefix_cache=PrefixCache(MOST_KNOWN) if shared else None,
    )
    left, waiting, by_number = (_Asked(request) for request in requests), deque[_Asked](), dict[int, _Asked]()
    following, order = next(left, None), _Order()
    while waiting or following is not None:
        while following is not None and scheduler.n_waiting < AHEAD and not (shared and order.has_to_wait(following)):
            following.number = _add(scheduler, model, following)
            by_number[following.number] = following
            waiting.append(following)
            following = next(left, None)
        for event in scheduler.step():
            if event.error is not None:
                raise event.error
            if event.index == 0:
                by_number[event.seq].events.append(event)
        while waiting and waiting[0].finished:
            asked = waiting.popleft()
            del by_number[asked.number]
            yield asked.answer()


def _add(scheduler: Scheduler, model: Generates, asked: _Asked) -> int:
    """Put a request in line. -> its number"""
    request = asked.request
    if isinstance(request, Text):
        return scheduler.add_ids(request.prompt, request.params)
    if not all(request.continuations):
        raise GenerationError("an empty continuation has no likelihood", where="continuations")
    n_positions, prefix_len = _n_positions(request), prefix_of(model, request.prompt)
    asked.tasks = [Given(request.prompt, prefix_len, ids, n_positions) for ids in request.continuations]
    return scheduler.add_tasks(asked.tasks)


def _n_positions(request: Request) -> int:
    """How many positions a request needs in a slot at most."""
    if isinstance(request, Text):
        return len(request.prompt) + request.params.max_new_tokens
    return len(request.prompt) + max(map(len, request.continuations)) - 1  # the last is predicted, and predicts nothing


def prefixes_are_shared(prompts: Sequence[list[int]]) -> bool:
    """Whether a tenth or more of all prompts' tokens lie in blocks that another prompt begins with as well."""
    ordered = sorted(prompts)
    n_shared = 0
    for one, two in pairwise(ordered):
        n = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
        n_shared += n // BLOCK * BLOCK
    return n_shared * 10 >= sum(map(len, prompts)) > 0
