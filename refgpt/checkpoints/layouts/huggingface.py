"""A directory in Hugging Face's layout: config.json beside the weights, in one file or in shards with an index.

Two tables meet here: ``FORMATS`` knows how files are read, ``FAMILIES`` what tensors and keys are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError, MissingCheckpoint, MissingConfig
from refgpt._common.file_names import CONFIG, GENERATION_CONFIG, INDEX, WEIGHTS
from refgpt._common.progress import Progress
from refgpt._common.small_files import is_there, read_json
from refgpt._common.wording import FRESH_COPY, listed, shown
from refgpt.checkpoints.checkpoint import Checkpoint, TensorInfo
from refgpt.checkpoints.families import FAMILIES, OTHERS, SUPPORTED, Family
from refgpt.checkpoints.families.formats import HuggingFace
from refgpt.checkpoints.files import safetensors_file, torch_pickle
from refgpt.checkpoints.files.magic import refuse_foreign
from refgpt.checkpoints.mask import find_mask, names_of
from refgpt.spec.config import AnyConfig

FORMATS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".safetensors": safetensors_file.read,
    ".bin": torch_pickle.read,
    ".pt": torch_pickle.read,
    ".pth": torch_pickle.read,
}
#: The mask in config.json, as this package writes it: transformers has no key for it, and ignores this one.
MASK = "refgpt_mask"

SAVE = "save_pretrained(directory, safe_serialization=True)"
#: Files of weights that are not supported, by pattern: their description, and advice.
UNREAD = {
    "flax_model*.msgpack": (
        "Flax",
        f"with transformers 4: GPTJForCausalLM.from_pretrained(directory, from_flax=True).{SAVE}",
    ),
    "tf_model*.h5": (
        "TensorFlow",
        f"with transformers 4: GPTJForCausalLM.from_pretrained(directory, from_tf=True).{SAVE}",
    ),
    "*.gguf": ("called GGUF but beginning otherwise", "fetch it again: it is damaged"),
    "*ggml*.bin": ("called ggml but beginning otherwise", "fetch it again: it is damaged"),
    "adapter_model.*": (
        "a LoRA adapter",
        "load its base model with adapter=, or write the two as one with refgpt.merge_adapter",
    ),
    "*.ckpt*": ("a training checkpoint", "save the model alone: torch.save(model.state_dict(), 'pytorch_model.bin')"),
    "*.tar.zst*": ("an archive of Mesh Transformer JAX", "name the archive itself"),
    "*.tar": ("a tar archive", "unpack it and name the directory that holds the weights"),
    "*.tar.?z*": ("a tar archive", "unpack it and name the directory that holds the weights"),
    "*.npz": ("a Mesh Transformer JAX shard", "name the directory that holds step_N/shard_K/, or its archive"),
}


def is_at(path: Path) -> bool:
    """Always true: this layout is tried last, and its errors list the supported files."""
    return True


def open_at(path: Path, mask: str, progress: Progress | None = None) -> Checkpoint:
    """Open a directory, or one file of weights (or the index of its shards) with config.json beside it.

    Parameters and errors are those of ``open_checkpoint``.
    """
    directory, weights = (path, _find_weights(path)) if path.is_dir() else (path.parent, path)
    refuse_foreign(weights)  # before a config.json is missed that would not help
    if not weights.name.endswith(INDEX):
        _reader_of(weights)  # likewise
    config_path = directory / CONFIG
    raw, family = _read_config(config_path)
    names = family.HUGGING_FACE
    config = _with_generation_ids(names, names.read_config(raw, config_path), directory / GENERATION_CONFIG)
    files = _read_files(weights)
    tensors = {name: tensor for found in files.values() for name, tensor in found.items()}
    stored, buffers = names.split_names(tensors, path)
    tied = raw.get("tie_word_embeddings")
    params = names.build_params(stored, config, tied if isinstance(tied, bool) else None, path)
    called, key = _names(raw, directory), f"{MASK} in {config_path.name}"
    masks = names.masks(buffers, config.n_layer)
    mask, source = find_mask(mask, masks, config.n_ctx, called, path, key, raw.get(MASK), config.window)
    infos = tuple(TensorInfo.of(name, tensor, file) for file, found in files.items() for name, tensor in found.items())
    kind = "safetensors" if next(iter(files)).suffix == ".safetensors" else "PyTorch"
    return Checkpoint(
        path,
        f"Hugging Face, {kind}",
        family.MODEL_TYPE,
        config,
        params,
        mask,
        source,
        infos,
        config_file=config_path,
        mask_written=raw.get(MASK) == mask,
    )


def weights_in(directory: Path) -> Path | None:
    """The file of weights, or the index of shards, that a directory in this layout has."""
    return next((directory / name for name in WEIGHTS if is_there(directory / name)), None)


def _find_weights(directory: Path) -> Path:
    found = weights_in(directory)
    if found is not None:
        return found
    names = sorted(found.name for found in directory.iterdir())
    unread = {name: unread for name in names if (unread := _unread(name))}
    ways_out = dict.fromkeys(way_out for _, way_out in unread.values())
    raise MissingCheckpoint(
        "no weights that can be read",
        where=directory,
        got=listed(f"{name} ({kind}: not read)" for name, (kind, _) in unread.items())
        or listed(names)
        or "an empty directory",
        wanted=" or ".join(WEIGHTS),
        fix="; ".join(ways_out) or "name the file of weights itself if it is called otherwise",
    )


def _unread(name: str) -> tuple[str, str] | None:
    """Description of an unsupported file of weights, and advice, by its name."""
    return next((unread for pattern, unread in UNREAD.items() if fnmatch(name, pattern)), None)


def _read_config(path: Path) -> tuple[dict[str, Any], Family]:
    """The parsed config.json and the family that it names."""
    if not is_there(path):
        raise MissingConfig(
            f"there is no {CONFIG}", where=path.parent, fix="put the one that belongs to the weights beside them"
        )
    raw = read_json(path, ConfigError)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        other = OTHERS.get(model_type) if isinstance(model_type, str) else None
        called = f", which is {other}" if other else ""
        raise ConfigError(
            "this kind of model is not supported",
            where=path,
            got=f"model_type {shown(model_type)}{called}",
            wanted=listed(FAMILIES),
            fix=SUPPORTED,
        )
    return raw, FAMILIES[model_type]


def _with_generation_ids(names: HuggingFace, config: AnyConfig, path: Path) -> AnyConfig:
    """The configuration with the ids of a generation_config.json that begin and end a text, if it states them."""
    if not is_there(path):
        return config
    said = {key: value for key, value in read_json(path, ConfigError).items() if value is not None}
    return names.with_ids(config, said, path)


def _read_files(weights: Path) -> dict[Path, dict[str, np.ndarray]]:
    """The tensors of each file that the weights consist of."""
    if not weights.name.endswith(INDEX):
        return {weights: _read_file(weights)}
    weight_map = _read_index(weights)
    files = {weights.parent / name: _read_file(weights.parent / name) for name in dict.fromkeys(weight_map.values())}
    owner: dict[str, Path] = {}
    for file, found in files.items():
        for name in found:
            if name in owner:
                raise CheckpointError(
                    f"the tensor {shown(name)} is in two shards",
                    where=weights.parent,
                    got=f"{owner[name].name} and {file.name}",
                    fix="download the shards again",
                )
            owner[name] = file
    if astray := [name for name, file in weight_map.items() if owner.get(name) != weights.parent / file]:
        raise CheckpointError(
            "tensors are not in the shard that the index names",
            where=weights,
            got=listed(astray),
            fix="the index and the shards must come from the same download",
        )
    return files


def _read_index(path: Path) -> dict[str, str]:
    """The index's map from tensor to shard; every shard is a file of the same directory."""
    weight_map = read_json(path, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(
            "the index has no map from tensors to files",
            where=path,
            got=shown(weight_map),
            wanted='"weight_map": {tensor: file}',
            fix=FRESH_COPY,
        )
    here = {found.name for found in path.parent.iterdir() if not found.is_dir()}
    if absent := sorted(set(weight_map.values()) - here):
        raise MissingCheckpoint(
            "the index names files that are not in its directory",
            where=path,
            got=listed(absent),
            fix="download the missing shards",
        )
    return weight_map


def _read_file(path: Path) -> dict[str, np.ndarray]:
    return _reader_of(path)(path)


def _reader_of(path: Path) -> Callable[[Path], dict[str, np.ndarray]]:
    read = FORMATS.get(path.suffix)
    if read is None:
        kind, way_out = _unread(path.name) or (None, "")
        raise CheckpointError(
            "files of this kind are not read", where=path, got=kind, wanted=listed([*FORMATS, INDEX]), fix=way_out
        )
    return read


def _names(raw: Mapping[str, Any], directory: Path) -> tuple[str, ...]:
    """The names of a model: in its config, and in its path."""
    given = raw.get("_name_or_path")
    return ((given,) if isinstance(given, str) else ()) + names_of(directory)
