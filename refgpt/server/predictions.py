"""Predictions: texts that are generated while no client waits, and kept until they are fetched."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from itertools import count
from typing import Any

from refgpt.server.errors import busy

#: The largest number of kept predictions, the largest total of characters in their prompts, and for how many seconds a
#: finished prediction is kept.
MOST_KEPT, MOST_CHARACTERS, KEPT_SECONDS = 100, 1 << 24, 600.0


@dataclass(eq=False)
class _Prediction:
    """One prediction: its task, and the timer that forgets it."""

    task: asyncio.Task[Any]
    n_characters: int
    timer: asyncio.TimerHandle | None = None


class Predictions:
    """Predictions by their numbers. All methods belong to the event loop's thread."""

    def __init__(self) -> None:
        self._kept: dict[int, _Prediction] = {}
        self._numbers = count(1)

    def __len__(self) -> int:
        return len(self._kept)

    def make_room(self, n_characters: int) -> None:
        """Forget the oldest finished predictions until there is room for one with a prompt of so many characters.

        Raises
        ------
        ApiError
            429 if there is no room because the other predictions are unfinished.
        """
        written = [number for number, one in self._kept.items() if one.task.done()]
        while self._kept and not self._has_room(n_characters):
            if not written:
                raise busy()
            self.forget(written.pop(0))

    def _has_room(self, n_characters: int) -> bool:
        total = sum(one.n_characters for one in self._kept.values())
        return len(self._kept) < MOST_KEPT and total + n_characters <= MOST_CHARACTERS

    def add(self, work: Coroutine[Any, Any, Any], n_characters: int) -> int:
        """Start some work, and keep what it returns or raises. Returns the prediction's number."""
        number, task = next(self._numbers), asyncio.ensure_future(work)
        self._kept[number] = _Prediction(task, n_characters)
        task.add_done_callback(lambda task: self._written(number, task))
        return number

    def _written(self, number: int, task: asyncio.Task[Any]) -> None:
        if not task.cancelled():
            task.exception()  # asyncio complains about errors that nobody has asked for
        if kept := self._kept.get(number):
            kept.timer = task.get_loop().call_later(KEPT_SECONDS, self.forget, number)

    def get(self, number: int) -> asyncio.Task[Any] | None:
        """The task of a prediction, finished or not; None if no prediction has this number."""
        kept = self._kept.get(number)
        return None if kept is None else kept.task

    def forget(self, number: int) -> None:
        """Forget a prediction."""
        kept = self._kept.pop(number, None)
        if kept is not None and kept.timer is not None:
            kept.timer.cancel()
