"""The coordinator: combines the workers' differences of a round into one update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refgpt._common.arguments import number, one_of, whole_number
from refgpt._common.errors import RefgptError
from refgpt.cluster.compression import Compression, DamagedMessage
from refgpt.cluster.feedback import ErrorFeedback
from refgpt.cluster.messages import Layout, Message, read_difference, read_message
from refgpt.cluster.saving import read_progress, write_progress

OUTER = ("none", "nesterov")


class NothingUsable(RefgptError):
    """No message of a round can be used."""


@dataclass(frozen=True)
class Rules:
    """How differences become an update. All workers and the coordinator agree on them.

    Attributes
    ----------
    compression : Compression
        Of the workers' differences.
    back : Compression or None
        Of the update that goes back to them; by default the same.
    outer : "none" or "nesterov"
        The optimiser applied to the mean difference: none, or Nesterov's momentum, as in DiLoCo (Douillard et al.
        2023, https://arxiv.org/abs/2311.08105).
    outer_lr, outer_momentum : float
        Of the outer optimiser.
    error_decay : float
        See ``ErrorFeedback``.
    max_ratio : float or None
        Differences longer than this many times the median length of the round (of an even number of lengths, the
        shorter of the two in the middle) are shortened to that, so that one worker cannot move the weights far. The
        message of a worker that answers alone cannot be compared with any other.
    trim : int
        For each weight, this many of the largest and of the smallest values are left out of the mean (Yin et al. 2018,
        https://arxiv.org/abs/1803.01498), or fewer in a round that has fewer than ``2 trim + 1`` messages: one value
        is always left. Two messages are not trimmed.
    seed : int
    """

    compression: Compression = field(default_factory=Compression)
    back: Compression | None = None
    outer: str = "none"
    outer_lr: float = 1.0
    outer_momentum: float = 0.9
    error_decay: float = 1.0
    max_ratio: float | None = None
    trim: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        one_of("outer", self.outer, OUTER, RefgptError)
        number("outer_lr", self.outer_lr, 0, None, RefgptError)
        number("outer_momentum", self.outer_momentum, 0, 1, RefgptError)
        if self.max_ratio is not None:
            number("max_ratio", self.max_ratio, 1, None, RefgptError)
        whole_number("trim", self.trim, 0, None, RefgptError)
        whole_number("seed", self.seed, 0, (1 << 32) - 1, RefgptError)

    def seed_of(self, round_: int, worker: int | None) -> int:
        """The seed of what a worker sends in a round, or (None) of what the coordinator sends."""
        return (self.seed << 32 | round_ << 12 | (0 if worker is None else worker + 1)) & ((1 << 64) - 1)


@dataclass(frozen=True)
class Round:
    """The result of a round.

    Attributes
    ----------
    update : bytes
        For every worker: compressed by ``Rules.back``.
    messages : list of Message
        The messages that were used.
    refused : dict of int to DamagedMessage
        By worker.
    """

    update: bytes
    messages: list[Message]
    refused: dict[int, DamagedMessage]

    @property
    def loss(self) -> float:
        """The mean over the workers."""
        return float(np.mean([message.loss for message in self.messages]))


class Coordinator:
    """Holds the weights that all workers share between rounds.

    Parameters
    ----------
    weights : mapping of str to ndarray
        In float32; copied.
    rules : Rules

    Attributes
    ----------
    sent, received : float
        Bytes that each worker has sent and received in all rounds, on average.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], rules: Rules) -> None:
        self.rules, self.layout = rules, Layout.of(weights)
        self.round = 0
        self.sent = self.received = 0.0
        self._vector = self.layout.join(weights)
        self._momentum = np.zeros_like(self._vector)
        self._sender = ErrorFeedback(rules.back or rules.compression, self.layout.n, rules.error_decay)

    @property
    def weights(self) -> dict[str, np.ndarray]:
        """The weights that all share, as views."""
        return self.layout.split(self._vector)

    def close(self, answers: Mapping[int, bytes]) -> Round:
        """End a round with the messages that have come, by worker.

        A message that is damaged does not count, and its worker is named in the result.

        Raises
        ------
        NothingUsable
            If no message counts.
        RefgptError
            If the update is not finite, which a very large ``outer_lr`` can cause. After any error the weights and the
            momentum are as they were, and the round is still open.
        """
        messages, differences, refused = [], [], {}
        for worker in sorted(answers):
            try:
                message = read_message(answers[worker], worker, self.round, self.layout)
                seed = self.rules.seed_of(self.round, worker)
                differences.append(read_difference(message, self.rules.compression, self.layout, seed))
                messages.append(message)
            except DamagedMessage as fault:
                refused[worker] = fault
        if not messages:
            told = "; ".join(f"worker {worker}: {fault}" for worker, fault in refused.items())
            raise NothingUsable("no worker sent anything usable", where=f"round {self.round}", got=told or "no message")
        step, momentum = self._outer(_mean(differences, self.rules.max_ratio, self.rules.trim))
        update, received = self._sender.send(step, self.rules.seed_of(self.round, None))
        self._vector += received
        self._momentum = momentum
        self.round += 1
        sizes = [len(answer) for answer in answers.values() if isinstance(answer, bytes)]
        self.sent += sum(sizes) / len(sizes)
        self.received += len(update)
        return Round(update, messages, refused)

    def read_update(self, update: bytes, round_: int) -> np.ndarray:
        """An update of a round as a worker adds it to its weights: float32 [n]."""
        return self._sender.compression.decode(update, self.layout.n, self.rules.seed_of(round_, None))

    def save(self, directory: str | Path) -> None:
        """Keep all that ``resume`` needs in a directory: one file, which replaces an earlier one when it is whole."""
        arrays = {"weights": self._vector, "momentum": self._momentum, "lost": self._sender.lost}
        write_progress(directory, self.round, self.layout.fingerprint, arrays, (self.sent, self.received))

    def resume(self, directory: str | Path) -> None:
        """Continue from the state that ``save`` wrote.

        Raises
        ------
        CheckpointError
            If it is damaged, or of another model.
        """
        self.round, arrays, n_bytes = read_progress(directory, self.layout.fingerprint, self.layout.n)
        self.sent, self.received = n_bytes
        self._vector[:], self._momentum[:] = arrays["weights"], arrays["momentum"]
        self._sender.lost[:] = arrays["lost"]

    def _outer(self, difference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """-> the step of the outer optimiser, and its momentum after it"""
        rate, momentum = np.float32(self.rules.outer_lr), np.float32(self.rules.outer_momentum)
        with np.errstate(over="ignore"):  # what overflows cannot be sent, and is refused there
            if self.rules.outer == "none":
                return rate * difference, self._momentum
            velocity = momentum * self._momentum + difference
            return rate * (difference + momentum * velocity), velocity


def _mean(differences: list[np.ndarray], max_ratio: float | None, trim: int) -> np.ndarray:
    """The mean of differences [n], each shortened and trimmed as ``Rules`` say, summed in the workers' order."""
    if max_ratio is not None:
        lengths = [float(np.sqrt(np.square(d, dtype=np.float64).sum())) for d in differences]
        most = max_ratio * sorted(lengths)[(len(lengths) - 1) // 2]
        differences = [
            d if length <= most else d * np.float32(most / length)
            for d, length in zip(differences, lengths, strict=True)
        ]
    trim = min(trim, (len(differences) - 1) // 2)
    if trim:
        ordered = np.sort(np.stack(differences), 0)
        differences = list(ordered[trim : len(differences) - trim])
    total = differences[0].copy()
    for difference in differences[1:]:
        total += difference
    total /= np.float32(len(differences))
    return total
