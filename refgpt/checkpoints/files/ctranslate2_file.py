"""The file ``model.bin`` of CTranslate2: named arrays one after the other, and aliases of some of them.

The layout is that of ``_serialize`` in https://github.com/OpenNMT/CTranslate2,
``python/ctranslate2/specs/model_spec.py``; little-endian, nothing aligned:

- u32 version of the layout, 6 in every version that knows GPT-J; the name of the specification; u32 its revision;
- u32 number of variables; of each its name, u8 rank, u32 for each dimension, u8 type, u32 bytes, the bytes;
- u32 number of aliases; of each two names, the other one and the variable's.

A name is u16 bytes, and a zero as the last of them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NoReturn

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.small_files import open_file
from refgpt._common.wording import FRESH_COPY, shown, tensor_at
from refgpt.checkpoints.files.cursor import Cursor
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.mapped import here_and_there, map_file, view

#: In the order of their ids.
DTYPES = (np.dtype("<f4"), np.dtype("i1"), np.dtype("<i2"), np.dtype("<i4"), np.dtype("<f2"), BFLOAT16)
U8, U16, U32 = (struct.Struct(kind) for kind in ("<B", "<H", "<L"))
VERSION = 6
LONGEST_NAME = 512
MOST_RANKS = 8
#: Most variables, and most aliases: GPT-J-6B has 600, and every variable takes microseconds and a kilobyte.
MOST_VARIABLES = 1 << 15
SCALE = "_scale"


@dataclass(frozen=True)
class Variables:
    """The contents of a file.

    Attributes
    ----------
    spec : str
        The kind of model, "TransformerDecoderSpec" for one.
    revision : int
        Revision of the specification.
    arrays : dict of str to ndarray
        Read-only views into the mapped file, also under their aliases.
    """

    spec: str
    revision: int
    arrays: dict[str, np.ndarray]


def spec_at(path: Path) -> str | None:
    """The kind of model that a file states; None if it is not a CTranslate2 file."""
    with open_file(path, CheckpointError) as file:
        beginning = file.read(6 + LONGEST_NAME)
    if len(beginning) < 6:
        return None
    version, n_name = struct.unpack_from("<LH", beginning)
    name = beginning[6 : 6 + n_name]
    known = version < 256 and name.endswith(b"Spec\0") and name[:-1].isalnum()
    return name[:-1].decode("ascii") if known and name.isascii() else None


def read(path: Path) -> Variables:
    """Map a file.

    Raises
    ------
    CheckpointError
        If it has another version, an invalid count, length or name, or data after its end.
    """
    mapped = map_file(path)
    with here_and_there(mapped):
        return _Reader(mapped).read()


class _Reader(Cursor):
    def read(self) -> Variables:
        if (version := self.number(U32, "its version")) != VERSION:
            raise CheckpointError(
                "the version of the file is not one that is read",
                where=self.mapped.path,
                got=version,
                wanted=VERSION,
                fix="convert the model with CTranslate2 3.11 or later",
            )
        spec, revision = self.name("the specification"), self.number(U32, "its revision")
        arrays: dict[str, np.ndarray] = {}
        for _ in range(self.count("variables")):
            name = self.name("a variable")
            if name in arrays:
                self.refuse(f"the variable {shown(name)} is there twice")
            arrays[name] = self.array(name)
        self.add_aliases(arrays)
        if self.left:
            self.refuse("there is data after the end")
        return Variables(spec, revision, arrays)

    def add_aliases(self, arrays: dict[str, np.ndarray]) -> None:
        """Add aliases. An alias of a quantised matrix is also an alias of its scale."""
        for _ in range(self.count("second names")):
            alias, name = self.name("a second name"), self.name("a variable")
            if name not in arrays or alias in arrays:
                self.refuse(f"{shown(alias)} cannot be another name of {shown(name)}")
            arrays[alias] = arrays[name]
            if name + SCALE in arrays:
                arrays.setdefault(alias + SCALE, arrays[name + SCALE])

    def array(self, name: str) -> np.ndarray:
        what, where = f"the header of {shown(name)}", tensor_at(self.mapped.path, name)
        rank = self.number(U8, what)
        if rank > MOST_RANKS:
            self.refuse(f"the rank of {shown(name)} makes no sense", rank)
        shape = tuple(self.number(U32, what) for _ in range(rank))
        kind, n_bytes = self.number(U8, what), self.number(U32, what)
        if kind >= len(DTYPES):
            raise CheckpointError(
                "the type is not one that is read",
                where=where,
                got=kind,
                wanted=f"at most {len(DTYPES) - 1}",
                fix=FRESH_COPY,
            )
        if n_bytes != prod(shape) * DTYPES[kind].itemsize:
            raise CheckpointError(
                "the bytes do not fit the shape",
                where=where,
                fix=FRESH_COPY,
                got=f"{n_bytes} bytes for {DTYPES[kind]} {list(shape)}",
            )
        start = self.skip(n_bytes, f"the variable {shown(name)}")
        return view(self.mapped, name, DTYPES[kind], start, n_bytes, shape)

    def count(self, what: str) -> int:
        """Read the number of variables or aliases."""
        n = self.number(U32, f"the number of {what}")
        if n > MOST_VARIABLES:
            self.refuse(f"the number of {what} makes no sense", n)
        return n

    def name(self, what: str) -> str:
        n = self.number(U16, f"the name of {what}")
        raw = self.take(n, f"the name of {what}") if n <= LONGEST_NAME else b""
        if not raw.endswith(b"\0") or not raw.isascii() or not raw[:-1].decode("ascii").isprintable():
            self.refuse(f"the name of {what} makes no sense", raw[:40])
        return raw[:-1].decode("ascii")

    def number(self, field: struct.Struct, what: str) -> int:
        return int(self.unpack(field, what)[0])

    def refuse(self, what: str, got: object = None) -> NoReturn:
        raise CheckpointError(
            what, where=f"{self.mapped.path}, byte {self.at}", got=None if got is None else shown(got), fix=FRESH_COPY
        )
