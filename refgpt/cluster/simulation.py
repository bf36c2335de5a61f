"""Simulated time: how long a training takes on many unequal machines that come and go, without running it.

A round of a worker is: its local steps at its own speed, its message up its own link, the coordinator's link shared by
all messages, and the update down again. The coordinator closes a round when all workers that are there have answered,
or at a deadline once enough have. A late worker downloads all current weights, and joins the next round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refgpt._common.arguments import number, whole_number
from refgpt._common.errors import RefgptError

#: Most workers, and most steps, that are simulated.
MOST_WORKERS, MOST_STEPS = 1_000_000, 100_000_000


@dataclass(frozen=True)
class Fleet:
    """The machines of a simulation.

    Attributes
    ----------
    seconds_per_step : ndarray [w]
        What each needs for one step.
    bits_per_second : ndarray [w]
        Of each one's link, in each direction.
    hub_bits_per_second : float
        Of the coordinator's link, in each direction.
    failure_rate, return_rate : float
        The chance that a worker that is there is gone in the next round, and that one that is gone is back.
    """

    seconds_per_step: np.ndarray
    bits_per_second: np.ndarray
    hub_bits_per_second: float
    failure_rate: float = 0.0
    return_rate: float = 1.0

    def __post_init__(self) -> None:
        for name in ("seconds_per_step", "bits_per_second"):
            array = np.asarray(getattr(self, name), np.float64)
            if array.ndim != 1 or not array.size or not (np.isfinite(array) & (array > 0)).all():
                raise RefgptError("must be one number above 0 for each worker", where=name)
            object.__setattr__(self, name, array)
        if len(self.seconds_per_step) != len(self.bits_per_second):
            raise RefgptError("must be as many as there are speeds", where="bits_per_second")
        number("hub_bits_per_second", self.hub_bits_per_second, 1, None, RefgptError)
        number("failure_rate", self.failure_rate, 0, 1, RefgptError)
        number("return_rate", self.return_rate, 0, 1, RefgptError)

    @classmethod
    def drawn(
        cls,
        n_workers: int,
        seconds_per_step: float,
        bits_per_second: float,
        hub_bits_per_second: float,
        spread: float = 0.5,
        seed: int = 0,
        **rates: float,
    ) -> Fleet:
        """Machines whose speeds and links are log-normal around these medians, with this deviation of the logarithm."""
        n_workers = whole_number("n_workers", n_workers, 1, MOST_WORKERS, RefgptError)
        spread = number("spread", spread, 0, None, RefgptError)
        stream = np.random.RandomState(whole_number("seed", seed, 0, 2**32 - 1, RefgptError))
        speeds, links = np.exp(spread * stream.standard_normal((2, n_workers)))
        return cls(seconds_per_step * speeds, bits_per_second * links, hub_bits_per_second, **rates)


@dataclass(frozen=True)
class Simulated:
    """What a simulation found.

    Attributes
    ----------
    seconds : float
        Of the whole training.
    computing, talking : float
        Parts of ``seconds``, summed over rounds: until the last counted worker has made its steps, and the rest.
    counted : float
        The share of the workers, all rounds together, whose message counted.
    sent : float
        Bytes that a worker sent, on average.
    refetched : float
        Bytes of whole weights that late and returning workers took, on average.
    """

    seconds: float
    computing: float
    talking: float
    counted: float
    sent: float
    refetched: float


def simulate(
    fleet: Fleet,
    rounds: list[range],
    message_bytes: float,
    update_bytes: float,
    weight_bytes: float,
    quorum: float = 0.75,
    patience: float = 1.5,
    seed: int = 0,
    coordinator_seconds: float = 0.0,
) -> Simulated:
    """Simulate a training.

    Parameters
    ----------
    fleet : Fleet
    rounds : list of range
        From ``Sync.rounds``.
    message_bytes, update_bytes, weight_bytes : float
        Of one worker's message, of the update, and of all weights, for those that missed an update.
    quorum : float
        The deadline begins to run when this share of the workers that are there has answered.
    patience : float
        The deadline: this many times what the quorum took.
    seed : int
        Of failures.
    coordinator_seconds : float
        What the coordinator computes in each round, between the last message and the update.
    """
    quorum = number("quorum", quorum, 0, 1, RefgptError)
    patience = number("patience", patience, 1, None, RefgptError)
    coordinator_seconds = number("coordinator_seconds", coordinator_seconds, 0, None, RefgptError)
    stream = np.random.RandomState(whole_number("seed", seed, 0, 2**32 - 1, RefgptError))
    n = len(fleet.seconds_per_step)
    present, stale = np.ones(n, bool), np.zeros(n, bool)
    seconds = computing = counted = sent = refetched = 0.0
    for steps in rounds:
        back = ~present & (stream.random_sample(n) < fleet.return_rate)
        gone = present & (stream.random_sample(n) < fleet.failure_rate)
        present, stale = (present | back) & ~gone, stale | back
        if not present.any():  # wait until a worker returns
            present[stream.randint(n)] = True
        takes = present & stale
        # All take the weights at once, through the coordinator's link.
        shared = takes.sum() * 8 * weight_bytes / fleet.hub_bits_per_second
        fetch = np.where(takes, np.maximum(8 * weight_bytes / fleet.bits_per_second, shared), 0.0)
        refetched += takes.sum() * weight_bytes / n
        ready = fetch + len(steps) * fleet.seconds_per_step
        answered = np.where(present, ready + 8 * message_bytes / fleet.bits_per_second, np.inf)
        order = np.sort(answered[present])
        deadline = patience * order[max(0, int(np.ceil(quorum * len(order))) - 1)]
        counts = answered <= deadline
        last = answered[counts].max() if counts.sum() == present.sum() else deadline
        up, down = 8 * counts.sum() * message_bytes, 8 * present.sum() * update_bytes
        # The coordinator receives while others still compute; its link has to carry all messages nevertheless.
        end = max(last, ready[counts].min() + up / fleet.hub_bits_per_second)
        back_again = max(8 * update_bytes / fleet.bits_per_second[counts].min(), down / fleet.hub_bits_per_second)
        seconds += end + coordinator_seconds + back_again
        computing += ready[counts].max()
        counted += counts.sum() / n
        sent += counts.sum() * message_bytes / n
        stale = ~counts
    return Simulated(seconds, computing, seconds - computing, counted / len(rounds), sent, refetched)


def ring_seconds(fleet: Fleet, n_steps: int, bytes_per_step: float) -> float:
    """How long a synchronous ring takes: in each step all wait for the slowest machine and the slowest link.

    Parameters
    ----------
    fleet : Fleet
        Its failures are ignored: a ring stops at the first one.
    n_steps : int
    bytes_per_step : float
        What each worker sends in a step: ``refgpt.cluster.bill.ring_bytes``.
    """
    slowest = float(fleet.seconds_per_step.max() + 8 * bytes_per_step / fleet.bits_per_second.min())
    return whole_number("n_steps", n_steps, 1, None, RefgptError) * slowest
