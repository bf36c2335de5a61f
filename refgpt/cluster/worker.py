"""A worker: trains on its own part of the data, and sends its difference after each round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from refgpt.cluster.compression import Compression
from refgpt.cluster.feedback import ErrorFeedback
from refgpt.cluster.messages import Layout, Message
from refgpt.training import Batch, Trainer

#: The micro-batches of one step of the whole training, of those that are this worker's part.
Batches = Callable[[int], Sequence[Batch]]


class Worker:
    """One of several workers that train copies of one model.

    Parameters
    ----------
    number : int
        Which one, from 0.
    trainer : Trainer
        Of this worker's copy of the model. Its optimiser's state is never exchanged.
    batches : callable
        ``batches(step)`` gives the micro-batches of a step. It depends on the step alone, so that a
        worker that was lost and restarted does not repeat data.
    compression : Compression
    error_decay : float
        See ``ErrorFeedback``.
    """

    def __init__(
        self, number: int, trainer: Trainer, batches: Batches, compression: Compression, error_decay: float = 1.0
    ) -> None:
        self.number, self.trainer, self._batches = number, trainer, batches
        self.layout = Layout.of(trainer.weights)
        self._base = self.layout.join(trainer.weights)
        self._sender = ErrorFeedback(compression, self.layout.n, error_decay)

    def train(self, round_: int, steps: range, rates: Sequence[float], seed: int) -> bytes:
        """Make the steps of a round.

        Parameters
        ----------
        round_ : int
        steps : range
            The numbers of the steps in the whole training.
        rates : sequence of float
            The learning rate of each step of the whole training.
        seed : int
            See ``Compression.encode``.

        Returns
        -------
        bytes
            The message (see ``Message``).
        """
        losses, n_tokens = [], 0
        for step in steps:
            batches = list(self._batches(step))
            losses.append(self.trainer.step(batches, rates[step]).loss)
            n_tokens += sum(batch.n_tokens for batch in batches)
        difference = self.layout.join(self.trainer.weights) - self._base
        payload, _ = self._sender.send(difference, seed)
        message = Message(self.number, round_, len(steps), n_tokens, float(np.mean(losses)), payload)
        return message.to_bytes(self.layout)

    def apply(self, update: np.ndarray) -> None:
        """Go on from the weights that all share: those before the round, plus the update of all workers together."""
        self._base += update
        self.trainer.assign(self.layout.split(self._base))

    def take(self, weights: Mapping[str, np.ndarray]) -> None:
        """Go on from weights that the coordinator sent, as after an absence. What was not sent before is forgotten."""
        self.trainer.assign(weights)
        self._base = self.layout.join(self.trainer.weights)
        self._sender.forget()
