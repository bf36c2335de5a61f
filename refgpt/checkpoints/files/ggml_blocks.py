"""The number formats of ggml, which its own files and GGUF share: plain floats, and blocks of quantised numbers.

A block holds 32 neighbours of one row: small integers and a float16 scale, in some formats also a float16 that is added
("least"). The layouts are those of quantisation version 2 (ggml's structs ``block_q4_0`` and on, May 2023):

======  =========================================  ==================================
format  a block's bytes                            number
======  =========================================  ==================================
q4_0    scale, 16 bytes of halves                  scale x (half - 8)
q4_1    scale, least, 16 bytes of halves           scale x half + least
q5_0    scale, 32 fifth bits, 16 bytes of halves   scale x (half + 16 bit - 16)
q5_1    scale, least, 32 bits, 16 bytes of halves  scale x (half + 16 bit) + least
q8_0    scale, 32 signed bytes                     scale x byte
======  =========================================  ==================================

The low halves of the 16 bytes are the numbers 0 to 15, the high halves 16 to 31. Every product is exact in float32, and
a sum is rounded once, so there is one right answer, which ``decode`` gives. None of it is exact in float16 or bfloat16.

A block of q6_K holds 256 numbers: 128 bytes with the lower four bits of each, 64 with the upper two, 16 signed bytes, a
scale. A number is scale x byte x (six bits - 32), where a byte goes with 16 neighbours. Of each half of the block, bits
lie as four runs of 32 numbers: the low halves of 64 bytes are two runs, the high halves the others, and pairs of bits
of 32 bytes are the four.

Files of versions 0 and 1 (of before 19 May 2023) have other blocks (``EARLIER``): q4_0, q4_1 and q8_0 have float32
scales, and in version 0 neighbours share a byte, the first in its low half. q4_2 and q4_3 are q4_0 and q4_1 in blocks
of 16 with float16 scales, in version 0 alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import FRESH_COPY, shown, tensor_at
from refgpt.numbers.dtypes import STORED_DTYPES
from refgpt.numbers.encoded import Encoded
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.mapped import MappedFile, release, view

BLOCK = 32
#: The blocks read here; little-endian.
BLOCKS: dict[str, np.dtype] = {
    "q4_0": np.dtype([("scale", "<f2"), ("halves", "u1", 16)]),
    "q4_1": np.dtype([("scale", "<f2"), ("least", "<f2"), ("halves", "u1", 16)]),
    "q5_0": np.dtype([("scale", "<f2"), ("fifth", "u1", 4), ("halves", "u1", 16)]),
    "q5_1": np.dtype([("scale", "<f2"), ("least", "<f2"), ("fifth", "u1", 4), ("halves", "u1", 16)]),
    "q8_0": np.dtype([("scale", "<f2"), ("bytes", "i1", 32)]),
    "q6_K": np.dtype([("lower", "u1", 128), ("upper", "u1", 64), ("factors", "i1", 16), ("scale", "<f2")]),
}
#: Those of earlier versions of the quantisation, by names of this package's own. In v0 neighbours share a byte.
EARLIER: dict[str, np.dtype] = {
    "q4_0 v0": np.dtype([("scale", "<f4"), ("halves", "u1", 16)]),
    "q4_1 v0": np.dtype([("scale", "<f4"), ("least", "<f4"), ("halves", "u1", 16)]),
    "q4_2 v0": np.dtype([("scale", "<f2"), ("halves", "u1", 8)]),
    "q4_3 v0": np.dtype([("scale", "<f2"), ("least", "<f2"), ("halves", "u1", 8)]),
    "q5_0 v0": BLOCKS["q5_0"],
    "q5_1 v0": BLOCKS["q5_1"],
    "q8_0 v0": np.dtype([("scale", "<f4"), ("bytes", "i1", 32)]),
    "q4_0 v1": np.dtype([("scale", "<f4"), ("halves", "u1", 16)]),
    "q4_1 v1": np.dtype([("scale", "<f4"), ("least", "<f4"), ("halves", "u1", 16)]),
    "q8_0 v1": np.dtype([("scale", "<f4"), ("bytes", "i1", 32)]),
}
LAYOUTS = BLOCKS | EARLIER
#: How many numbers a block holds, if not ``BLOCK``.
SIZES = {"q6_K": 256, "q4_2 v0": 16, "q4_3 v0": 16}
#: What is taken from the integers of formats whose numbers lie on both sides of zero.
MIDDLE = {"q4_0": 8, "q4_2": 8, "q5_0": 16, "q6_K": 32}

#: The numbers of formats (``enum ggml_type``), read or not. 4 and 5 have been removed; what is not here is newer.
TYPES = {
    0: "f32",
    1: "f16",
    2: "q4_0",
    3: "q4_1",
    4: "q4_2",
    5: "q4_3",
    6: "q5_0",
    7: "q5_1",
    8: "q8_0",
    9: "q8_1",
    10: "q2_K",
    11: "q3_K",
    12: "q4_K",
    13: "q5_K",
    14: "q6_K",
    15: "q8_K",
    16: "iq2_xxs",
    17: "iq2_xs",
    18: "iq3_xxs",
    19: "iq1_s",
    20: "iq4_nl",
    21: "iq3_s",
    22: "iq2_s",
    23: "iq4_xs",
    24: "i8",
    25: "i16",
    26: "i32",
    27: "i64",
    28: "f64",
    29: "iq1_m",
    30: "bf16",
    34: "tq1_0",
    35: "tq2_0",
    39: "mxfp4",
}
FLOATS = ("f32", "f16", "bf16")
READ = (*FLOATS, *BLOCKS)

MOST_DIMENSIONS = 4  # of any ggml tensor
#: The way out of a format that is not read.
REQUANTISE = "convert the original weights again: q8_0, q6_K, q5_1, q5_0, q4_1, q4_0, f16 and f32 are read"


@dataclass(frozen=True, eq=False, repr=False)
class Blocks(Encoded):
    """A matrix [n_out, n_in] stored in blocks along its rows.

    Attributes
    ----------
    blocks : ndarray [n_out, n_in / 32]
        Of one of the dtypes of ``LAYOUTS``; usually a view into a mapped file.
    encoding : str
        Its name in ``BLOCKS``.
    place : str
        Its file and its name in the file, for errors.
    """

    blocks: np.ndarray
    encoding: str
    place: str

    dtype = STORED_DTYPES["f32"]

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.blocks.shape[0], self.blocks.shape[1] * SIZES.get(self.encoding, BLOCK)

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return self.blocks.nbytes

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See ``Encoded.rows``."""
        return decode(self.blocks[start:stop], self.encoding)

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """See ``Encoded.__getitem__``."""
        return decode(self.blocks[ids], self.encoding)

    def release(self) -> None:
        """See ``Encoded.release``."""
        release(self.blocks)


