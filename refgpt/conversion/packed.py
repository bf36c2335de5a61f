"""Writing the packed format, which ``refgpt.checkpoints.layouts.packed`` describes and reads."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refgpt._common.file_names import CONFIG
from refgpt._common.progress import Progress
from refgpt.checkpoints import Checkpoint, check_unchanged
from refgpt.checkpoints.layouts.packed import FILE, FORMAT, MANIFEST, PAGE, Stored, version_of
from refgpt.conversion.huggingface import config_json
from refgpt.conversion.leaves import PIECE
from refgpt.conversion.tokenizer_files import write_tokenizer
from refgpt.kernels import digests, store
from refgpt.numbers.checksums import PIECE_WORDS, checksum
from refgpt.numbers.leaves import Leaf, StoredRows
from refgpt.numbers.mapped import release
from refgpt.numbers.packing import Kept, parts, plan
from refgpt.numbers.panels import PACKED_DTYPES, Panels
from refgpt.tokenizers import Tokenizer

DTYPES = PACKED_DTYPES
#: Bytes that are written at once: the system keeps large pieces in large pages, which are mapped much faster.
BUFFER = 1 << 24
NO_CHECKSUM = "0" * len(checksum(np.zeros(0, np.uint64)))


def write(
    source: Checkpoint,
    tokenizer: Tokenizer | None,
    dtype: str | None,
    directory: Path,
    progress: Progress | None = None,
) -> None:
    """Write config.json, the tokenizer, the weights and the manifest, some rows of a matrix at a time: see
    ``Target.write``. Vectors are float32; for matrices see ``refgpt.numbers.packing.plan``.
    """
    (directory / CONFIG).write_text(json.dumps(config_json(source), indent=2) + "\n", encoding="utf-8")
    write_tokenizer(source, tokenizer, directory)
    entries = {path.name: _entry(path.read_bytes()) for path in sorted(directory.iterdir())}
    stored = stored_leaves(source, dtype)
    checksums = dict.fromkeys(stored, NO_CHECKSUM)
    n_done, n_total = 0, sum(one.n_padded for one in stored.values())
    with (directory / FILE).open("wb", buffering=BUFFER) as file:
        file.write(_header(source, stored, checksums))
        for name, leaf in source.params.items():
            check_unchanged(leaf)
            tensor = _Tensor(file)
            for piece in _pieces(name, leaf, stored[name]):
                n_done += tensor.write(piece)
                if progress is not None:
                    progress(n_done, n_total)
            n_done += tensor.pad()
            checksums[name] = tensor.checksum()
            release(leaf)
        if progress is not None:
            progress(n_done, n_total)
        header = _header(source, stored, checksums)
        file.seek(0)
        file.write(header)
    entries[FILE] = _entry(header) | {"bytes": len(header) + n_total}
    manifest = {"format": FORMAT, "version": version_of(stored.values()), "files": entries}
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def stored_leaves(source: Checkpoint, dtype: str | None) -> dict[str, Stored]:
    """How each leaf will be stored."""
    kept = {
        name: (plan(name, leaf, dtype, source.params.looked_up), leaf.shape) for name, leaf in source.params.items()
    }
    return {name: Stored(how.kind, how.layout, shape) for name, (how, shape) in kept.items()}


def n_bytes(source: Checkpoint, dtype: str | None) -> int:
    """Number of bytes that ``write`` writes, without the small files."""
    return sum(one.n_padded for one in stored_leaves(source, dtype).values())


def _entry(raw: bytes) -> dict[str, Any]:
    return {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}


def _header(source: Checkpoint, stored: dict[str, Stored], checksums: dict[str, str]) -> bytes:
    """The header, after eight bytes with its length. Its length does not depend on the checksums."""
    leaves = {
        name: {"kind": one.kind, "layout": one.layout, "shape": list(one.shape), "checksum": checksums[name]}
        for name, one in stored.items()
    }
    metadata = {
        "format": FORMAT,
        "version": str(version_of(stored.values())),
        "mask": source.mask,
        "mask_source": source.mask_source,
        "leaves": json.dumps(leaves, separators=(",", ":")),
    }
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, one in stored.items():
        header[name] = {"dtype": "U8", "shape": [one.n_padded], "data_offsets": [at, at + one.n_padded]}
        at += one.n_padded
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    return struct.pack("<Q", len(text)) + text


def _pieces(name: str, leaf: Leaf, stored: Stored) -> Iterator[np.ndarray]:
    """The bytes of a leaf as they are stored, in order."""
    kept = Kept(stored.kind, stored.layout)
    if isinstance(leaf, StoredRows | Panels) and kept.holds(leaf):
        yield from _as_they_are(leaf.data)
        return
    for part in parts(name, leaf, kept, store):
        yield (part.data if isinstance(part, Panels) else part).reshape(-1).view(np.uint8)


def _as_they_are(data: np.ndarray) -> Iterator[np.ndarray]:
    whole = data.reshape(-1).view(np.uint8)
    for start in range(0, len(whole), PIECE):
        yield whole[start : start + PIECE]


class _Tensor:
    """Writes a tensor to a file, padded to whole pages, and computes the digests of its pieces."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._n_bytes = file, 0
        self._rest = np.empty(0, np.uint8)  # bytes of the incomplete piece
        self._digests: list[np.ndarray] = []

    def write(self, raw: np.ndarray) -> int:
        """Write its next bytes, and return their number."""
        self._file.write(raw.data)
        self._n_bytes += len(raw)
        waiting = np.concatenate((self._rest, raw))
        whole = len(waiting) // (4 * PIECE_WORDS) * 4 * PIECE_WORDS
        self._digests.append(digests(waiting[:whole].view(np.uint32)))
        self._rest = waiting[whole:].copy()
        return len(raw)

    def pad(self) -> int:
        """Write zeros up to the next page, and return their number."""
        return self.write(np.zeros(-self._n_bytes % PAGE, np.uint8))

    def checksum(self) -> str:
        """The checksum of the whole tensor, after it was padded."""
        return checksum(np.concatenate((*self._digests, digests(self._rest.view(np.uint32)))))
