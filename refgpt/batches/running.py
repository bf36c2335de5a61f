"""Continuous batching: new requests start as soon as slots become free."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from refgpt._common.errors import RefgptError
from refgpt.batches.requests import Request
from refgpt.generation.prefix_cache import PrefixCache
from refgpt.generation.prompts import encode_prompt
from refgpt.generation.results import Event, Generation, gathered
from refgpt.generation.scheduler import MOST_CACHE, MOST_TOGETHER, Scheduler
from refgpt.generation.sequence import Generates

T = TypeVar("T")

#: Memory for the keys and values of earlier prompts, which prompts with the same beginning reuse.
MOST_KEPT = 512 << 20


@dataclass(frozen=True)
class Record:
    """The record of a request.

    Attributes
    ----------
    index : int
        Which request of the file, from 0.
    content : dict
        For JSON.
    is_error : bool
        Whether the record is an error.
    """

    index: int
    content: dict[str, Any]
    is_error: bool


@dataclass(eq=False)
class _Job:
    """A request whose texts are being written."""

    index: int
    request: Request
    n_prompts: list[int] = field(default_factory=list)
    events: list[dict[int, list[Event]]] = field(default_factory=list)
    n_left: int = 0

    def results(self) -> list[list[Generation]]:
        """The continuations of each prompt, when all are whole."""
        return [
            [gathered(own[i], n_prompt) for i in sorted(own)]
            for own, n_prompt in zip(self.events, self.n_prompts, strict=True)
        ]


def run_requests(
    model: Generates,
    requests: Iterable[tuple[int, Request] | None],
    *,
    max_slots: int = MOST_TOGETHER,
    max_cache_bytes: int = MOST_CACHE,
    max_kept_bytes: int = MOST_KEPT,
    fault: str = "",
    on_tokens: Callable[[int], object] = lambda n_new: None,
) -> Iterator[Record]:
    """Answer requests, many at a time.

    Parameters
    ----------
    model : object with engine, tokenizer and mask
    requests : iterable of (index, Request)
        Read only as slots become free. None instead of a request means that there is none now, but that there may be
        one after the next pass.
    max_slots, max_cache_bytes : int
        See ``Scheduler``.
    max_kept_bytes : int
        Memory of the ``PrefixCache``; 0 for none.
    fault : str
        Why the model's own tokenizer cannot be used, if it cannot.
    on_tokens : callable
        Called with the number of new tokens of each pass.

    Yields
    ------
    Record
        In order of completion.
    """
    cache = PrefixCache(max_kept_bytes) if max_kept_bytes else None
    scheduler = Scheduler(model, max_slots, max_cache_bytes, prefix_cache=cache)
    jobs: dict[int, tuple[_Job, int]] = {}  # for each request of the scheduler: its job, and the index of its prompt
    source = iter(requests)
    more = True
    while more or scheduler.busy:
        while more and scheduler.n_waiting < max_slots:
            try:
                following = next(source)
            except StopIteration:
                more = False
                break
            if following is None:
                break
            record = _begin(following, model, scheduler, jobs, fault)
            if record is not None:
                yield record
        events = scheduler.step()
        on_tokens(sum(event.choice is not None for event in events))
        for event in events:
            if event.seq in jobs:  # a cancelled request may have events in the same pass
                record = _take(event, model, scheduler, jobs)
                if record is not None:
                    yield record


def _begin(
    following: tuple[int, Request],
    model: Generates,
    scheduler: Scheduler,
    jobs: dict[int, tuple[_Job, int]],
    fault: str,
) -> Record | None:
    """Queue a request, or answer it at once if it has no prompts."""
    index, request = following
    job, added = _Job(index, request), []
    try:
        if request.error is not None:
            raise request.error
        if not request.prompts:
            return Record(index, request.record([], model), is_error=False)
        for prompt in request.prompts:
            ids = encode_prompt(prompt, model.engine.config, model.tokenizer, request.params, fault)
            added.append(scheduler.add_ids(ids, request.params))
            job.n_prompts.append(len(ids))
            job.events.append({})
    except RefgptError as error:
        for number in added:
            scheduler.cancel(number)
        return Record(index, request.refusal(error), is_error=True)
    job.n_left = len(added) * request.params.num_return_sequences
    jobs.update({number: (job, place) for place, number in enumerate(added)})
    return None


def _take(event: Event, model: Generates, scheduler: Scheduler, jobs: dict[int, tuple[_Job, int]]) -> Record | None:
    """Keep an event. -> the record, if it was the last one of a request"""
    job, place = jobs[event.seq]
    job.events[place].setdefault(event.index, []).append(event)
    job.n_left -= event.finish_reason is not None
    if event.error is None and job.n_left:
        return None
    for number in [number for number, (owner, _) in jobs.items() if owner is job]:
        scheduler.cancel(number)
        del jobs[number]
    if event.error is None:
        return Record(job.index, job.request.record(job.results(), model), is_error=False)
    if not isinstance(event.error, RefgptError):
        raise event.error
    return Record(job.index, job.request.refusal(event.error), is_error=True)


def by_number(results: Iterable[tuple[int, T]], first: int = 0) -> Iterator[T]:
    """Yield numbered results in the order of their numbers, each as soon as all earlier ones are there."""
    waiting: dict[int, T] = {}
    for number, result in results:
        waiting[number] = result
        while first in waiting:
            yield waiting.pop(first)
            first += 1


def in_order(records: Iterable[Record]) -> Iterator[Record]:
    """Yield records in the order of the file, each as soon as all earlier ones are complete."""
    return by_number((record.index, record) for record in records)
