"""Common functions of the layouts that store a model in one file: ggml and GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import listed
from refgpt.checkpoints.checkpoint import TensorInfo
from refgpt.checkpoints.files.magic import begins_with
from refgpt.checkpoints.layouts import huggingface
from refgpt.numbers.leaves import Leaf


def is_at(path: Path, magic: bytes) -> bool:
    """Whether a path is such a file, or a directory that has one and no weights in Hugging Face's layout."""
    if not path.is_dir():
        return begins_with(path, magic)
    return huggingface.weights_in(path) is None and bool(_files_in(path, magic))


def file_at(path: Path, magic: bytes) -> Path:
    """The file itself.

    Raises
    ------
    CheckpointError
        If a directory has several.
    """
    if not path.is_dir():
        return path
    found = _files_in(path, magic)
    if len(found) != 1:
        raise CheckpointError(
            "there are several models in this directory",
            where=path,
            got=listed(file.name for file in found),
            fix="name the file that you want",
        )
    return found[0]


def _files_in(directory: Path, magic: bytes) -> list[Path]:
    return sorted(file for file in directory.iterdir() if begins_with(file, magic))


def tensor_infos(tensors: Mapping[str, Leaf], path: Path) -> tuple[TensorInfo, ...]:
    """``TensorInfo`` of every tensor of the checkpoint."""
    return tuple(TensorInfo.of(name, leaf, path) for name, leaf in tensors.items())
