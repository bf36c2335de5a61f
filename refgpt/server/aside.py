"""Runs work beside the scheduler, one item at a time, in its own thread: inspections of the model, and embeddings."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from refgpt.server.errors import busy

T = TypeVar("T")

#: Most items that may wait.
MOST_WAITING = 16


class Aside:
    """A thread that runs the given work in order. It does not keep the process from ending."""

    def __init__(self) -> None:
        self._work: SimpleQueue[tuple[Callable[[], Any], asyncio.AbstractEventLoop, asyncio.Future]] = SimpleQueue()
        self._n_waiting = 0
        self._thread: threading.Thread | None = None

    async def do(self, work: Callable[[], T]) -> T:
        """Run some work and wait for its result. Work is skipped if its waiter is cancelled before it begins.

        Raises
        ------
        ApiError
            429 if too many items wait already.
        """
        if self._n_waiting >= MOST_WAITING:
            raise busy()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="refgpt-aside", daemon=True)
            self._thread.start()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._n_waiting += 1
        try:
            self._work.put((work, loop, future))
            return await future
        finally:
            self._n_waiting -= 1

    def _run(self) -> None:
        while True:
            work, loop, future = self._work.get()
            if future.cancelled():
                continue
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


def _settle(future: asyncio.Future, result: Any, error: Exception | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