def decode(blocks: np.ndarray, encoding: str) -> np.ndarray:
    """The numbers of some rows of blocks [n, b]: float32 [n, b x 32]; NaN where a scale is none."""
    names = LAYOUTS[encoding].names or ()
    numbers = integers(blocks, encoding).astype(np.float32)
    scale = blocks["scale"].astype(np.float32)[..., None]
    with np.errstate(invalid="ignore", over="ignore"):
        if "factors" in names:
            scale = np.repeat(scale * blocks["factors"], 16, axis=-1)
        numbers *= scale
        if "least" in names:
            numbers += blocks["least"].astype(np.float32)[..., None]
    return numbers.reshape(len(blocks), -1)


def integers(blocks: np.ndarray, encoding: str) -> np.ndarray:
    """What the scales multiply, of blocks [n, b]: [n, b, 32] of int8."""
    names = LAYOUTS[encoding].names or ()
    kind, _, version = encoding.partition(" ")
    if "bytes" in names:
        return blocks["bytes"]
    if "upper" in names:
        lower = (
            blocks["lower"].reshape(*blocks.shape, 2, 1, 64) >> np.array([[0], [4]], np.uint8) & 15
        )  # [.., 2, 2, 64]
        upper = blocks["upper"].reshape(*blocks.shape, 2, 1, 32) >> np.array([[0], [2], [4], [6]], np.uint8) & 3
        found = lower.reshape(*blocks.shape, 256) | upper.reshape(*blocks.shape, 256) << np.uint8(4)
        return found.view(np.int8) - np.int8(MIDDLE[kind])
    halves = blocks["halves"]
    pair = (halves & 15, halves >> 4)
    neighbours = version == "v0"
    found = np.stack(pair, axis=-1).reshape(*blocks.shape, -1) if neighbours else np.concatenate(pair, axis=-1)
    if "fifth" in names:
        found |= np.unpackbits(blocks["fifth"], axis=-1, bitorder="little") << np.uint8(4)
    return found.view(np.int8) - np.int8(MIDDLE.get(kind, 0))


def n_bytes_of(where: str, encoding: str, shape: tuple[int, ...]) -> int:
    """Number of bytes of a tensor.

    Raises
    ------
    CheckpointError
        If its rows cannot be cut into blocks; ``where`` is named.
    """
    if encoding in FLOATS:
        return prod(shape) * STORED_DTYPES[encoding].itemsize
    block = SIZES.get(encoding, BLOCK)
    if len(shape) != 2 or shape[1] % block:
        raise CheckpointError(
            f"only a matrix whose rows are multiples of {block} can be in {encoding}",
            where=where,
            got=shown(list(shape)),
            fix=REQUANTISE,
        )
    return prod(shape) // block * LAYOUTS[encoding].itemsize


def encoding_of(where: str, number: int) -> str:
    """The name of a format by its number.

    Raises
    ------
    CheckpointError
        If it is not one that is read; ``where`` is named.
    """
    name = TYPES.get(number)
    if name not in READ:
        got = f"type {number}" if name is None else f"{name} (type {number})"
        raise CheckpointError(
            "the tensor's format is not read", where=where, got=got, wanted=", ".join(READ), fix=REQUANTISE
        )
    return name


def map_tensor(mapped: MappedFile, name: str, encoding: str, shape: tuple[int, ...], start: int) -> Leaf:
    """A tensor as a view of ``n_bytes_of`` bytes from ``start`` of a mapped file; nothing is read.

    Raises
    ------
    CheckpointError
        If the file ends before the tensor does.
    """
    where = tensor_at(mapped.path, name)
    n_bytes = n_bytes_of(where, encoding, shape)
    if start + n_bytes > len(mapped):
        raise CheckpointError(
            "the tensor reaches beyond the end of the file",
            where=where,
            got=f"bytes {start} to {start + n_bytes}",
            wanted=f"at most {len(mapped)}",
            fix=FRESH_COPY,
        )
    if encoding in FLOATS:
        return view(mapped, name, STORED_DTYPES[encoding], start, n_bytes, shape)
    n_blocks = shape[1] // SIZES.get(encoding, BLOCK)
    blocks = view(mapped, name, LAYOUTS[encoding], start, n_bytes, (shape[0], n_blocks))
    return Blocks(blocks, encoding, where)
