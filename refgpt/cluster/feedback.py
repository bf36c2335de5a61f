"""Error feedback: the compression error of one vector is added to the next vector."""

from __future__ import annotations

import numpy as np

from refgpt._common.arguments import number
from refgpt._common.errors import RefgptError
from refgpt.cluster.compression import Compression


class ErrorFeedback:
    """A sender that remembers its compression error.

    Parameters
    ----------
    compression : Compression
    n : int
        Length of the vectors.
    decay : float
        Share of the error that is remembered; 1 remembers all of it. Less than 1 forgets old differences, which may
        be outdated after many local steps.
    """

    def __init__(self, compression: Compression, n: int, decay: float = 1.0) -> None:
        self.compression, self.decay = compression, number("error_decay", decay, 0, 1, RefgptError)
        self.lost = np.zeros(n, np.float32)

    def send(self, vector: np.ndarray, seed: int) -> tuple[bytes, np.ndarray]:
        """Compress the sum of a vector and the remembered error. -> the bytes, and the vector that the receiver sees"""
        wanted = vector + np.float32(self.decay) * self.lost
        data = self.compression.encode(wanted, seed)
        received = self.compression.decode(data, len(wanted), seed)
        self.lost = wanted - received
        return data, received

    def forget(self) -> None:
        """Forget the remembered error."""
        self.lost[:] = 0
