"""The cost of a training on given links for each method of exchange: bytes, and transfer times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refgpt._common.arguments import number, whole_number
from refgpt._common.errors import RefgptError
from refgpt.cluster.compression import Compression, parse_compression
from refgpt.cluster.rounds import Sync, parse_sync
from refgpt.cluster.simulation import MOST_STEPS, Fleet, Simulated, simulate

#: Most values for which a method's message is really made; for more, its ratio of sizes is used.
SAMPLE = 1 << 18
#: Bytes of a value that a ring of float16 exchanges.
RING_BYTES = 2


@dataclass(frozen=True)
class Training:
    """The training whose cost is estimated.

    Attributes
    ----------
    n_trained : int
        Numbers that are trained: all parameters, or those of an adapter.
    n_steps : int
    n_workers : int
    bits_per_second : float
        Of each worker's link, in each direction.
    seconds_per_step : float
        Computing time of a worker.
    """

    n_trained: int
    n_steps: int
    n_workers: int
    bits_per_second: float
    seconds_per_step: float = 0.0

    def __post_init__(self) -> None:
        whole_number("n_trained", self.n_trained, 1, None, RefgptError)
        whole_number("n_steps", self.n_steps, 1, None, RefgptError)
        whole_number("n_workers", self.n_workers, 2, None, RefgptError)
        number("bits_per_second", self.bits_per_second, 1, None, RefgptError)
        number("seconds_per_step", self.seconds_per_step, 0, None, RefgptError)


@dataclass(frozen=True)
class Bill:
    """The cost of one method.

    Attributes
    ----------
    method : str
    sent : float
        Bytes that each worker sends in the whole training; it receives about as many.
    link_seconds : float
        Time that each link is busy in one direction.
    hub_seconds : float
        The same for the coordinator, whose link carries every worker's messages; of a ring the same as
        ``link_seconds``.
    seconds : float
        Of the whole training, if nothing overlaps: computing, and each round's messages to and from the coordinator.
    """

    method: str
    sent: float
    link_seconds: float
    hub_seconds: float
    seconds: float


def ring_bytes(n_trained: int, n_workers: int) -> float:
    """Bytes that each worker sends to sum one gradient of float16 around a ring: ``2 (w - 1) / w`` times its size.

    Patarasuk and Yuan 2009, https://doi.org/10.1016/j.jpdc.2008.09.002
    """
    return 2 * (n_workers - 1) / n_workers * RING_BYTES * n_trained


def message_bytes(compression: Compression, n_trained: int) -> float:
    """Bytes of one message: measured on normally distributed numbers, and scaled."""
    n = min(n_trained, SAMPLE)
    sample = np.random.RandomState(0).standard_normal(n).astype(np.float32)
    return len(compression.encode(sample)) / n * n_trained


def ring_bill(training: Training) -> Bill:
    """Gradients of float16, summed around a ring after every step: the baseline."""
    sent = training.n_steps * ring_bytes(training.n_trained, training.n_workers)
    busy = 8 * sent / training.bits_per_second
    computing = training.n_steps * training.seconds_per_step
    return Bill("ring, float16, every step", sent, busy, busy, computing + busy)


def sparse_bill(training: Training, sync: Sync, compression: Compression) -> Bill:
    """Local steps, and compressed differences to and from a coordinator now and then."""
    n_rounds = max(1.0, training.n_steps / sync.mean_steps)
    sent = n_rounds * message_bytes(compression, training.n_trained)
    busy = 8 * sent / training.bits_per_second
    hub = training.n_workers * busy
    computing = training.n_steps * training.seconds_per_step
    return Bill(f"{sync}, {compression}", sent, busy, hub, computing + 2 * hub)


#: Methods of the table that ``refgpt plan`` prints.
METHODS = (
    ("every:1", "int8"),
    ("every:25", "f16"),
    ("random:0.04", "int4"),
    ("random:0.1", "topk:0.03,bits:2"),
    ("random:0.04", "topk:0.03,bits:2"),
    ("random:0.04", "cocktail"),
)


def bills(training: Training, methods: tuple[tuple[str, str], ...] = METHODS) -> list[Bill]:
    """The cost of a ring, and of some methods by name."""
    rows = [ring_bill(training)]
    for sync, compression in methods:
        rows.append(sparse_bill(training, parse_sync(sync), parse_compression(compression)))
    return rows


def simulated(training: Training, fleet: Fleet, sync: Sync, compression: Compression, seed: int = 0) -> Simulated:
    """Simulate a training by these machines: see ``refgpt.cluster.simulation``.

    Parameters
    ----------
    training : Training
        Its speeds are not used; the machines have their own.
    fleet : Fleet
    sync : Sync
    compression : Compression
    seed : int
        Of the rounds and of failures.
    """
    whole_number("n_steps", training.n_steps, 1, MOST_STEPS, RefgptError)
    message = message_bytes(compression, training.n_trained)
    rounds = sync.rounds(training.n_steps, seed)
    return simulate(fleet, rounds, message, message, 4.0 * training.n_trained, seed=seed)
