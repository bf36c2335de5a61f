"""A training by several workers in one process, one after another: exact, repeatable, and without a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from refgpt._common.errors import RefgptError
from refgpt.cluster.coordinator import Coordinator, Round, Rules
from refgpt.cluster.rounds import Sync
from refgpt.cluster.worker import Batches, Worker
from refgpt.training import Trainer


@dataclass(frozen=True)
class RoundReport:
    """The cost and the result of a round.

    Attributes
    ----------
    round : int
        From 0.
    n_steps : int
        Of each worker so far.
    loss : float
        The mean training loss of the round.
    sent, received : float
        Bytes that each worker has sent and received so far, on average. Weights that a worker takes when it joins or
        comes back count as received.
    result : Round
    """

    round: int
    n_steps: int
    loss: float
    sent: float
    received: float
    result: Round


def train_locally(
    make_trainer: Callable[[int], Trainer],
    batches: Sequence[Batches],
    rates: Sequence[float],
    sync: Sync,
    rules: Rules,
) -> Iterator[tuple[RoundReport, Trainer]]:
    """Train a model by several workers, round after round.

    Parameters
    ----------
    make_trainer : callable
        ``make_trainer(worker)`` gives a trainer of that worker's own copy of the model.
    batches : sequence of callable
        One for each worker: see ``Worker``.
    rates : sequence of float
        The learning rate of each step; their number is that of the steps.
    sync : Sync
    rules : Rules

    Yields
    ------
    (RoundReport, Trainer)
        After each round; the trainer is one that has the weights that all share.
    """
    if not batches:
        raise RefgptError("there is no worker", where="batches")
    workers = [Worker(i, make_trainer(i), own, rules.compression, rules.error_decay) for i, own in enumerate(batches)]
    coordinator = Coordinator(workers[0].trainer.weights, rules)
    for i, steps in enumerate(sync.rounds(len(rates), rules.seed)):
        answers = {w.number: w.train(i, steps, rates, rules.seed_of(i, w.number)) for w in workers}
        result = coordinator.close(answers)
        for worker in workers:
            worker.apply(coordinator.read_update(result.update, i))
        report = RoundReport(i, steps.stop, result.loss, coordinator.sent, coordinator.received, result)
        yield report, workers[0].trainer
