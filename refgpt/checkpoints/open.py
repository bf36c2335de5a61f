"""Finds the layout at a path, and opens it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from refgpt._common.arguments import one_of, path_of
from refgpt._common.errors import CheckpointError, ConfigError, MissingCheckpoint
from refgpt._common.progress import Progress
from refgpt._common.small_files import check_plain, is_there, reading
from refgpt.checkpoints.checkpoint import Checkpoint
from refgpt.checkpoints.mask import MASKS


class Layout(Protocol):
    """An arrangement of a model's files: a module with these two functions."""

    def is_at(self, path: Path) -> bool:
        """Whether an existing file or directory has this layout, judged by names and first bytes."""
        ...

    def open_at(self, path: Path, mask: str, progress: Progress | None) -> Checkpoint:
        """Open it: see ``open_checkpoint``."""
        ...


def layouts() -> Iterator[Layout]:
    """All layouts. A model in the packed format imports only its own, and so starts faster.

    The first whose ``is_at`` is true is used. The last one accepts every path; its errors list the supported files.
    """
    from refgpt.checkpoints.layouts import packed

    yield packed
    from refgpt.checkpoints.layouts import ctranslate2, ggml, gguf, huggingface, mesh

    yield from (ggml, gguf, mesh, ctranslate2, huggingface)


def open_checkpoint(path: str | Path, mask: str = "auto", progress: Progress | None = None) -> Checkpoint:
    """Open a model.

    Parameters
    ----------
    path : str or Path
        A directory in the layout of Hugging Face, or one file of weights (or the index of its shards) with config.json
        beside it; a directory in the packed format; a ggml or GGUF file, or a directory with one of them; a directory
        or an archive (.tar.zst) of Mesh Transformer JAX, with params.json in or beside it; a directory of CTranslate2.
    mask : {"auto", "causal", "prefix"}
        "auto" uses the buffers ``attn.bias``, otherwise a key that ``convert`` has written, otherwise the model's name.
    progress : callable, optional
        Called as ``progress(bytes done, total bytes)`` if opening takes long, for example for an archive.

    Returns
    -------
    Checkpoint

    Raises
    ------
    CheckpointError
        If weights are missing, damaged, of wrong shapes, or contain more than tensors.
    ConfigError
        If the configuration is damaged, makes no sense or describes a model that is not supported, or ``mask`` is
        unknown.
    """
    path = path_of("path", path, CheckpointError)
    one_of("mask", mask, MASKS, ConfigError)
    with reading(path, CheckpointError):  # no permission, a name too long, a disk that fails
        if not is_there(path):
            raise MissingCheckpoint("there is no such file or directory", where=path, fix="check the path")
        check_plain(path, CheckpointError, directory=True)
        return next(layout for layout in layouts() if layout.is_at(path)).open_at(path, mask, progress)
