"""Checkpoints as people have them: files -> configuration and memory-mapped parameters."""

from refgpt.checkpoints.finite import all_finite, check_finite
from refgpt.checkpoints.huggingface import MASKS, Checkpoint, TensorInfo, open_checkpoint
from refgpt.checkpoints.mapped import place_of, release
from refgpt.checkpoints.mask import NOTHING_SAID

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
