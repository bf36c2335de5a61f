"""A worker of a synchronous training: after every step the gradients go around a ring of workers, in float16.

    mpiexec -n 4 python -m benchmarks.ring TEXT... --rate 3e-4 -o DIRECTORY

Each worker sends parts of its gradient to the next, n - 1 times to add them up and n - 1 times to distribute the sums.
It sends 2 (n - 1) / n times the gradient's bytes, which is the least that n equal workers can send. Needs the extra
"mpi" (mpi4py, and MPICH or another MPI).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.frontier import Setting, add_setting, setting_of, trainer
from refgpt import training


def summed(x: np.ndarray, ring: Any) -> np.ndarray:
    """The sum of the vectors of all workers of an MPI communicator; every worker gets the same bits."""
    n, rank = ring.size, ring.rank
    after, before = (rank + 1) % n, (rank - 1) % n
    parts = np.array_split(x.astype(np.float16), n)
    room = np.empty(len(parts[0]), np.float16)  # the first part is the longest

    def exchange(sent: int, received: int) -> np.ndarray:
        """Send a part on, and receive another."""
        here = room[: len(parts[received])]
        ring.Sendrecv(parts[sent].view(np.uint8), after, recvbuf=here.view(np.uint8), source=before)
        return here

    for i in range(n - 1):
        received = (rank - i - 1) % n
        here = exchange((rank - i) % n, received)
        parts[received] = (parts[received].astype(np.float32) + here).astype(np.float16)
    for i in range(n - 1):
        received = (rank - i) % n
        parts[received] = exchange((rank + 1 - i) % n, received).copy()
    return np.concatenate(parts).astype(np.float32)


def train(setting: Setting, peak: float, ring: Any) -> tuple[training.Trainer, float]:
    """-> the trained model, and the seconds of the steps"""
    model, one = trainer(1, setting)
    source = setting.batches(ring.rank, 0)
    ring.Barrier()
    start = time.perf_counter()
    for step, rate in enumerate(setting.rates(peak)):
        (batch,) = source(step)
        _, gradients = training.gradients(model, batch)
        flat = np.concatenate([gradients[name].ravel() for name in one.weights])
        mean = summed(flat, ring) / np.float32(ring.size)
        ends = np.cumsum([gradients[name].size for name in one.weights])[:-1]
        for name, part in zip(one.weights, np.split(mean, ends), strict=True):
            gradients[name] = part.reshape(gradients[name].shape)
        one.update(gradients, rate)
    ring.Barrier()
    return one, time.perf_counter() - start


def main() -> None:
    from mpi4py import MPI

    parser = argparse.ArgumentParser(description="Train as one worker of a ring.")
    add_setting(parser)
    parser.add_argument("--rate", type=float, required=True, help="the learning rate's peak")
    parser.add_argument("-o", "--output", type=Path, required=True, help="directory of the model and of result.json")
    arguments = parser.parse_args()
    ring = MPI.COMM_WORLD
    one, seconds = train(setting_of(arguments, ring.size), arguments.rate, ring)
    if ring.rank == 0:
        arguments.output.mkdir(parents=True, exist_ok=True)
        one.write(arguments.output / "model")
        (arguments.output / "result.json").write_text(json.dumps({"seconds": seconds}), encoding="utf-8")


if __name__ == "__main__":
    main()
