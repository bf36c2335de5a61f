"""Workers as actors of Ray (https://docs.ray.io), on the machines of a Ray cluster.

Ray starts the actors, tells when one has died, and carries the messages. A worker may die, hang, be cut off, or come
back: a round goes on with those that have answered by a deadline. A worker that was absent takes the shared
weights, and takes part again from the next round. Needs the extra ``ray``.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from refgpt import __version__
from refgpt._common.arguments import whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.cluster.connect import Patience, connected_ray, import_ray
from refgpt.cluster.coordinator import Coordinator, NothingUsable, Rules
from refgpt.cluster.local import RoundReport
from refgpt.cluster.messages import Layout
from refgpt.cluster.rounds import Sync
from refgpt.cluster.saving import PROGRESS
from refgpt.cluster.worker import Worker

logger = logging.getLogger(__name__)

#: Seconds after which a worker that failed is asked again, where no other one has answered; doubled each time.
RETRY = 1.0

#: Makes a worker, in the process in which it will work: ``make_worker(number)``.
MakeWorker = Callable[[int], Worker]


class Actor:
    """What runs in a worker's process. Ray makes an actor of it, which answers calls one after another.

    Parameters
    ----------
    make_worker : list of one reference
        To a ``MakeWorker``. It is read after the version of refgpt is known to be the same: another version may not
        have all that it refers to.
    worker : int
    version : str
        The coordinator's version of refgpt.
    """

    def __init__(self, make_worker: list[Any], worker: int, version: str) -> None:
        self._make_worker, self._number, self._version = make_worker, worker, version
        self._round = -1  # the round for which it has the weights

    @cached_property
    def _worker(self) -> Worker:
        """Made in the first call, which can tell why it failed. The next call tries again."""
        if __version__ != self._version:
            what, fix = "its host has another version of refgpt", "install the same version on all hosts"
            raise RefgptError(what, got=__version__, wanted=self._version, fix=fix)
        make_worker: MakeWorker = import_ray().get(self._make_worker[0])
        return make_worker(self._number)

    def ready(self) -> str:
        """The digest of its weights, which a worker can return as soon as its model is loaded."""
        return self._worker.layout.digest(self._worker.trainer.weights)

    def weights(self) -> dict[str, np.ndarray]:
        """Its weights."""
        return self._worker.trainer.weights

    def begin(self, round_: int) -> None:
        """Keep its own weights: they are those at the beginning of this round."""
        self._round = round_

    def take(self, weights: Mapping[str, np.ndarray], round_: int) -> None:
        """See ``Worker.take``; they are the weights at the beginning of this round."""
        self._worker.take(weights)
        self._round = round_

    def train(self, round_: int, steps: range, rates: Sequence[float], seed: int) -> bytes:
        """See ``Worker.train``."""
        worker = self._worker
        if self._round != round_:  # an update or the weights never arrived
            raise RefgptError("has the weights of another round", got=self._round, wanted=round_)
        self._round = -1
        return worker.train(round_, steps, rates, seed)

    def apply(self, update: bytes, rules: Rules, round_: int) -> None:
        """See ``Worker.apply``."""
        method = rules.back or rules.compression
        self._worker.apply(method.decode(update, self._worker.layout.n, rules.seed_of(round_, None)))
        self._round = round_ + 1


class Crew:
    """The actors of a training: those that have the shared weights, and those that start, or are late.

    Parameters
    ----------
    make_worker : callable
    n_workers : int
    resources : dict
        Options of each actor for Ray, such as {"num_cpus": 1, "resources": {"trainer": 1}}.
    """

    def __init__(self, make_worker: MakeWorker, n_workers: int, resources: dict[str, Any]) -> None:
        self._ray = import_ray()
        self._make_worker = [self._ray.put(make_worker)]
        # ``_start`` replaces a dead actor; the new one loads the model and takes the shared weights of that time.
        self._class = self._ray.remote(Actor).options(max_restarts=0, **resources)
        self._actors: dict[int, Any] = {}
        self._busy: dict[int, Any] = {}  # unanswered calls to workers that start or are late
        self._unmade: set[int] = set()  # workers that are not known to have loaded their model
        self._stale: set[int] = set()  # workers that are not known to have the shared weights
        self._loaded: dict[int, str] = {}  # digests of the weights of workers that have not trained yet
        self._faults: dict[int, RefgptError] = {}  # of workers whose own code failed the last time
        self.n_given = 0  # how often a worker was given all weights
        for worker in range(n_workers):
            self._start(worker)

    def gather(self, patience: Patience) -> None:
        """Wait for the workers to start: for all of them, or at the deadline for a quorum.

        Raises
        ------
        RefgptError
            If no worker starts, or all fail.
        """
        deadline, end = None, time.monotonic() + patience.start
        while self._busy and (deadline is None or time.monotonic() < deadline):
            n_ready = len(self._actors.keys() - self._busy.keys() - self._faults.keys())
            if time.monotonic() > end:
                if n_ready:
                    break  # without the quorum: machines may join later
                fix = "look at `ray status`: are there enough CPUs?"
                raise RefgptError("no worker has started", got=f"{patience.start:g} seconds", fix=fix)
            self._look(0.1)
            if deadline is None and n_ready and n_ready >= patience.quorum * len(self._actors):
                deadline = time.monotonic() + patience.deadline
        if self._faults.keys() == self._actors.keys():
            worker, fault = next(iter(self._faults.items()))
            raise fault.within(f"worker {worker}")

    def first_weights(self, patience: Patience) -> dict[str, np.ndarray]:
        """The weights of the first worker that answers."""
        while True:
            for worker, actor in self._actors.items():
                if worker not in self._busy:
                    weights = self._answer(worker, actor.weights.remote())
                    if weights is not None:
                        found: dict[str, np.ndarray] = weights
                        return found
            self.gather(patience)

    def train(
        self,
        round_: int,
        steps: range,
        rates: Sequence[float],
        weights: Mapping[str, np.ndarray],
        rules: Rules,
        patience: Patience,
    ) -> dict[int, bytes]:
        """Let all available workers make a round's steps. Workers without the shared weights are given them first.

        A worker that has just loaded the same weights does not receive them.

        Returns
        -------
        dict of int to bytes
            Their messages, by worker.

        Raises
        ------
        RefgptError
            If no worker answers for too long.
        """
        asked: dict[int, Any] = {}
        answers: dict[int, bytes] = {}
        again: dict[int, float] = {}  # when to retry failed workers if no worker has answered by then
        n_failed: Counter[int] = Counter()
        stored, digest, latest, deadline = None, "", time.monotonic(), None
        while deadline is None or time.monotonic() < deadline:
            self._look(0)
            for worker, actor in self._actors.items():
                if answers or worker in asked or worker in self._busy or time.monotonic() < again.get(worker, 0):
                    continue  # once a worker has answered, no other one starts the round
                if worker in self._unmade:
                    self._busy[worker] = actor.ready.remote()
                    again[worker] = time.monotonic() + RETRY * 2 ** n_failed[worker]
                    n_failed[worker] += 1
                    continue
                if worker in self._stale:
                    loaded = self._loaded.pop(worker, None)
                    if loaded is not None:
                        digest = digest or Layout.of(weights).digest(weights)
                    if loaded is not None and loaded == digest:
                        actor.begin.remote(round_)
                    else:
                        stored = stored or self._ray.put(weights)
                        actor.take.remote(stored, round_)
                        self.n_given += 1
                    self._stale.discard(worker)
                asked[worker] = actor.train.remote(round_, steps, rates, rules.seed_of(round_, worker))
            outstanding = {ref: worker for worker, ref in asked.items() if worker not in answers}
            if answers and not outstanding:
                break
            done = self._done(list(outstanding), 0.05)
            for ref in done:
                worker = outstanding[ref]
                answer = self._answer(worker, ref)
                if answer is None:  # it has failed or died: this round goes on without it
                    del asked[worker]
                    again[worker] = time.monotonic() + RETRY * 2 ** n_failed[worker]
                    n_failed[worker] += 1
                else:
                    answers[worker] = answer
                    latest = time.monotonic()
            if deadline is None and answers and len(answers) >= patience.quorum * len(asked):
                deadline = time.monotonic() + patience.deadline
            if deadline is None and time.monotonic() - latest > patience.lost:
                what = f"only {len(answers)} of {len(asked)} workers answer" if answers else "no worker answers"
                reasons = "; ".join(f"worker {worker}: {fault}" for worker, fault in self._faults.items())
                raise RefgptError(what, where=f"round {round_}", got=f"{patience.lost:g} seconds", fix=reasons)
        for worker, ref in asked.items():
            if worker not in answers:
                logger.warning("worker %d is late: round %d goes on without it", worker, round_)
                self._busy[worker] = ref
                self._stale.add(worker)
        return answers

    def apply(self, workers: Sequence[int], update: bytes, rules: Rules, round_: int) -> None:
        """Send an update to the workers whose messages were used; all others will be given the weights."""
        stored = self._ray.put(update)
        for worker, actor in self._actors.items():
            if worker in workers and worker not in self._stale:
                actor.apply.remote(stored, rules, round_)
            else:
                self._stale.add(worker)

    def forget(self, workers: Iterable[int]) -> None:
        """Mark these workers to be given the weights before their next round."""
        self._stale.update(workers)

    def stop(self) -> None:
        """End the actors."""
        for actor in self._actors.values():
            self._ray.kill(actor)

    def _start(self, worker: int) -> None:
        self._actors[worker] = self._class.remote(self._make_worker, worker, __version__)
        self._busy[worker] = self._actors[worker].ready.remote()
        self._unmade.add(worker)
        self._stale.add(worker)
        self._loaded.pop(worker, None)
        self._faults.pop(worker, None)

    def _look(self, seconds: float) -> None:
        """Check which workers have become ready."""
        done = self._done(list(self._busy.values()), seconds)
        for worker, ref in list(self._busy.items()):
            if ref in done:
                del self._busy[worker]
                answer = self._answer(worker, ref)
                if isinstance(answer, str):  # it has started; a late round's answer is bytes, and is ignored
                    self._loaded[worker] = answer
                    self._unmade.discard(worker)

    def _done(self, refs: list[Any], seconds: float) -> list[Any]:
        if not refs:
            time.sleep(seconds)
            return []
        done: list[Any] = self._ray.wait(refs, num_returns=len(refs), timeout=seconds)[0]
        return done

    def _answer(self, worker: int, ref: Any) -> Any:
        """What a worker answered; None if it could not, or has died and is started anew."""
        try:
            answer = self._ray.get(ref)
            self._faults.pop(worker, None)
            return answer
        except self._ray.exceptions.RayTaskError as fault:  # its own code failed
            cause = fault.cause
            if not isinstance(cause, RefgptError):
                cause = RefgptError("fails at its work", got=shown(cause))
            logger.warning("worker %d: %s", worker, cause)
            self._faults[worker] = cause
            self._stale.add(worker)
        except self._ray.exceptions.RayError as fault:
            logger.warning("worker %d is gone (%s): it is started anew", worker, type(fault).__name__)
            self._start(worker)
        return None


def train_on_ray(
    make_worker: MakeWorker,
    n_workers: int,
    rates: Sequence[float],
    sync: Sync,
    rules: Rules,
    *,
    patience: Patience | None = None,
    progress: str | Path | None = None,
    save_every: int = 1,
    resources: dict[str, Any] | None = None,
    weights: Mapping[str, np.ndarray] | None = None,
) -> Iterator[tuple[RoundReport, dict[str, np.ndarray]]]:
    """Train a model by workers on the machines of a Ray cluster, to which this process is connected (``ray.init``).

    With equal seeds, and if no worker is late or lost, the weights are those of ``train_locally``, bit for bit.

    Parameters
    ----------
    make_worker : callable
        Makes a worker in its own process, by its number; see ``Worker``. Ray sends it there pickled.
    n_workers : int
        Those for which there is no room yet start as soon as machines join.
    rates, sync, rules
        See ``train_locally``.
    patience : Patience, optional
    progress : path, optional
        A directory. Everything that the training needs to go on is kept there; if there is something in it, the
        training goes on from that.
    save_every : int
        Steps between two times when it is kept: at the end of the round that reaches so many, when the next round is
        asked for, and at the end.
    resources : dict, optional
        Options of each actor for Ray; by default one processor each.
    weights : mapping of str to ndarray, optional
        The initial weights; the default is those of the first worker. They are sent only to workers that have loaded
        others.

    Yields
    ------
    (RoundReport, dict of str to ndarray)
        After each round, with the weights that all share, as views.

    Raises
    ------
    RefgptError
        If Ray is missing or not connected, no worker starts or answers, or the progress is of another training.
    """
    n_workers = whole_number("n_workers", n_workers, 1, None, RefgptError)
    save_every = whole_number("save_every", save_every, 1, None, RefgptError)
    patience = patience or Patience()
    connected_ray()
    crew = Crew(make_worker, n_workers, {"num_cpus": 1} if resources is None else resources)
    try:
        crew.gather(patience)
        coordinator = Coordinator(crew.first_weights(patience) if weights is None else weights, rules)
        if progress is not None and (Path(progress) / PROGRESS).exists():
            coordinator.resume(progress)
        rounds = sync.rounds(len(rates), rules.seed)
        while coordinator.round < len(rounds):
            i, began, given = coordinator.round, time.monotonic(), crew.n_given
            while True:
                answers = crew.train(i, rounds[i], rates, coordinator.weights, rules, patience)
                try:
                    result = coordinator.close(answers)
                    break
                except NothingUsable as fault:  # the round is tried again
                    if time.monotonic() - began > patience.lost:
                        raise
                    logger.warning("%s", fault)
                    crew.forget(answers)
            for worker, damage in result.refused.items():
                logger.warning("worker %d sent a message that is refused: %s", worker, damage)
            if len(result.messages) <= 2 * rules.trim:
                logger.warning("round %d: %d workers are too few to trim %d", i, len(result.messages), rules.trim)
            crew.apply([message.worker for message in result.messages], result.update, rules, i)
            coordinator.received += (crew.n_given - given) * 4 * coordinator.layout.n / n_workers
            report = RoundReport(i, rounds[i].stop, result.loss, coordinator.sent, coordinator.received, result)
            yield report, coordinator.weights
            is_due = rounds[i].start // save_every < rounds[i].stop // save_every or coordinator.round == len(rounds)
            if progress is not None and is_due:
                coordinator.save(progress)  # after the caller kept the report, so that no report is ever missing
    finally:
        crew.stop()
