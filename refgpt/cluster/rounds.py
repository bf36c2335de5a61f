"""When workers exchange updates: after a fixed number of steps, or after randomly chosen steps."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown


@dataclass(frozen=True)
class Sync:
    """After which steps workers communicate; ``parse_sync`` makes one from its name.

    Attributes
    ----------
    every : int or None
        After each multiple of it.
    probability : float or None
        After each step with this probability, drawn from a seed that all share: "local training that randomly skips
        global communication", as GPT-JT was trained, and as in ProxSkip (Mishchenko et al. 2022,
        https://arxiv.org/abs/2202.09357).
    """

    every: int | None = None
    probability: float | None = None

    def rounds(self, n_steps: int, seed: int) -> list[range]:
        """The steps of each round, at whose end workers communicate. The last round ends with the last step.

        Parameters
        ----------
        n_steps : int
            Of the whole training.
        seed : int
            Of the random choice; equal seeds give equal rounds.
        """
        n_steps = whole_number("n_steps", n_steps, 1, None, RefgptError)
        if self.every is not None:
            ends = {*range(self.every, n_steps, self.every), n_steps}
        else:
            seed = whole_number("seed", seed, 0, (1 << 64) - 1, RefgptError)
            threshold = np.uint64(min((self.probability or 0) * 2.0**64, 2.0**64 - 2048))
            raw = np.random.Philox(key=seed).random_raw(n_steps)
            ends = {*(np.flatnonzero(raw <= threshold) + 1).tolist(), n_steps}
        starts = [0, *sorted(ends)]
        return [range(start, stop) for start, stop in pairwise(starts)]

    @property
    def mean_steps(self) -> float:
        """Steps of a round, on average."""
        return float(self.every) if self.every is not None else 1 / (self.probability or math.nan)

    def __str__(self) -> str:
        return f"every:{self.every}" if self.every is not None else f"random:{self.probability:g}"


def parse_sync(name: str) -> Sync:
    """A rhythm from its name: "every:25", or "random:0.04".

    Raises
    ------
    RefgptError
        If there is no such rhythm.
    """
    text = name.strip() if isinstance(name, str) else ""
    if (match := re.fullmatch(r"every:([0-9]{1,9})", text)) and int(match[1]):
        return Sync(every=int(match[1]))
    if match := re.fullmatch(r"random:([0-9.e-]+)", text):
        try:
            probability = float(match[1])
        except ValueError:
            probability = math.nan
        if 0 < probability <= 1:
            return Sync(probability=probability)
    wanted = "every:H with a whole number, or random:P with a probability above 0 up to 1"
    raise RefgptError("there is no such rhythm", where="sync", got=shown(name), wanted=wanted)
