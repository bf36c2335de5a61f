"""A client's request, which the scheduler's thread runs, and its events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Protocol

from refgpt.generation.params import GenerationParams
from refgpt.generation.results import Event


class Runner(Protocol):
    """What runs jobs."""

    def cancel(self, job: Job) -> None:
        """See ``Job.cancel``."""
        ...

    def end(self, job: Job) -> None:
        """See ``Job.end``."""
        ...


@dataclass(eq=False)
class Written:
    """The state of one text: ``held`` is what has not been sent yet, since it may be the beginning of a stop string."""

    held: str = ""
    finished: bool = False


@dataclass(eq=False)
class Job:
    """One request of a client: some prompts with the same parameters. Its attributes belong to the event loop.

    Attributes
    ----------
    prompts : sequence of sequence of int
        As ``encode_prompt`` returns them.
    params : GenerationParams
    scored : bool
        Whether the first event of each prompt has the prompt's own log-probabilities.
    go_on : bool
        Whether new tokens follow. If not, the events have no token.
    mask : str or None
        The mask to use in place of the model's own.
    """

    runner: Runner
    prompts: Sequence[Sequence[int]]
    params: GenerationParams
    scored: bool = False
    go_on: bool = True
    mask: str | None = None
    n_open: int = 0
    began: float = field(default_factory=perf_counter)
    last: float | None = None
    error: Exception | None = None
    accepted: asyncio.Event = field(default_factory=asyncio.Event)
    new_events: deque[tuple[int, Event]] = field(default_factory=deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Yield lists of new events, each event with the number of its prompt, until all texts are finished.

        Raises
        ------
        ApiError
            If the request cannot be used (before the first event), or fails.
        """
        while self.n_open or self.new_events:
            await self.wake.wait()
            self.wake.clear()
            if self.new_events:
                some = list(self.new_events)
                self.new_events.clear()
                yield some
            if self.error is not None:
                break
        if self.error is not None:
            raise self.error

    async def until_accepted(self) -> None:
        """Wait until the scheduler has accepted the request. Raises the ApiError of a refused request."""
        await self.accepted.wait()
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        """Cancel the job; its slots are free within one step. A finished job stays as it is."""
        self.runner.cancel(self)

    def end(self) -> None:
        """End its unfinished texts now, with the finish reason "length"."""
        self.runner.end(self)
