"""Record what transformers' logits processors keep of random logits, for tests/test_sampling.py.

Recorded with transformers 5 and torch 2.13. For each case sampling.npz has its parameters, the logits, the ids seen so
far, and what is left of the logits (-inf = removed).
"""

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tests.goldens import HERE

# temperature, top_k, top_p, repetition_penalty
CASES = [
    (1.0, 5, 1.0, 1.0),
    (1.0, 0, 0.9, 1.0),
    (0.7, 0, 0.5, 1.0),
    (1.3, 12, 0.8, 1.0),
    (1.0, 0, 1.0, 1.4),
    (0.8, 20, 0.95, 1.2),
    (2.0, 40, 0.3, 0.8),
    (0.1, 3, 0.99, 2.0),
    (1.0, 1, 1.0, 1.0),
    (1.0, 0, 0.01, 1.0),
]


def processors(temperature: float, top_k: int, top_p: float, repetition_penalty: float) -> LogitsProcessorList:
    """The list that generate() builds from these parameters, in its order."""
    steps = LogitsProcessorList()
    if repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature != 1:
        steps.append(TemperatureLogitsWarper(temperature))
    if top_k:
        steps.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        steps.append(TopPLogitsWarper(top_p))
    return steps


def main() -> None:
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((len(CASES), 61))).astype(np.float32)
    seen = rng.integers(0, 61, (len(CASES), 7))
    # float64 in and out, so that rounding decides nothing.
    want = [
        processors(*case)(torch.from_numpy(ids[None]), torch.from_numpy(row[None].astype(np.float64)))[0].numpy()
        for case, row, ids in zip(CASES, logits, seen, strict=True)
    ]
    np.savez(HERE / "sampling.npz", cases=CASES, logits=logits, seen=seen, want=want)
