"""Work for many hosts: a worker on each host of a Ray cluster, which answers pieces of work as they come.

A worker keeps its model and its slots while pieces come and go, so its batches do not run empty. If a worker or its
host is lost, the pieces that it had not answered go to others; the result of each piece is passed on once. A host that
joins later gets a worker too.

This is Ray Core. Ray Data hands a block of rows to a worker and takes a block of results back: the worker's slots would
run empty at the end of each block, a lost host would lose whole blocks, and all workers would have to ask for equally
many processors.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from refgpt._common.arguments import whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.wording import listed, shown
from refgpt.cluster.connect import Patience, connected_ray
from refgpt.cluster.host_worker import HostActor, Job, Piece

logger = logging.getLogger(__name__)


#: Seconds between two looks for new hosts.
LOOK = 3.0
#: Seconds that hosts which are there at the start are given when the first has loaded, or as long again as it took.
STRAGGLING = 10.0
#: A worker that dies this many times without a result in between is not started again.
MOST_LOSSES = 3


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
    identity : dict or None
        That of its model, when it is loaded.
    ready : bool
        Whether it may work.
    open : dict of int to object
        The pieces that it has been given, by number.
    """

    place: tuple[str, int]
    address: str
    actor: Any
    call: Any
    identity: dict[str, Any] | None = None
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
        self._wanted: Mapping[str, Any] = {}
        self._than = self._fix = ""
        self.n_tokens = 0

    def __enter__(self) -> HostPool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            self._ray.kill(worker.actor)
        self._workers.clear()

    def expect(self, wanted: Mapping[str, Any], than: str, fix: str = "") -> None:
        """Leave out hosts whose models are not as wanted. To be called before the work begins.

        Parameters
        ----------
        wanted : mapping
            Entries of ``Work.identity``; None also where there is none.
        than : str
            What they are from, for warnings and errors: "has another tokenizer than ...".
        fix : str
            What the reader can do if all hosts are left out.
        """
        self._wanted, self._than, self._fix = json.loads(json.dumps(dict(wanted))), than, fix

    def identity(self) -> dict[str, Any]:
        """What the results of all workers depend on. Waits for the hosts that are there, but not long for slow ones.

        Raises
        ------
        RefgptError
            If no worker starts, or hosts have different models and nothing says which is wanted.
        """
        begin = time.monotonic()
        until = None
        while self._identity is None:
            self._look()
            for _ in self._answers(0.5):
                pass
            now = time.monotonic()
            if until is None and any(worker.identity is not None for worker in self._workers.values()):
                until = now + max(STRAGGLING, now - begin)
            self._decide(until is not None and now > until)
            if until is None and now > begin + self._patience.start:
                raise self._given_up("no worker has started", self._patience.start, "are there enough free CPUs?")
        return self._identity

    def _decide(self, now: bool) -> None:
        """Choose the model, when all workers have loaded theirs, or now."""
        loaded = [worker for worker in self._workers.values() if worker.identity is not None]
        for other in loaded[1:]:
            if names := _differing(other.identity, loaded[0].identity):
                raise RefgptError(
                    f"the hosts have not the same {listed(names)}",
                    where=f"{loaded[0].address} and {other.address}",
                    fix="give all hosts the same model, adapters, tokenizer and version of refgpt",
                )
        if loaded and (now or len(loaded) == len(self._workers) or set(loaded[0].identity or ()) <= set(self._wanted)):
            self._identity = loaded[0].identity
            for worker in loaded:
                self._use(worker)

    def _given_up(self, what: str, seconds: float, question: str) -> RefgptError:
        """The error of a wait that is over, with why hosts were left out."""
        reasons = "".join(f"{reason}; " for reason in self._reasons.values())
        return RefgptError(what, got=f"{seconds:g} seconds", fix=f"{reasons}look at `ray status`: {question}")

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
        if n_pieces:
            self.identity()
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
                raise self._given_up("no worker answers", self._patience.lost, "are there hosts?")

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
        is_lost = bool(self._losses.keys() - self._reasons.keys())  # a host, which may come back
        if self._reasons and not self._workers and not is_lost:
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
        """Note or use a worker that has loaded its model, or leave it out if another model is wanted."""
        identity = json.loads(json.dumps(identity))
        than = self._than
        names = [name for name, value in self._wanted.items() if identity.get(name) != value]
        if not names and self._identity is not None:
            than, names = "the other hosts", _differing(identity, self._identity)
        if names:
            what = f"has another {listed(names)} than {than}"
            self._leave_out(worker, RefgptError(what, where=worker.address, fix=self._fix))
            return
        worker.identity = identity
        if self._identity is not None:
            self._use(worker)

    def _use(self, worker: _Worker) -> None:
        worker.ready = True
        logger.info("%s: a worker has started", worker.address)

    def _fail(self, worker: _Worker, fault: Any) -> None:
        """Deal with an error of a worker's own code. If its model is loaded, others would meet the same error."""
        cause = fault.cause
        if not isinstance(cause, RefgptError):
            cause = RefgptError("fails at its work" if worker.ready else "cannot start", got=shown(cause))
        if worker.ready:
            raise cause.within(worker.address) from fault
        self._leave_out(worker, cause.within(worker.address))

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


def _differing(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> list[str]:
    """The names of the entries that differ."""
    one, other = one or {}, other or {}
    return [name for name in {**other, **one} if one.get(name) != other.get(name)]
