"""A server whose steps a test can hold, and which a test can take off the net."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from refgpt import Model
from tests.helpers.servers import Served, serving
from tests.helpers.work import HANGS


class Pace:
    """How many steps the scheduler may still make."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._left: float = float("inf")

    def hold(self) -> None:
        """None, until more are allowed."""
        with self._changed:
            self._left = 0

    def allow(self, n: float) -> None:
        """So many more."""
        with self._changed:
            self._left += n
            self._changed.notify_all()

    def release(self) -> None:
        """As many as it likes."""
        self.allow(float("inf"))

    def step(self) -> None:
        """Wait until one is allowed."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._left > 0, HANGS)
            self._left -= 1


class PacedServer:
    """A running server with its ``pace``."""

    def __init__(self, served: Served) -> None:
        self.url, self.state, self.model = f"{served.url}/", served.state, served.state.model
        self.pace = Pace()
        self._running = served.running
        scheduler = self.state.core._scheduler
        step = scheduler.step

        def paced() -> Any:
            self.pace.step()
            return step()

        scheduler.step = paced  # type: ignore[method-assign]

    def cut(self) -> None:
        """Nobody can reach it from now on, and whoever is connected loses the connection."""

        async def cut() -> None:
            for listener in self._running.servers:
                listener.close()
            for connection in list(self._running.server_state.connections):
                connection.transport.abort()

        asyncio.run_coroutine_threadsafe(cut(), self._running._loop).result(HANGS)


@contextmanager
def paced_serving(model: Model, **settings: Any) -> Iterator[PacedServer]:
    """Serve a model while this lasts, one token a step."""
    with serving(model, speculate=0, **settings) as served:
        server = PacedServer(served)
        try:
            yield server
        finally:
            server.pace.release()
