"""Reading checkpoints: from files to a configuration and memory-mapped parameters."""

from refgpt.checkpoints.checkpoint import Checkpoint, TensorInfo, check_params, verify_checksums
from refgpt.checkpoints.mask import MASKS, NOTHING_SAID
from refgpt.checkpoints.open import open_checkpoint
from refgpt.numbers.finite import all_finite, check_finite
from refgpt.numbers.leaves import StoredRows as Rows
from refgpt.numbers.mapped import check_unchanged, files_of, in_memory, place_of, release
from refgpt.numbers.packing import lies_in_rows

__all__ = [
    "MASKS",
    "NOTHING_SAID",
    "Checkpoint",
    "Rows",
    "TensorInfo",
    "all_finite",
    "check_finite",
    "check_params",
    "check_unchanged",
    "files_of",
    "in_memory",
    "lies_in_rows",
    "open_checkpoint",
    "place_of",
    "release",
    "verify_checksums",
]
