"""The packed format, versions 1 and 2: a directory whose matrices are stored as the kernels read them.

It is mapped, not loaded: nothing is unpacked or copied, and processes that run the same model share its pages.

==================  ==================================================================================================
file                contents
==================  ==================================================================================================
config.json         the shape, in the format of the family's config.json at Hugging Face
packed.safetensors  every leaf, as a safetensors file of bytes (dtype U8)
manifest.json       format, version, and of every other file its size and a SHA-256, which for packed.safetensors is
                    that of its header: of all bytes before the first tensor
tokenizer files     as they were beside the source
==================  ==================================================================================================

The tensors of packed.safetensors are named as ``Params.items`` names the leaves and come in that order. The header is
filled up with spaces and each tensor with zeros so that every tensor begins on a page of 4096 bytes. What a tensor
means is in the header's ``__metadata__``: ``mask`` and ``mask_source``, and ``leaves``, a JSON object that gives each
leaf its ``kind``, ``layout``, ``shape`` and ``checksum``.

- layout "panels": a matrix [n_out, n_in] in ``refgpt.numbers.panels.Panels`` of this kind. One layout serves every
  instruction set.
- layout "rows": numbers one after the other, of kind "f32", "f16" or "bf16". So lie vectors, in float32, and an
  embedding table in floats.
- checksum: see ``refgpt.numbers.checksums``; over the whole tensor, zeros at its end included.

Version 2 is version 1 with matrices of kind "q3". Files without such matrices are written as version 1, which refgpt
read before there were any.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError, MissingCheckpoint
from refgpt._common.file_names import CONFIG
from refgpt._common.progress import Progress
from refgpt._common.small_files import check_plain, is_there, parse_json, read_bytes, read_json
from refgpt._common.wording import FRESH_COPY, listed, shown, tensor_at
from refgpt.checkpoints.checkpoint import Checked, Checkpoint, TensorInfo, check_params
from refgpt.checkpoints.families import FAMILIES
from refgpt.checkpoints.files.safetensors_file import LARGEST_HEADER, read_mapped
from refgpt.checkpoints.mask import find_mask
from refgpt.numbers.dtypes import STORED_DTYPES
from refgpt.numbers.leaves import Leaf, StoredRows, widen
from refgpt.numbers.mapped import MappedFile, map_file
from refgpt.numbers.packing import Kept, lies_in_rows
from refgpt.numbers.panels import KINDS, Panels, panel_dtype, panel_shape
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import family_of, leaf_shapes

FILE, MANIFEST = "packed.safetensors", "manifest.json"
FORMAT, VERSIONS = "refgpt packed", (1, 2)
PAGE = 4096
LARGEST_SIDE_FILE = 1 << 26  # of a tokenizer
AGAIN = "convert the original model again"


@dataclass(frozen=True)
class Stored:
    """The header's entry for a leaf."""

    kind: str
    layout: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes without the padding at the end."""
        return Kept(self.kind, self.layout).n_bytes(self.shape)

    @property
    def n_padded(self) -> int:
        """Bytes in the file, with padding."""
        return -(-self.n_bytes // PAGE) * PAGE


def is_at(path: Path) -> bool:
    """Whether a path is such a directory, or the file of weights in one."""
    return path.name == FILE or (path.is_dir() and is_there(path / FILE))


def open_at(path: Path, mask: str, progress: Progress | None = None) -> Checkpoint:
    """Open it: see ``open_checkpoint``. Sizes and small files are checked; ``verify_checksums`` checks the weights."""
    directory = path if path.is_dir() else path.parent
    file = directory / FILE
    version, header_hash = _check_manifest(directory)
    raw = read_json(directory / CONFIG, ConfigError)
    model_type = raw.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            "this kind of model is not supported",
            where=directory / CONFIG,
            got=f"model_type {shown(model_type)}",
            wanted=listed(FAMILIES),
        )
    config = FAMILIES[model_type].HUGGING_FACE.read_config(raw, directory / CONFIG)
    mapped = map_file(file)
    n_header = 8 + int.from_bytes(mapped[:8], "little")
    if n_header > min(8 + LARGEST_HEADER, len(mapped)) or _sha256(mapped[:n_header]) != header_hash:
        raise CheckpointError("the header is not the one that was written", where=file, fix=FRESH_COPY)
    tensors, metadata = read_mapped(mapped)
    if n_header % PAGE or not isinstance(metadata, dict):
        raise CheckpointError("the header makes no sense", where=file, fix=AGAIN)
    listed_leaves = str(metadata.get("leaves")).encode("utf-8", "surrogatepass")
    leaves = _leaves(parse_json(listed_leaves, f"{file}, leaves", CheckpointError), config, file)
    if more := tensors.keys() - leaves.keys():  # whole pages, and nothing else: so every leaf begins on one
        raise CheckpointError("there are tensors that are no leaves", where=file, got=listed(sorted(more)), fix=AGAIN)
    params = _params(leaves, tensors, config, mapped)
    checked = tuple(
        Checked(
            _bytes_of(tensors, name, leaves[name][0], file).view(np.uint32),
            _numbers(leaf),
            leaves[name][1],
            tensor_at(file, name),
        )
        for name, leaf in params.items()
    )
    infos = tuple(
        TensorInfo(name, stored.kind, stored.shape, stored.n_bytes, file) for name, (stored, _) in leaves.items()
    )
    found, source = find_mask(mask, {}, config.n_ctx, (), file, "mask in the header", metadata.get("mask") or "")
    if mask == "auto":
        source = str(metadata.get("mask_source", source))  # of what was converted
    kind = f"{FORMAT}, version {version}"
    written = metadata.get("mask") == found
    return Checkpoint(
        path, kind, model_type, config, params, found, source, infos, checked=checked, mask_written=written
    )


def version_of(leaves: Iterable[Stored]) -> int:
    """The version in which leaves are written."""
    return 2 if any(leaf.kind == "q3" for leaf in leaves) else 1


def _check_manifest(directory: Path) -> tuple[int, str]:
    """Compare the files with the manifest. -> its version, and the SHA-256 of the header of weights

    Raises
    ------
    CheckpointError
        If it is missing or of a later version, or does not match a file.
    """
    path = directory / MANIFEST
    if not is_there(path):
        raise MissingCheckpoint(f"there is no {MANIFEST}, so the directory is not whole", where=directory, fix=AGAIN)
    manifest = read_json(path, CheckpointError)
    if manifest.get("format") != FORMAT or type(manifest.get("version")) is not int:
        raise CheckpointError(
            "this is no manifest of a packed model", where=path, got=shown(manifest.get("format")), wanted=FORMAT
        )
    if manifest["version"] not in VERSIONS:
        raise CheckpointError(
            "the files are of a version of the packed format that is not read",
            where=path,
            got=manifest["version"],
            wanted=" or ".join(map(str, VERSIONS)),
            fix=f"update refgpt, or {AGAIN}",
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not {CONFIG, FILE} <= files.keys():
        raise CheckpointError("the manifest lists no files", where=path, wanted=f"{CONFIG} and {FILE}", fix=AGAIN)
    for name, entry in files.items():
        _check_file(directory, name, entry)
    return manifest["version"], str(files[FILE]["sha256"])


def _check_file(directory: Path, name: str, entry: Any) -> None:
    if (
        Path(name).name != name
        or not name.isprintable()
        or not isinstance(entry, dict)
        or entry.keys() != {"bytes", "sha256"}
        or type(entry["bytes"]) is not int
    ):
        raise CheckpointError(
            "an entry of the manifest makes no sense",
            where=directory / MANIFEST,
            got=f"{shown(name)}: {shown(entry)}",
            fix=AGAIN,
        )
    path = directory / name
    if not is_there(path):
        raise MissingCheckpoint("a file that the manifest lists is missing", where=path, fix=AGAIN)
    check_plain(path, CheckpointError)
    n_bytes = path.stat().st_size
    if n_bytes != entry["bytes"]:
        raise CheckpointError(
            "the file is cut short" if n_bytes < entry["bytes"] else "there is data after its end",
            where=path,
            got=f"{n_bytes} bytes",
            wanted=entry["bytes"],
            fix=FRESH_COPY,
        )
    if name == FILE:
        return
    raw = read_bytes(path, CheckpointError, LARGEST_SIDE_FILE) if n_bytes else b""
    if _sha256(raw) != entry["sha256"]:
        raise CheckpointError(
            "the file is not the one that was written: its SHA-256 differs",
            where=path,
            fix=f"put the original back, or {AGAIN}",
        )


def _is_checksum(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]+", value) is not None and len(value) <= 64


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _leaves(raw: Mapping[str, Any], config: AnyConfig, file: Path) -> dict[str, tuple[Stored, str]]:
    """The header's entry for each leaf, and its checksum."""
    wanted, looked_up = leaf_shapes(config), family_of(config).Params.looked_up
    if raw.keys() != wanted.keys():
        astray = sorted(raw.keys() ^ wanted.keys())
        raise CheckpointError("the leaves do not fit the configuration", where=file, got=listed(astray), fix=AGAIN)
    leaves = {}
    for name, shape in wanted.items():
        entry = raw[name]
        if not isinstance(entry, dict) or entry.keys() != {"kind", "layout", "shape", "checksum"}:
            raise CheckpointError("the entry makes no sense", where=tensor_at(file, name), got=shown(entry), fix=AGAIN)
        kind, layout = entry["kind"], entry["layout"]
        fits = kind in KINDS and entry["shape"] == list(shape) and _is_checksum(entry["checksum"])
        rows = len(shape) == 1 or lies_in_rows(name, kind, looked_up)
        if not fits or layout != ("rows" if rows else "panels") or (len(shape) == 1 and kind != "f32"):
            raise CheckpointError(
                "a leaf is stored in a way that is not read",
                where=tensor_at(file, name),
                got=shown(entry),
                wanted=f"shape {list(shape)}",
                fix=AGAIN,
            )
        leaves[name] = Stored(kind, layout, shape), entry["checksum"]
    return leaves


