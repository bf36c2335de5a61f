"""The GGUF format, versions 2 and 3: metadata by key, a list of tensors, then their numbers, each on a boundary.

The layout is that of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. This module reads the file itself
instead of using the gguf library: it checks every count against the remaining bytes before allocating anything, and
makes tensors views into the mapped file. Like ggml itself, it requires tensors to be stored in order without gaps.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import FRESH_COPY, shown, tensor_at
from refgpt.checkpoints.files.cursor import Cursor
from refgpt.checkpoints.files.ggml_blocks import MOST_DIMENSIONS, encoding_of, map_tensor, n_bytes_of
from refgpt.checkpoints.files.magic import refuse_others
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.mapped import LARGEST_ARRAY, MappedFile, map_file

MAGIC = b"GGUF"
VERSIONS = (2, 3)
HEADER = struct.Struct("<4xI2Q")  # version, tensors, metadata
ALIGNMENT_KEY = "general.alignment"
DEFAULT_ALIGNMENT = 32

#: Struct formats of the numbers in metadata, by type.
SCALARS = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
STRING, ARRAY = 8, 9
U32, U64 = struct.Struct("<I"), struct.Struct("<Q")
ARRAY_HEADER = struct.Struct("<IQ")  # type of the items, and how many

#: GPT-J's file has about 25 keys, 100,000 strings (tokens and merges), 2 MB of metadata and 285 tensors.
MOST_KEYS = 1 << 12
MOST_STRINGS = 1 << 18
MOST_METADATA = 32 << 20
MOST_TENSORS = 1 << 14
LONGEST_NAME = 256


@dataclass(frozen=True)
class GgufFile:
    """A file's contents.

    Attributes
    ----------
    version : int
        Version of the format, 2 or 3.
    metadata : mapping
        By key: int, float, bool, bytes (a string: not always UTF-8), a list of bytes, or an array of numbers.
    tensors : mapping
        By name, shapes with the innermost dimension last: views into the mapped file, or ``Blocks``.
    """

    version: int
    metadata: Mapping[str, Any]
    tensors: dict[str, Leaf]


def read(path: Path) -> GgufFile:
    """Map a GGUF file.

    Raises
    ------
    CheckpointError
        If it is another kind of file, has an unsupported version or format, or an invalid count, length, offset or
        name.
    """
    mapped = map_file(path)
    refuse_others(mapped, "a GGUF file", MAGIC)
    cursor = Cursor(mapped)
    version, n_tensors, n_keys = cursor.unpack(HEADER, "its header")
    _check_version(path, version)
    for count, most, what in ((n_keys, MOST_KEYS, "keys"), (n_tensors, MOST_TENSORS, "tensors")):
        if count > most:
            raise CheckpointError(
                f"there are absurdly many {what}", where=path, got=count, wanted=f"at most {most}", fix=FRESH_COPY
            )
    metadata = _Metadata(cursor).read(n_keys)
    alignment = metadata.get(ALIGNMENT_KEY, DEFAULT_ALIGNMENT)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 16 or alignment & (alignment - 1):
        raise CheckpointError(
            "the alignment makes no sense",
            where=f"{path}, {ALIGNMENT_KEY}",
            got=shown(alignment),
            wanted="a power of two",
            fix=FRESH_COPY,
        )
    entries = [_read_entry(cursor) for _ in range(n_tensors)]
    return GgufFile(version, metadata, _map_tensors(mapped, entries, cursor.at, alignment))


def _check_version(path: Path, version: int) -> None:
    if version in VERSIONS:
        return
    swapped = int.from_bytes(version.to_bytes(4, "big"), "little")
    raise CheckpointError(
        "this version of GGUF is not read",
        where=path,
        got=f"{swapped}, big-endian" if swapped in VERSIONS else version,
        wanted="2 or 3, little-endian",
        fix="convert the original weights again with a recent program",
    )


class _Metadata:
    """Reads the keys and values. The number of strings is limited over all values together."""

    def __init__(self, cursor: Cursor) -> None:
        self.cursor, self.n_strings, self.start = cursor, 0, cursor.at

    def read(self, n_keys: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(n_keys):
            key = _name(self.cursor, "a key")
            if key in metadata:
                self.refuse("a key is there twice", key)
            (kind,) = self.cursor.unpack(U32, f"the key {shown(key)}")
            metadata[key] = self._value(kind, key)
        return metadata

    def _value(self, kind: int, key: str) -> Any:
        if kind in SCALARS:
            return self.cursor.unpack(SCALARS[kind], f"the key {shown(key)}")[0]
        if kind == STRING:
            return self._strings(1, key)[0]
        if kind != ARRAY:
            self.refuse(f"a value is of an unknown type, {kind}", key)
        kind, count = self.cursor.unpack(ARRAY_HEADER, f"the key {shown(key)}")
        if kind == STRING:
            return self._strings(count, key)
        if kind not in SCALARS:
            self.refuse(f"an array holds items of the type {kind}, which is neither a number nor a string", key)
        dtype = np.dtype(SCALARS[kind].format)
        self._grow(count * dtype.itemsize, key)
        return np.frombuffer(self.cursor.take(count * dtype.itemsize, f"the key {shown(key)}"), dtype)

    def _strings(self, count: int, key: str) -> list[bytes]:
        self.n_strings += count
        if self.n_strings > MOST_STRINGS:
            self.refuse(f"there are absurdly many strings, {self.n_strings}", key)
        found, what = [], f"the key {shown(key)}"
        for _ in range(count):
            (n_bytes,) = self.cursor.unpack(U64, what)
            self._grow(n_bytes, key)
            found.append(self.cursor.take(n_bytes, what))
        return found

    def _grow(self, n_bytes: int, key: str) -> None:
        if self.cursor.at - self.start + n_bytes > MOST_METADATA:
            self.refuse(f"the metadata is far too large, more than {MOST_METADATA} bytes", key)

    def refuse(self, what: str, key: str) -> NoReturn:
        raise CheckpointError(what, where=f"{self.cursor.mapped.path}, key {shown(key)}", fix=FRESH_COPY)


def _name(cursor: Cursor, what: str) -> str:
    (n_bytes,) = cursor.unpack(U64, what)
    if not 1 <= n_bytes <= LONGEST_NAME:
        raise CheckpointError(
            f"the length of {what} makes no sense",
            where=f"{cursor.mapped.path}, byte {cursor.at}",
            got=n_bytes,
            wanted=f"1 to {LONGEST_NAME}",
            fix=FRESH_COPY,
        )
    return cursor.take(n_bytes, what).decode("utf-8", "backslashreplace")


def _read_entry(cursor: Cursor) -> tuple[str, str, tuple[int, ...], int]:
    """Name, encoding, shape and offset of one tensor."""
    name = _name(cursor, "a tensor's name")
    where = tensor_at(cursor.mapped.path, name)
    (n_dims,) = cursor.unpack(U32, "the list of tensors")
    if not 1 <= n_dims <= MOST_DIMENSIONS:
        raise CheckpointError(
            "the number of dimensions makes no sense",
            where=where,
            got=n_dims,
            wanted=f"1 to {MOST_DIMENSIONS}",
            fix=FRESH_COPY,
        )
    dims = [cursor.unpack(U64, "the list of tensors")[0] for _ in range(n_dims)]
    n_items = 1
    for n in dims:
        n_items *= n
    if not 1 <= n_items <= LARGEST_ARRAY:
        raise CheckpointError("the dimensions make no sense", where=where, got=shown(dims), fix=FRESH_COPY)
    (number,) = cursor.unpack(U32, "the list of tensors")
    (offset,) = cursor.unpack(U64, "the list of tensors")
    return name, encoding_of(where, number), tuple(reversed(dims)), offset


def _map_tensors(
    mapped: MappedFile, entries: list[tuple[str, str, tuple[int, ...], int]], end_of_list: int, alignment: int
) -> dict[str, Leaf]:
    def aligned(n: int) -> int:
        return -(-n // alignment) * alignment

    tensors: dict[str, Leaf] = {}
    start, end = aligned(end_of_list), 0
    for name, encoding, shape, offset in entries:
        where = tensor_at(mapped.path, name)
        if name in tensors:
            raise CheckpointError("the tensor is there twice", where=where, fix=FRESH_COPY)
        if offset != aligned(end):
            raise CheckpointError(
                "the tensor does not follow the one before it",
                where=where,
                got=f"offset {offset}",
                wanted=aligned(end),
                fix=FRESH_COPY,
            )
        tensors[name] = map_tensor(mapped, name, encoding, shape, start + offset)
        end = offset + n_bytes_of(where, encoding, shape)
    if entries and len(mapped) > start + aligned(end):
        raise CheckpointError(
            "there is data after the last tensor",
            where=mapped.path,
            got=f"{len(mapped)} bytes",
            wanted=f"at most {start + aligned(end)}",
            fix=FRESH_COPY,
        )
    return tensors
