"""Converts any readable checkpoint to any writable format. The result is complete, or nothing is left behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from refgpt._common.arguments import one_of, path_of
from refgpt._common.errors import CheckpointError
from refgpt._common.float_state import default_float_state
from refgpt._common.progress import Progress
from refgpt.checkpoints import Checkpoint, check_unchanged, verify_checksums
from refgpt.conversion import gguf, huggingface, packed
from refgpt.conversion.calibration_text import N_TOKENS, calibration_ids
from refgpt.conversion.staging import check_free, staged
from refgpt.conversion.tokenizer_files import tokenizer_bytes
from refgpt.kernels import digests_and_finite
from refgpt.numbers.dtypes import known_dtype
from refgpt.tokenizers import Tokenizer


class Target(Protocol):
    """The interface of a module that writes a format."""

    @property
    def DTYPES(self) -> tuple[str | None, ...]:
        """The dtypes it supports for matrices; None means as stored."""
        ...

    def n_bytes(self, source: Checkpoint, dtype: str | None) -> int:
        """Size of the written weights in bytes."""
        ...

    def write(
        self,
        source: Checkpoint,
        tokenizer: Tokenizer | None,
        dtype: str | None,
        directory: Path,
        progress: Progress | None,
    ) -> None:
        """Write the model into an empty directory, some rows at a time.

        Parameters
        ----------
        source : Checkpoint
        tokenizer : Tokenizer or None
            The one that was opened with it.
        dtype : str or None
            The dtype of matrices, one of ``DTYPES``; None means as stored. directory : Path Exists and is empty.
        progress : callable or None
            Called with the bytes that are written, and all.

        Raises
        ------
        CheckpointError
            If a weight is NaN, infinite or too large for the dtype.
        """
        ...


TARGETS: dict[str, Target] = {"refgpt": packed, "hf": huggingface, "gguf": gguf}


@default_float_state()
def convert(
    source: Checkpoint,
    tokenizer: Tokenizer | None,
    destination: str | Path,
    to: str = "refgpt",
    dtype: str | None = None,
    progress: Progress | None = None,
    calibrate: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    calibrate_tokens: int = N_TOKENS,
    calibrating: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write an opened checkpoint in another format. Only some rows are in memory at a time; all processors are used.

    Parameters
    ----------
    source : Checkpoint
    tokenizer : Tokenizer or None
        The one that was opened with it.
    destination : str or Path
        A directory that does not exist or is empty. It appears when it is complete and on the disk.
    to : "refgpt", "hf" or "gguf"
        The packed format (``refgpt.checkpoints.layouts.packed``), a directory in Hugging Face's layout, or a GGUF file.
    dtype : str or None
        The dtype of matrices, one of the target's ``DTYPES``; None means as stored.
    progress : callable, optional
        Called with the bytes that are written, and all.
    calibrate : path or sequence of paths, optional
        Texts like those that the model will read, for dtype "q4" or "q3": matrices are rounded so that the outputs on
        them stay close (``refgpt.numbers.compensated``), which takes hours instead of a minute for a model of 6 billion
        weights. The same call resumes an interrupted run, from files in a hidden directory beside the destination.
    calibrate_tokens : int
        How many tokens to take of these texts.
    calibrating : callable, optional
        Called after each matrix with its name, the number of weights rounded so far, and the number of all.

    Raises
    ------
    CheckpointError
        If an argument cannot be used, the destination exists, the disk is too full, or a weight cannot be written.
    DataError
        If a text to calibrate with cannot be read, or there is too little.
    """
    dtype = known_dtype(dtype)
    one_of("to", to, tuple(TARGETS), CheckpointError)
    target = TARGETS[to]
    one_of("dtype", dtype, target.DTYPES, CheckpointError)
    check_unchanged(*(leaf for _, leaf in source.params.items()))  # the size of the output may depend on the weights
    n_bytes = target.n_bytes(source, dtype) + tokenizer_bytes(source, tokenizer)
    place = path_of("destination", destination, CheckpointError)
    with ExitStack() as stack:
        if calibrate is not None:
            from refgpt.conversion.calibrate import KINDS, calibrated

            if dtype not in KINDS:
                raise CheckpointError(
                    "only 4 and 3 bits are calibrated",
                    where="dtype",
                    got=dtype,
                    wanted="q4 or q3",
                    fix="leave out calibrate (--calibrate)",
                )
            check_free(place)
            ids = calibration_ids(source, tokenizer, calibrate, calibrate_tokens)
            source = stack.enter_context(calibrated(source, dtype, ids, place, calibrating))
        with staged(place, n_bytes) as directory:
            verify_checksums(source, digests_and_finite)
            target.write(source, tokenizer, dtype, directory, progress)