def _bytes_of(tensors: Mapping[str, np.ndarray], name: str, stored: Stored, file: Path) -> np.ndarray:
    """The bytes of a leaf, including its padding."""
    tensor = tensors.get(name)
    if tensor is None or tensor.dtype != np.uint8 or tensor.shape != (stored.n_padded,):
        got = None if tensor is None else f"{tensor.dtype} {tensor.shape}"
        raise CheckpointError(
            "a leaf is missing or of another size",
            where=tensor_at(file, name),
            got=got,
            wanted=f"{stored.n_padded} bytes",
            fix=AGAIN,
        )
    return tensor


def _numbers(leaf: Leaf) -> np.ndarray:
    return leaf.numbers if isinstance(leaf, Panels) else leaf.data if isinstance(leaf, StoredRows) else widen(leaf)


def _params(
    leaves: Mapping[str, tuple[Stored, str]], tensors: Mapping[str, np.ndarray], config: AnyConfig, mapped: MappedFile
) -> ParamTree:
    found: dict[str, Leaf] = {}
    for name, (stored, _) in leaves.items():
        place, raw = tensor_at(mapped.path, name), _bytes_of(tensors, name, stored, mapped.path)[: stored.n_bytes]
        if stored.layout == "panels":
            n_out, n_in = stored.shape
            data = raw.view(panel_dtype(stored.kind)).reshape(panel_shape(stored.kind, n_out, n_in))
            found[name] = Panels(data, n_out, n_in, stored.kind, place)
        else:
            data = raw.view(STORED_DTYPES[stored.kind]).reshape(stored.shape)
            found[name] = data if data.ndim == 1 else StoredRows(data, stored.kind, place)
    params = family_of(config).Params.from_leaves(found, config.n_layer)
    check_params(params, config, where=mapped.path)
    return params
