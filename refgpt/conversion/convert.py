"""From any checkpoint that is read to any format that is written: whole, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from refgpt._common.arguments import one_of, path_of
from refgpt._common.errors import CheckpointError
from refgpt._common.float_state import default_float_state
from refgpt._common.progress import Progress
from refgpt.checkpoints import Checkpoint, check_unchanged, verify_checksums
from refgpt.conversion import gguf, huggingface, packed
from refgpt.conversion.staging import staged
from refgpt.conversion.tokenizer_files import tokenizer_bytes
from refgpt.kernels import digests
from refgpt.numbers.dtypes import known_dtype
from refgpt.tokenizers import Tokenizer


class Target(Protocol):
    """A format that is written: a module."""

    @property
    def DTYPES(self) -> tuple[str | None, ...]:
        """What it can give matrices; None is what they are stored in."""
        ...

    def n_bytes(self, source: Checkpoint, dtype: str | None) -> int:
        """How large the weights become."""
        ...

    def write(
        self,
        source: Checkpoint,
        tokenizer: Tokenizer | None,
        dtype: str | None,
        directory: Path,
        progress: Progress | None,
    ) -> None:
        """Fill an empty directory, in the memory of some rows.

        Parameters
        ----------
        source : Checkpoint
        tokenizer : Tokenizer or None
            The one that was opened with it.
        dtype : str or None
            What matrices become, one of ``DTYPES``; None is as stored.
        directory : Path
            Exists and is empty.
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
) -> None:
    """Write an opened checkpoint in another format. Memory holds some rows of it at a time; all processors work.

    Parameters
    ----------
    source : Checkpoint
    tokenizer : Tokenizer or None
        The one that was opened with it.
    destination : str or Path
        A directory that is not there yet, or is empty. It appears when it is whole and on the disk.
    to : "refgpt", "hf" or "gguf"
        The packed format (``refgpt.checkpoints.layouts.packed``), a directory in Hugging Face's layout, or a GGUF file.
    dtype : str or None
        What matrices become, one of the target's ``DTYPES``; None is as stored.
    progress : callable, optional
        Called with the bytes that are written, and all.

    Raises
    ------
    CheckpointError
        If an argument cannot be used, the destination is taken, the disk has no room, or a weight cannot be written.
    """
    dtype = known_dtype(dtype)
    one_of("to", to, tuple(TARGETS), CheckpointError)
    target = TARGETS[to]
    one_of("dtype", dtype, target.DTYPES, CheckpointError)
    check_unchanged(*(leaf for _, leaf in source.params.items()))  # the size of what is written may depend on numbers
    n_bytes = target.n_bytes(source, dtype) + tokenizer_bytes(source, tokenizer)
    with staged(path_of("destination", destination, CheckpointError), n_bytes) as directory:
        verify_checksums(source, digests)
        target.write(source, tokenizer, dtype, directory, progress)
