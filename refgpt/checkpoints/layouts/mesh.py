"""Checkpoints of Mesh Transformer JAX: ``params.json`` beside ``step_N/shard_K/J.npz``, as a directory or an archive.

A shard holds one device's arrays, in one order throughout the files J; ``Family.MESH`` lists them. The optimiser's
arrays come before the parameters and are ignored. ``params.json`` is the configuration that the model was trained with,
one of ``configs/`` in that repository. If it is not inside, put it beside the step's directory or the archive.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError
from refgpt._common.progress import Progress
from refgpt._common.small_files import is_there, read_json
from refgpt._common.wording import FRESH_COPY
from refgpt.checkpoints.checkpoint import Checkpoint, TensorInfo
from refgpt.checkpoints.families import holders
from refgpt.checkpoints.files import npz_file
from refgpt.checkpoints.layouts.mesh_archive import PARAMS_JSON, SUFFIXES, Pieces, unpack
from refgpt.checkpoints.mask import find_mask, names_of
from refgpt.numbers.mapped import file_of
from refgpt.spec.config import AnyConfig

STEP = re.compile(r"step_([0-9]{1,18})")
SHARD = re.compile(r"shard_([0-9]{1,6})")
PIECE = re.compile(r"([0-9]{1,6})\.npz")
FIRST_SHARD = "shard_0"


def is_at(path: Path) -> bool:
    """Whether a path is an archive, by its name, or a directory that holds a shard or a step's directory with one."""
    return _step_directory(path) is not None if path.is_dir() else path.name.endswith(SUFFIXES)


def open_at(path: Path, mask: str, progress: Progress | None = None) -> Checkpoint:
    """Open an archive, a step's directory, or the directory around steps; of several steps the last is used.

    Parameters and errors are those of ``open_checkpoint``. An archive is unpacked: see ``mesh_archive.unpack``.
    """
    (family,) = holders("MESH")  # such files name no family, and the program supports only one
    names = family.MESH
    step = _step_directory(path) if path.is_dir() else None
    if step is None:
        config, shards = unpack(path, _find_config(names, [path.parent]), names, progress)
    else:
        config = _find_config(names, [step, step.parent])
        shards = {k: _map_pieces(shard) for k, shard in _numbered(step, SHARD).items()}
    if config is None:
        raise ConfigError(
            f"there is no {PARAMS_JSON}",
            where=path.parent if step is None else path,
            fix=f"put the configuration that the model was trained with there; GPT-J-6B's says {names.EXAMPLE}",
        )
    leaves_there = [*names.leaf_names(config.n_layer), "step"]
    n_others, state = _last_leaves(shards, len(leaves_there), path)
    params = names.build_params([leaves[:-1] for leaves in state], config, path)
    mask, source = find_mask(mask, {}, config.n_ctx, names_of(path) + names_of(path.resolve().parent), path)
    infos = tuple(
        TensorInfo.of(name, array, _file(array, path))
        for leaves in state
        for name, array in zip(leaves_there, leaves, strict=True)
    )
    kind = f"Mesh Transformer JAX, {len(shards)} shard{'s' * (len(shards) > 1)}"
    kind += f" of {step.name}" if step is not None and STEP.fullmatch(step.name) else ""
    kind += ", and the optimiser's state, which is not read" if n_others else ""
    return Checkpoint(path, kind, family.MODEL_TYPE, config, params, mask, source, infos)


def _step_directory(path: Path) -> Path | None:
    """The directory itself if it holds shards, otherwise that of the last step in it."""
    if (path / FIRST_SHARD).is_dir():
        return path
    steps = _numbered(path, STEP, FIRST_SHARD)
    return steps[max(steps)] if steps else None


def _numbered(directory: Path, pattern: re.Pattern[str], within: str = "") -> dict[int, Path]:
    """The entries of a directory by number; of directories only those that contain ``within``. Numbers are unique."""
    numbered: dict[int, Path] = {}
    for path in sorted(directory.iterdir()):
        if (found := pattern.fullmatch(path.name)) and (path / within).exists():
            other = numbered.setdefault(int(found[1]), path)
            if other != path:
                raise CheckpointError(
                    "a number is there twice",
                    where=directory,
                    got=f"{other.name} and {path.name}",
                    fix="remove the one that is not the checkpoint's",
                )
    return numbered


def _map_pieces(shard: Path) -> Pieces:
    return {j: npz_file.read(piece) for j, piece in _numbered(shard, PIECE).items()}


def _find_config(names: Any, directories: Sequence[Path]) -> AnyConfig | None:
    for path in (directory / PARAMS_JSON for directory in directories):
        if is_there(path):
            config: AnyConfig = names.read_config(read_json(path, ConfigError), path)
            return config
    return None


def _last_leaves(shards: Mapping[int, Pieces], n: int, path: Path) -> tuple[int, list[list[np.ndarray]]]:
    """The last ``n`` leaves of each shard, and the number of leaves before them."""
    _check_numbers(shards, "the checkpoint has no shard_{}", path)
    state = []
    for k in range(len(shards)):
        _check_numbers(shards[k], f"shard_{k} has no {{}}.npz", path)
        state.append([array for j in range(len(shards[k])) for array in shards[k][j]])
    counts = sorted({len(leaves) for leaves in state})
    if len(counts) > 1 or counts[0] < n:
        raise CheckpointError(
            "arrays are missing",
            where=path,
            got=f"{' or '.join(map(str, counts))} in a shard",
            wanted=f"at least {n}, as the configuration says, and as many in every shard",
            fix="use the whole checkpoint with the params.json that came with it",
        )
    return counts[0] - n, [leaves[-n:] for leaves in state]


def _check_numbers(numbered: Mapping[int, Any], what: str, path: Path) -> None:
    """Refuse numbers other than 0, 1, ... without a gap."""
    if missing := set(range(max(numbered, default=0) + 1)) - numbered.keys():
        raise CheckpointError(what.format(min(missing)), where=path, got=f"{len(numbered)} others", fix=FRESH_COPY)


def _file(array: np.ndarray, path: Path) -> Path:
    """The file of an array. For arrays of an archive it is the archive, since the temporary files have no names."""
    mapped = file_of(array)
    return path if mapped is None or path.is_file() else mapped.path
