"""What runs on each host of a pool: see ``refgpt.cluster.hosts``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
from threading import Condition, Thread
from typing import Any, Protocol

#: A number, and what is to be done.
Piece = tuple[int, Any]

#: Seconds for which a worker waits for more results if it has some, and for the first one if it has none.
GATHERING, LONGEST = 0.1, 2.0


class Source:
    """The pieces that a worker has been given and has not begun. One thread adds pieces, another takes them."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Piece] = SimpleQueue()
        self._n_begun = 0

    def add(self, pieces: Iterable[Piece]) -> None:
        """Add pieces."""
        for piece in pieces:
            self._queue.put(piece)

    def take(self) -> Piece | None:
        """The next piece; None if there is none now, but a piece is being worked on. Otherwise it waits for one."""
        try:
            piece = self._queue.get(block=not self._n_begun)
        except Empty:
            return None
        self._n_begun += 1
        return piece

    def finish(self) -> None:
        """Note that a piece that was taken has a result."""
        self._n_begun -= 1


class Work(Protocol):
    """A job on a host, with its model loaded.

    Attributes
    ----------
    identity : dict
        What its results depend on, as JSON. All workers that are used have the same.
    n_tokens : int
        How many tokens it has generated so far.
    """

    identity: dict[str, Any]
    n_tokens: int

    def results(self, source: Source) -> Iterator[tuple[int, Any]]:
        """The number and the result of each piece, for as long as pieces come."""


class Job(Protocol):
    """What all hosts work on. It is sent to each host and started there."""

    def start(self, threads: int) -> Work:
        """Load the model."""


class HostActor:
    """What runs in a worker's process: Ray makes an actor of it. A thread of its own does the work."""

    def __init__(self, job: Job, threads: int) -> None:
        self._job, self._threads = job, threads
        self._source, self._changed = Source(), Condition()
        self._results: list[tuple[int, Any]] = []
        self._fault: BaseException | None = None
        self._n_open = self._n_told = 0

    def hello(self) -> dict[str, Any]:
        """Load the model, and begin. -> its identity"""
        self._work = self._job.start(self._threads)
        Thread(target=self._run, daemon=True).start()
        return self._work.identity

    def exchange(self, pieces: list[Piece]) -> tuple[list[tuple[int, Any]], int]:
        """Take more pieces, and wait for results. -> results, and how many tokens were generated since the last call"""
        self._source.add(pieces)
        self._n_open += len(pieces)
        with self._changed:
            self._changed.wait_for(lambda: self._results or self._fault, LONGEST)
            # More results cost nothing, unless so many pieces are finished that the worker might run out of them.
            self._changed.wait_for(lambda: self._fault or 2 * len(self._results) >= self._n_open, GATHERING)
            results, self._results = self._results, []
            fault = self._fault
        if fault is not None and not results:
            raise fault
        self._n_open -= len(results)
        n_new, self._n_told = self._work.n_tokens - self._n_told, self._work.n_tokens
        return results, n_new

    def _run(self) -> None:
        try:
            for result in self._work.results(self._source):
                self._source.finish()
                with self._changed:
                    self._results.append(result)
                    self._changed.notify()
        except BaseException as fault:
            with self._changed:
                self._fault = fault
                self._changed.notify()
