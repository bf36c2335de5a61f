"""Work for many hosts: a worker on each host of a Ray cluster, which answers pieces of work as they come.

A worker keeps its model and its slots while pieces come and go, so its batches do not run empty. If a worker or its
host is lost, the pieces that it had not answered go to others; the result of each piece is passed on once. A host that
joins later gets a worker too.

This is Ray Core. Ray Data hands a block of rows to a worker and takes a block of results back: the worker's slots would
run empty at the end of each block, a lost host would lose whole blocks, and all workers would have to ask for equally
many processors.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Condition, Thread
from typing import Any, Protocol, TypeVar

from refgpt._common.arguments import whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.cluster.connect import Patience, connected_ray

logger = logging.getLogger(__name__)

T = TypeVar("T")
#: A number, and what is to be done.
Piece = tuple[int, Any]

#: Seconds between two looks for new hosts.
LOOK = 3.0
#: Seconds for which a worker waits for more results if it has some, and for the first one if it has none.
GATHERING, LONGEST = 0.1, 2.0
#: A worker that dies this many times without a result in between is not started again.
MOST_LOSSES = 3


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
        What its results depend on, as JSON. A host that has another identity than the first is left out.
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


@dataclass(eq=False)
class _Worker:
    """A worker as this process sees it.

    Attributes
    ----------
    place : tuple
        Ray's identifier of its host, and which of the host's workers it is.
    address : str
        Of its host.
    call : object or None
        Its unanswered call.
    ready : bool
        Whether its model is loaded.
    open : dict of int to object
        The pieces that it has been given, by number.
    """

    place: tuple[str, int]
    address: str
    actor: Any
    call: Any
    ready: bool = False
    open: dict[int, Any] = field(default_factory=dict)


class HostPool:
    """The workers of a job: one on each host by default, with all its processors.

    Use it as a context manager, in a process that is connected to a cluster; it ends the workers.

    Parameters
    ----------
    job : Job
    threads : int, optional
        Of each worker; by default its share of the host's processors.
    per_host : int
        Workers on each host, which share its processors.
    patience : Patience, optional
        Its ``start`` and ``lost``.

    Raises
    ------
    RefgptError
        If Ray is missing or not connected.
    """

    def __init__(
        self, job: Job, threads: int | None = None, per_host: int = 1, patience: Patience | None = None
    ) -> None:
        self._ray = connected_ray()
        self._per_host = whole_number("workers_per_host", per_host, 1, None, RefgptError)
        self._threads = None if threads is None else whole_number("threads", threads, 1, None, RefgptError)
        self._patience = patience or Patience()
        self._job = self._ray.put(job)
        self._class = self._ray.remote(HostActor)
        self._workers: dict[tuple[str, int], _Worker] = {}
        self._losses: dict[tuple[str, int], int] = {}
        self._reasons: dict[tuple[str, int], RefgptError] = {}  # why workers are left out
        self._returned: deque[Piece] = deque()  # pieces of lost workers
        self._next_look = 0.0
        self._identity: dict[str, Any] | None = None
        self.n_tokens = 0

    def __enter__(self) -> HostPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            self._ray.kill(worker.actor)
        self._workers.clear()

    def identity(self) -> dict[str, Any]:
        """What the results of all workers depend on. Waits until the first worker is ready.

        Raises
        ------
        RefgptError
            If no worker starts.
        """
        end = time.monotonic() + self._patience.start
        while self._identity is None:
            self._look()
            for _ in self._answers(0.5):
                pass
            if time.monotonic() > end:
                fix = "look at `ray status`: are there enough free CPUs?"
                raise RefgptError("no worker has started", got=f"{self._patience.start:g} seconds", fix=fix)
        return self._identity

    def run(self, pieces: Iterable[Piece], n_pieces: int, most: int) -> Iterator[tuple[int, Any]]:
        """Let the workers do pieces of work.

        Parameters
        ----------
        pieces : iterable of (int, object)
            Each with a number of its own. Read as workers need them.
        n_pieces : int
            How many there are.
        most : int
            Pieces that a worker has at a time; fewer towards the end, so that all end together.

        Yields
        ------
        (int, object)
            Number and result of each piece, once, in order of completion.

        Raises
        ------
        RefgptError
            What a worker raised, or if no worker is left.
        """
        source, n_unread = iter(pieces), n_pieces
        end = time.monotonic() + self._patience.lost
        while n_unread or self._returned or any(worker.open for worker in self._workers.values()):
            self._look()
            for worker in self._workers.values():
                if not worker.ready or worker.call is not None:
                    continue
                given: list[Piece] = []
                for _ in range(self._share(worker, n_unread, most)):
                    if self._returned:
                        given.append(self._returned.popleft())
                    else:
                        given.append(next(source))
                        n_unread -= 1
                worker.open.update(given)
                if worker.open:
                    worker.call = worker.actor.exchange.remote(given)
            for worker, results in self._answers(0.5):
                end = time.monotonic() + self._patience.lost
                for number, result in results:
                    del worker.open[number]
                    yield number, result
            if time.monotonic() > end:
                raise RefgptError("no worker answers", got=f"{self._patience.lost:g} seconds", fix="see `ray status`")

    def _share(self, worker: _Worker, n_unread: int, most: int) -> int:
        """How many more pieces a worker is given now."""
        n_left, n_open = n_unread + len(self._returned), len(worker.open)
        if not n_left or 2 * n_open > most:
            return 0
        return min(most - n_open, -(-n_left // len(self._workers)))

    def _look(self) -> None:
        """Start workers on hosts that have none."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + LOOK
        for node in self._ray.nodes():
            n_cpus = int(node["Resources"].get("CPU", 0))
            for i in range(min(self._per_host, n_cpus) if node["Alive"] else 0):
                place = node["NodeID"], i
                if place not in self._workers and place not in self._reasons:
                    self._start(place, node["NodeManagerAddress"], n_cpus // min(self._per_host, n_cpus))
        if self._reasons and not self._workers:
            raise next(iter(self._reasons.values()))

    def _start(self, place: tuple[str, int], address: str, n_cpus: int) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        strategy = NodeAffinitySchedulingStrategy(place[0], soft=False)
        options = {"num_cpus": n_cpus, "max_restarts": 0, "scheduling_strategy": strategy}
        actor = self._class.options(**options).remote(self._job, self._threads or n_cpus)
        self._workers[place] = _Worker(place, address, actor, actor.hello.remote())

    def _answers(self, seconds: float) -> Iterator[tuple[_Worker, list[tuple[int, Any]]]]:
        """Wait for answered calls. -> workers and their results"""
        calls = {worker.call: worker for worker in self._workers.values() if worker.call is not None}
        if not calls:
            time.sleep(seconds)
            return
        self._ray.wait(list(calls), num_returns=1, timeout=seconds)
        done, _ = self._ray.wait(list(calls), num_returns=len(calls), timeout=0)
        for call in done:
            worker = calls[call]
            worker.call = None
            try:
                answer = self._ray.get(call)
            except self._ray.exceptions.RayTaskError as fault:  # its own code failed
                self._fail(worker, fault)
            except self._ray.exceptions.RayError as fault:
                self._lose(worker, fault)
            else:
                if worker.ready:
                    results, n_new = answer
                    self.n_tokens += n_new
                    self._losses.pop(worker.place, None)
                    yield worker, results
                else:
                    self._welcome(worker, answer)

    def _welcome(self, worker: _Worker, identity: dict[str, Any]) -> None:
        """Use a worker that has loaded its model, if the model is the same as the other workers'."""
        if self._identity is None:
            self._identity = identity
        if identity == self._identity:
            worker.ready = True
            logger.info("%s: a worker has started", worker.address)
            return
        names = [name for name in identity if identity[name] != self._identity.get(name)]
        what = "has another model, adapter, tokenizer or version of refgpt than the first host"
        self._leave_out(worker, RefgptError(what, where=worker.address, got=f"another {', '.join(names)}"))

    def _fail(self, worker: _Worker, fault: Any) -> None:
        """Deal with an error of a worker's own code. If its model is loaded, others would meet the same error."""
        if not isinstance(fault.cause, RefgptError):
            raise fault
        if worker.ready:
            raise fault.cause.within(worker.address)
        self._leave_out(worker, fault.cause.within(worker.address))

    def _lose(self, worker: _Worker, fault: Exception) -> None:
        """Give the pieces of a worker that has died to others, and start it again if its host is there."""
        lines = str(fault).strip().splitlines() or [""]
        logger.warning("%s: a worker is gone (%s)", worker.address, type(fault).__name__)
        self._losses[worker.place] = self._losses.get(worker.place, 0) + 1
        if self._losses[worker.place] >= MOST_LOSSES:
            reason = RefgptError("workers die here", where=worker.address, got=shown(lines[-1]))
            self._leave_out(worker, reason)
        else:
            self._forget(worker)

    def _leave_out(self, worker: _Worker, reason: RefgptError) -> None:
        logger.warning("%s: this host is left out", reason)
        self._reasons[worker.place] = reason
        self._ray.kill(worker.actor)
        self._forget(worker)

    def _forget(self, worker: _Worker) -> None:
        del self._workers[worker.place]
        self._returned.extend(worker.open.items())
        self._next_look = 0.0


def in_order(results: Iterable[tuple[int, T]], first: int = 0) -> Iterator[T]:
    """Yield numbered results in the order of their numbers, each as soon as all earlier ones are there."""
    waiting: dict[int, T] = {}
    for number, result in results:
        waiting[number] = result
        while first in waiting:
            yield waiting.pop(first)
            first += 1
