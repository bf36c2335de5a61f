"""Runs work beside the scheduler, one item at a time, in its own thread: inspections of the model, and embeddings."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from refgpt.server.errors import busy, stalled
from refgpt.server.watch import Watch

log = logging.getLogger("refgpt.server")

T = TypeVar("T")

#: Most items that may wait.
MOST_WAITING = 16


class Unwanted(Exception):
    """Ends work whose result is not wanted any more: its client has left, or was told that a step does not return."""


class Aside:
    """A thread that runs the given work in order. It does not keep the process from ending.

    Parameters
    ----------
    most : float
        Seconds that a step of the work may take; 0 for any time. After them all waiters get an error, and new work is
        refused until the step has returned. The work then ends.
    """

    def __init__(self, most: float = 0.0) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future]] = SimpleQueue()
        self._waiting: set[asyncio.Future] = set()
        self._thread: threading.Thread | None = None
        self._waiter: asyncio.Future | None = None  # of the work that runs
        self._watch = Watch(most, self._stall, self._return)

    async def do(self, work: Callable[[], T]) -> T:
        """Run some work and wait for its result.

        If the waiter is cancelled, work that has not begun is skipped, and work that runs ends after its step.

        Raises
        ------
        ApiError
            429 if too many items wait already; 503 if a step does not return.
        """
        if self._watch.stalled:
            raise stalled()
        if len(self._waiting) >= MOST_WAITING:
            raise busy()
        loop = asyncio.get_running_loop()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="refgpt-aside", daemon=True)
            self._thread.start()
            self._watch.start(loop)
        future: asyncio.Future[T] = loop.create_future()
        self._waiting.add(future)
        try:
            self._work.put((work, loop, future))
            return await future
        finally:
            self._waiting.discard(future)

    def step(self) -> None:
        """A step of the work has ended, and the next begins. For work of several passes, which may take long.

        Raises
        ------
        Unwanted
            If nobody waits for the work any more.
        """
        if self._waiter is not None and self._waiter.done():
            raise Unwanted
        self._watch.begin()

    def _run(self) -> None:
        while True:
            self._watch.rest()
            work, loop, future = self._work.get()
            if future.done():  # its waiter has left, or was told that a step does not return
                continue
            self._waiter = future
            self._watch.begin()
            result: Any = None
            error: Exception | None = None
            try:
                result = work()
            except Exception as fault:
                error = fault
            except BaseException as fault:  # the thread goes on, since others wait for it
                error = RuntimeError(f"it ended with {type(fault).__name__}")
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop is closed
                return

    def _stall(self, seconds: float) -> None:
        log.error("an inspection or embedding has not returned for %.1f s; others are refused until it does", seconds)
        for future in self._waiting:
            _settle(future, None, stalled())

    def _return(self, seconds: float) -> None:
        log.warning("the inspection or embedding has returned, after about %.1f s; others are run again", seconds)


def _settle(future: asyncio.Future, result: Any, error: Exception | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
