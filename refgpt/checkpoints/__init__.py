"""Checkpoints as people have them: files -> configuration and memory-mapped parameters."""

from refgpt.checkpoints.checkpoint import Checkpoint, TensorInfo
from refgpt.checkpoints.finite import all_finite, check_finite
from refgpt.checkpoints.mapped import place_of, release
from refgpt.checkpoints.mask import MASKS, NOTHING_SAID
from refgpt.checkpoints.open import open_checkpoint

__all__ = [
    "MASKS",
    "NOTHING_SAID",
    "Checkpoint",
    "TensorInfo",
    "all_finite",
    "check_finite",
    "open_checkpoint",
    "place_of",
    "release",
]
