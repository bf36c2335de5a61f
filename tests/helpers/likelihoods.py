"""What a model thinks of texts, for the measures of what rounding costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import DTypeLike

from refgpt.runtime.engine import Engine


def log_probabilities(engine: Engine, windows: Sequence[Sequence[int]], dtype: DTypeLike = np.float64) -> np.ndarray:
    """Of every next token in every window: [t, v], computed in this dtype."""
    logits = np.concatenate([engine.logits(ids[:-1]).astype(dtype) for ids in windows])
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))
