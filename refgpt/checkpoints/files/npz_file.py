"""The files of ``numpy.savez``: zip archives of arrays, which are mapped.

The layout is that of https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. An array's header is a
Python dictionary; it is matched against NumPy's exact form, and never evaluated.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import NoReturn

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import FRESH_COPY, shown, tensor_at
from refgpt.checkpoints.files.zip_directory import Member, read_directory
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.mapped import MappedFile, here_and_there, map_file, view

#: NumPy has no bfloat16; JAX saves such arrays with the dtype "two bytes, unspecified".
DTYPES: dict[str, np.dtype] = {
    "<V2": BFLOAT16,
    "|V2": BFLOAT16,
    "<f2": np.dtype("<f2"),
    "<f4": np.dtype("<f4"),
    "<f8": np.dtype("<f8"),
    "|i1": np.dtype("i1"),
    "<i2": np.dtype("<i2"),
    "<i4": np.dtype("<i4"),
    "<i8": np.dtype("<i8"),
    "|u1": np.dtype("u1"),
    "<u2": np.dtype("<u2"),
    "<u4": np.dtype("<u4"),
    "<u8": np.dtype("<u8"),
    "|b1": np.dtype("?"),
}

MAGIC = b"\x93NUMPY"
#: Bytes of the length of a header, by the version of the format.
LENGTH_BYTES = {b"\1\0": 2, b"\2\0": 4, b"\3\0": 4}
#: NumPy pads a header to some 120 bytes.
LARGEST_HEADER = 4096
SHAPE = rb"\(((?:\d{1,19}, )*(?:\d{1,19},?)?)\)"
HEADER = re.compile(rb"\{'descr': '([<>|]\w{2,3})', 'fortran_order': (True|False), 'shape': " + SHAPE + rb", \} *\n")


def read(path: Path) -> list[np.ndarray]:
    """Map a file of ``numpy.savez(file, *arrays)``: ``read_mapped`` of it."""
    return read_mapped(map_file(path))


def read_mapped(mapped: MappedFile) -> list[np.ndarray]:
    """The arrays of a mapped file, in the order in which they were given to ``numpy.savez``.

    Returns
    -------
    list of ndarray
        Read-only views; bfloat16 is ``refgpt.numbers.dtypes.BFLOAT16``.

    Raises
    ------
    CheckpointError
        If the archive is damaged or compressed, holds anything but arr_0, arr_1, ..., or an array does not fit its
        bytes.
    """
    with here_and_there(mapped):
        members = read_directory(mapped)
        names = [f"arr_{i}.npy" for i in range(len(members))]
        if members.keys() != set(names):
            raise CheckpointError(
                "the archive does not hold arr_0, arr_1, ... and nothing else",
                where=mapped.path,
                got=shown(sorted(members.keys() - set(names))),
                fix=FRESH_COPY,
            )
        return [_map_array(mapped, members[name]) for name in names]


def _map_array(mapped: MappedFile, member: Member) -> np.ndarray:
    name = member.name.removesuffix(".npy")

    def refuse(what: str, got: object) -> NoReturn:
        raise CheckpointError(what, where=tensor_at(mapped.path, name), got=shown(got), fix=FRESH_COPY)

    start, stop = member.start, member.start + member.n_bytes
    beginning = mapped[start : min(stop, start + 12 + LARGEST_HEADER)]
    n_length = LENGTH_BYTES.get(beginning[6:8], 0)
    n_header = int.from_bytes(beginning[8 : 8 + n_length], "little")
    header_at = 8 + n_length
    found = HEADER.fullmatch(beginning[header_at : header_at + n_header])
    if beginning[:6] != MAGIC or not n_length or n_header > LARGEST_HEADER or found is None:
        refuse("this is no array as NumPy writes it", beginning[:80])
    descr, fortran, sizes = found.groups()
    dtype = DTYPES.get(descr.decode())
    if dtype is None:
        refuse("the dtype is not one that is read", descr.decode())
    shape = tuple(int(size) for size in sizes.replace(b",", b" ").split())
    start += header_at + n_header
    if prod(shape) * dtype.itemsize != stop - start:
        refuse("the array does not fill its place in the archive", f"{stop - start} bytes for {shape}")
    strides = tuple(prod(shape[:i]) for i in range(len(shape))) if fortran == b"True" else None
    return view(mapped, name, dtype, start, stop - start, shape, strides)
