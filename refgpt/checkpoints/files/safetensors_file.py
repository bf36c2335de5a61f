"""The safetensors format: eight bytes of length, a JSON header, then the tensors' bytes side by side.

The layout is described at https://huggingface.co/docs/safetensors. This module reads the header itself instead of using
the safetensors library, because it needs the byte offsets: tensors become views into the mapped file.
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.small_files import parse_json
from refgpt._common.wording import FRESH_COPY, shown, tensor_at
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.mapped import MOST_DIMENSIONS, MappedFile, map_file, view

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": BFLOAT16,
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}

#: Size limit of the header, a hundred times what a 6B model needs.
LARGEST_HEADER = 4 << 20


def read(path: Path) -> dict[str, np.ndarray]:
    """Map a safetensors file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict of str to ndarray
        Read-only views into the mapped file, in the order of the header.

    Raises
    ------
    CheckpointError
        If a length, an offset, a dtype or a shape does not fit, or the tensors leave gaps, overlap or end early.
    """
    return read_mapped(map_file(path))[0]


def read_mapped(mapped: MappedFile) -> tuple[dict[str, np.ndarray], object]:
    """Like ``read``, for a mapped file. Also returns the header's ``__metadata__``, unchecked."""
    path = mapped.path
    header, data_start = _read_header(mapped)
    metadata = header.pop("__metadata__", None)
    tensors, spans = {}, {}
    for name, entry in header.items():
        dtype, shape, spans[name] = _check_entry(tensor_at(path, name), entry)
        start, stop = spans[name]
        if data_start + stop > len(mapped):
            raise CheckpointError(
                "the tensor reaches beyond the end of the file",
                where=tensor_at(path, name),
                got=f"bytes {start} to {stop}",
                wanted=f"at most {len(mapped) - data_start}",
                fix=FRESH_COPY,
            )
        tensors[name] = view(mapped, name, dtype, data_start + start, stop - start, shape)
    _check_tiling(path, spans, len(mapped) - data_start)
    return tensors, metadata


def _read_header(mapped: MappedFile) -> tuple[dict[str, Any], int]:
    n_bytes = int.from_bytes(mapped[:8], "little")
    most = min(LARGEST_HEADER, len(mapped) - 8)
    if n_bytes > most:
        raise CheckpointError(
            "this is no safetensors file, or it is damaged: the length of its header makes no sense",
            where=mapped.path,
            got=f"{n_bytes} bytes",
            wanted=f"at most {max(most, 0)}",
            fix=FRESH_COPY,
        )
    return parse_json(mapped[8 : 8 + n_bytes], f"{mapped.path}, header", CheckpointError), 8 + n_bytes


def _check_entry(where: str, entry: object) -> tuple[np.dtype, tuple[int, ...], tuple[int, int]]:
    """The dtype, shape and span in bytes of one tensor of the header."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(
            "the header's entry makes no sense",
            where=where,
            got=shown(entry),
            wanted="dtype, shape and data_offsets",
            fix=FRESH_COPY,
        )
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(
            "the dtype is not one that is read",
            where=where,
            got=shown(dtype),
            wanted=", ".join(DTYPES),
            fix="convert the weights to float16 or float32",
        )
    if not _sizes(shape):
        raise CheckpointError(
            "the shape makes no sense", where=where, got=shown(shape), wanted="whole numbers", fix=FRESH_COPY
        )
    if not _sizes(span) or len(span) != 2 or span[1] - span[0] != prod(shape) * DTYPES[dtype].itemsize:
        raise CheckpointError(
            "the offsets do not fit the shape",
            where=where,
            got=f"{shown(span)} for {dtype} {shown(shape)}",
            wanted="start and end, as far apart as the tensor is large",
            fix=FRESH_COPY,
        )
    return DTYPES[dtype], tuple(shape), (span[0], span[1])


def _sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= MOST_DIMENSIONS and all(type(n) is int and n >= 0 for n in value)


def _check_tiling(path: Path, spans: dict[str, tuple[int, int]], n_bytes: int) -> None:
    """The tensors must follow each other without gap or overlap and fill the file to its end."""
    end = 0
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if start != end:
            raise CheckpointError(
                "the tensor overlaps another" if start < end else "bytes before the tensor belong to none",
                where=tensor_at(path, name),
                got=f"start {start}",
                wanted=f"{end}",
                fix=FRESH_COPY,
            )
        end = stop
    if end != n_bytes:
        raise CheckpointError(
            "there is data after the last tensor", where=path, got=f"{n_bytes} bytes", wanted=f"{end}", fix=FRESH_COPY
        )
