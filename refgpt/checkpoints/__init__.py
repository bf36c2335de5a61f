"""Checkpoints as people have them: files -> configuration and memory-mapped parameters."""

from refgpt.checkpoints.checkpoint import Checkpoint, TensorInfo, verify_checksums
from refgpt.checkpoints.finite import all_finite, check_finite
from refgpt.checkpoints.mapped import place_of, release
from refgpt.checkpoints.mask import MASKS, NOTHING_SAID
from refgpt.checkpoints.open import open_checkpoint
from refgpt.checkpoints.packed import Rows, lies_in_rows

__all__ = [
    "MASKS",
    "NOTHING_SAID",
    "Checkpoint",
    "Rows",
    "TensorInfo",
    "all_finite",
    "check_finite",
    "lies_in_rows",
    "open_checkpoint",
    "place_of",
    "release",
    "verify_checksums",
]
