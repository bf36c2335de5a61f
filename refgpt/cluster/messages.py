"""The message that a worker sends at the end of a round, as bytes, and the receiver's checks of it."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from zlib import crc32

import numpy as np

from refgpt._common.errors import RefgptError
from refgpt.cluster.compression import Compression, DamagedMessage

#: Magic, version, worker, round, fingerprint of the layout, steps, tokens, loss, bytes and CRC-32 of the payload.
HEADER = struct.Struct("<4sIIQIIQdQI")
MAGIC, VERSION = b"rgpt", 1
#: A loss or a value of a difference beyond this is refused: sums of them have to stay finite in float32.
LARGEST = 1e32


@dataclass(frozen=True)
class Layout:
    """The names and shapes of the trained arrays, in the order in which they are joined into one vector.

    Attributes
    ----------
    shapes : dict of str to tuple of int
    """

    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, weights: Mapping[str, np.ndarray]) -> Layout:
        """The layout of some weights."""
        return cls({name: w.shape for name, w in weights.items()})

    @property
    def n(self) -> int:
        """Length of the vector."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def fingerprint(self) -> int:
        """A checksum that distinguishes layouts."""
        return crc32(repr(list(self.shapes.items())).encode())

    def join(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Arrays as one vector: float32 [n]."""
        return np.concatenate(
            [
                np.empty(0, np.float32),
                *(arrays[name].reshape(-1).astype(np.float32, copy=False) for name in self.shapes),
            ]
        )

    def digest(self, arrays: Mapping[str, np.ndarray]) -> str:
        """The digest of arrays of this layout: equal for equal bits."""
        digest = sha256(repr(list(self.shapes.items())).encode())
        for name in self.shapes:  # one by one: joined, they would take their memory twice more
            digest.update(arrays[name].astype(np.float32, copy=False).tobytes())
        return digest.hexdigest()

    def split(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of a vector, as views."""
        arrays, start = {}, 0
        for name, shape in self.shapes.items():
            stop = start + int(np.prod(shape))
            arrays[name] = vector[start:stop].reshape(shape)
            start = stop
        return arrays


@dataclass(frozen=True)
class Message:
    """One worker's contribution to a round.

    Attributes
    ----------
    worker, round : int
    n_steps, n_tokens : int
        Steps of the optimiser, and tokens that were read in them.
    loss : float
        The mean over the steps.
    payload : bytes
        The compressed difference between the weights after the round and before.
    """

    worker: int
    round: int
    n_steps: int
    n_tokens: int
    loss: float
    payload: bytes

    def to_bytes(self, layout: Layout) -> bytes:
        """The message as it is sent."""
        numbers = self.n_steps, self.n_tokens, self.loss, len(self.payload), crc32(self.payload)
        return HEADER.pack(MAGIC, VERSION, self.worker, self.round, layout.fingerprint, *numbers) + self.payload


def read_message(data: bytes, worker: int, round_: int, layout: Layout) -> Message:
    """Read the message that is expected from a worker in a round.

    Raises
    ------
    DamagedMessage
        If it is anything else: of another worker, round or layout, cut short, or changed on the way.
    """
    if not isinstance(data, bytes) or len(data) < HEADER.size:
        got = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
        raise DamagedMessage("is no message", got=got)
    magic, version, sender, number, fingerprint, n_steps, n_tokens, loss, size, checksum = HEADER.unpack_from(data)
    payload = data[HEADER.size :]
    if (magic, version) != (MAGIC, VERSION):
        raise DamagedMessage("is of another program or version", got=(magic, version), wanted=(MAGIC, VERSION))
    if sender != worker:
        raise DamagedMessage("is from another worker", got=sender, wanted=worker)
    if number != round_:
        raise DamagedMessage("is of another round", got=number, wanted=round_)
    if fingerprint != layout.fingerprint:
        raise DamagedMessage("is of another model, or trains other weights of it")
    if size != len(payload) or checksum != crc32(payload):
        raise DamagedMessage("was cut short or changed on the way", got=f"{len(payload)} bytes", wanted=size)
    if not abs(loss) <= LARGEST or not n_steps:
        raise DamagedMessage("tells of no training", got=f"{n_steps} steps, a loss of {loss}")
    return Message(sender, number, n_steps, n_tokens, loss, payload)


def read_difference(message: Message, compression: Compression, layout: Layout, seed: int) -> np.ndarray:
    """The difference in a message: float32 [n].

    Raises
    ------
    DamagedMessage
        If its payload is not what ``compression`` writes for this layout, or has values beyond all reason.
    """
    try:
        difference = compression.decode(message.payload, layout.n, seed)
    except DamagedMessage:
        raise
    except (RefgptError, ValueError, IndexError, struct.error) as fault:
        raise DamagedMessage("its payload is damaged", got=str(fault)) from None
    largest = max(float(difference.max(initial=0)), -float(difference.min(initial=0)))
    if largest > LARGEST:
        raise DamagedMessage("its values are too large", got=f"{largest:g}", wanted=f"at most {LARGEST:g}")
    return difference
