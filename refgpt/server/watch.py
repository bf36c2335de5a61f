"""Notices that the model's thread does not come back from what it does, and that it has come back after all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

#: The most seconds between two looks at the thread.
INTERVAL = 0.25


class Watch:
    """Watches the steps of another thread from the event loop.

    Parameters
    ----------
    most : float
        Seconds that a step may take; 0 for any time.
    on_stall, on_return : callable
        Called in the event loop when a step has taken longer, and when such a step has ended. Both get the step's
        seconds so far.

    Attributes
    ----------
    stalled : bool
        Whether a step takes too long now.
    """

    def __init__(self, most: float, on_stall: Callable[[float], None], on_return: Callable[[float], None]) -> None:
        self.stalled = False
        self._most, self._on_stall, self._on_return = most, on_stall, on_return
        self._began: float | None = None  # written by the thread, and read by the event loop
        self._stalled_since = 0.0

    def begin(self) -> None:
        """A step begins. For the thread."""
        self._began = perf_counter()

    def rest(self) -> None:
        """The thread waits for work. For the thread."""
        self._began = None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch, until the loop is closed."""
        if self._most:
            self._look(loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        began, now = self._began, perf_counter()
        late = began is not None and now - began > self._most
        if late and not self.stalled:
            assert began is not None
            self.stalled, self._stalled_since = True, began
            self._on_stall(now - began)
        elif self.stalled and began != self._stalled_since:
            self.stalled = False
            self._on_return(now - self._stalled_since)
        loop.call_later(min(INTERVAL, self._most / 4), self._look, loop)
