"""The coordinator's progress on disk: one file of safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.arguments import directory_of, number, path_of, whole_number
from refgpt._common.errors import CheckpointError
from refgpt._common.small_files import parse_json
from refgpt.checkpoints.files.safetensors_file import read_mapped
from refgpt.conversion.tensor_files import write_tensors
from refgpt.numbers.finite import check_finite
from refgpt.numbers.mapped import map_file

PROGRESS, VERSION = "coordinator.safetensors", 1
ARRAYS = ("weights", "momentum", "lost")


def write_progress(
    directory: str | Path,
    round_: int,
    fingerprint: int,
    arrays: Mapping[str, np.ndarray],
    n_bytes: tuple[float, float],
) -> None:
    """Write it to a directory, which is made if it is not there.

    Raises
    ------
    CheckpointError
        If it cannot be written.
    """
    place = directory_of("directory", directory, CheckpointError)
    told = {"version": VERSION, "round": round_, "layout": fingerprint, "sent": n_bytes[0], "received": n_bytes[1]}
    write_tensors(place / PROGRESS, arrays, {"refgpt_coordinator": json.dumps(told)})


def read_round(directory: str | Path) -> int:
    """The round from which a training goes on; 0 if there is nothing yet.

    Raises
    ------
    CheckpointError
        If what is there is damaged.
    """
    path = path_of("directory", directory, CheckpointError) / PROGRESS
    return whole_number("round", _opened(path)[1].get("round"), 0, None, CheckpointError) if path.exists() else 0


def read_progress(
    directory: str | Path, fingerprint: int, n: int
) -> tuple[int, dict[str, np.ndarray], tuple[float, float]]:
    """What ``write_progress`` wrote: the round, arrays [n], and the bytes sent and received (0 in older files).

    Raises
    ------
    CheckpointError
        If it is not there, damaged, or of another model.
    """
    path = path_of("directory", directory, CheckpointError) / PROGRESS
    tensors, told = _opened(path)
    if told.get("layout") != fingerprint:
        raise CheckpointError("is of another model, or trains other weights of it", where=path)
    for name in ARRAYS:
        tensor = tensors.get(name)
        if tensor is None or tensor.shape != (n,) or tensor.dtype != np.float32:
            raise CheckpointError("is damaged", where=path, got=f"{name} is not {n} numbers of float32")
        check_finite(f"{path}, {name}", tensor)
    round_ = whole_number("round", told.get("round"), 0, None, CheckpointError)
    sent, received = (number(name, told.get(name, 0.0), 0, None, CheckpointError) for name in ("sent", "received"))
    return round_, {name: tensors[name] for name in ARRAYS}, (sent, received)


def _opened(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors, metadata = read_mapped(map_file(path))
    text = metadata.get("refgpt_coordinator") if isinstance(metadata, dict) else None
    if not isinstance(text, str):
        raise CheckpointError("is no progress of a coordinator", where=path)
    told = parse_json(text.encode(), path, CheckpointError)
    if told.get("version") != VERSION:
        raise CheckpointError("is of another version", where=path, got=told.get("version"), wanted=VERSION)
    return tensors, told
