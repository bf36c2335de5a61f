"""The layout of matrices in the kernels: panels of 16 rows ("lanes") side by side.

At each step along the inner dimension, the 16 lanes of a panel lie together, so one load fetches a vector of them, and
every lane is a separate output. For floats a step is one number. For 8, 4 and 3 bits the inner dimension is cut into
blocks of 32 inputs that share a scale in each lane, and a step is a quad: four neighbouring inputs in 32 bits:

=======  ======================================  ==============================================================
kind     data                                    what it holds
=======  ======================================  ==============================================================
f32 ..   [n_panels, n_in, 16]                    numbers in their own dtype
q8       [n_panels, n_blocks, 544], bytes        [8 quads][16 lanes][4] signed; [16 lanes] float16 scales
q4       [n_panels, n_blocks, 288], bytes        [4 steps][16 lanes][4] bytes; [16 lanes] float16 scales
q3       [n_panels, n_blocks, 224], bytes        [3 steps][16 lanes][4] bytes; [16 lanes] float16 scales
=======  ======================================  ==============================================================

Byte i of a q4 step j holds input 8j + i in its low half and 8j + 4 + i in its high half, each plus 8. Of q3, it holds
the same inputs, each plus 4, in its bits 0 .. 2 and 3 .. 5. This leaves two bits of each byte free: there lies step 3,
whose six bits are shared out among the three bytes, two to each, the lowest to step 0. The number is scale x integer:
-128 .. 127 in 8 bits, -8 .. 7 in 4 bits, -4 .. 3 in 3 bits, which takes 8.5, 4.5 and 3.5 bits a weight. Lanes past
``n_out`` and inputs past ``n_in`` are zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from refgpt._common.arguments import one_of, whole_number
from refgpt._common.errors import KernelError
from refgpt.numbers.dtypes import COMPUTES, STORED_DTYPES, Compute
from refgpt.numbers.encoded import Encoded

LANES = 16
BLOCK = 32  # number of inputs that share a scale
ALIGNMENT = 64
#: Bytes of a block of 32 inputs and 16 lanes.
BLOCK_BYTES = {"q8": 16 * 34, "q4": 16 * 18, "q3": 16 * 14}
#: Bits of an integer.
BITS = {"q8": 8, "q4": 4, "q3": 3}
FLOATS = ("f32", "f16", "bf16")
KINDS = (*FLOATS, *BLOCK_BYTES)
#: Dtypes that can be requested for matrices when they are packed; None means as stored.
PACKED_DTYPES = (None, *FLOATS, *BLOCK_BYTES)


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A C-ordered array of zeros that begins on a cache line; large arrays take memory only where they are written."""
    n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.zeros(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes].view(dtype).reshape(shape)


def n_panels(n_rows: int) -> int:
    """Number of panels for ``n_rows`` rows."""
    return -(-n_rows // LANES)


def n_blocks(n_in: int) -> int:
    """Number of blocks for ``n_in`` inputs."""
    return -(-n_in // BLOCK)


def panel_shape(kind: str, n_out: int, n_in: int) -> tuple[int, int, int]:
    """Shape of ``Panels.data`` for a matrix [n_out, n_in]."""
    if kind in FLOATS:
        return n_panels(n_out), n_in, LANES
    return n_panels(n_out), n_blocks(n_in), BLOCK_BYTES[kind]


def panel_dtype(kind: str) -> np.dtype:
    """Dtype of ``Panels.data``."""
    return STORED_DTYPES[kind] if kind in FLOATS else np.dtype(np.uint8)


@dataclass(frozen=True, eq=False, repr=False)
class Panels(Encoded):
    """A packed matrix [n_out, n_in].

    Attributes
    ----------
    data : ndarray
        The layout that the module describes for ``kind``; begins on a cache line; possibly a read-only view into a
        file.
    kind : str
        "f32", "f16", "bf16", "q8", "q4" or "q3".
    place : str
        Where the matrix comes from, for errors.
    compute : "f32" or "bf16"
        The dtype to which linear layers round their rows before they multiply them with these weights; "bf16" for
        weights of this dtype, and of 8, 4 and 3 bits. Rows that are multiplied with these are rounded to 8 bits in any
        case; in the backward pass, "bf16" rounds these weights too.
    """

    data: np.ndarray
    n_out: int
    n_in: int
    kind: str
    place: str = "packed"
    compute: Compute = "f32"

    def __post_init__(self) -> None:
        """Refuse data that does not match the description: kernels rely on it."""
        one_of(f"{self.place}: kind", self.kind, KINDS, KernelError)
        computes = ("f32",) if self.kind in ("f32", "f16") else COMPUTES
        one_of(f"{self.place}: compute", self.compute, computes, KernelError)
        n_out = whole_number(f"{self.place}: n_out", self.n_out, 0, None, KernelError)
        n_in = whole_number(f"{self.place}: n_in", self.n_in, 0, None, KernelError)
        shape, dtype = panel_shape(self.kind, n_out, n_in), panel_dtype(self.kind)
        if not isinstance(self.data, np.ndarray):
            raise KernelError("not an array", where=self.place, got=type(self.data).__name__)
        if self.data.shape != shape or self.data.dtype != dtype:
            raise KernelError(
                "the data does not match the matrix's description",
                where=self.place,
                got=f"{self.data.dtype} {self.data.shape}",
                wanted=f"{dtype} {shape}",
            )

    @classmethod
    def zeros(cls, kind: str, n_out: int, n_in: int, place: str = "packed") -> Panels:
        """Panels for a matrix, filled with zeros."""
        return cls(aligned_zeros(panel_shape(kind, n_out, n_in), panel_dtype(kind)), n_out, n_in, kind, place)

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        return self.n_out, self.n_in

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        return self.data.dtype if self.kind in FLOATS else STORED_DTYPES["f32"]

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.kind

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return self.data.nbytes

    @property
    def numbers(self) -> np.ndarray:
        """The floating-point numbers in the data: all of them, or the scales of 8, 4 and 3 bits."""
        return self.data if self.kind in FLOATS else self.data[..., -2 * LANES :].view(np.float16)

    def part(self, first: int, last: int) -> Panels:
        """A view of rows ``first`` to ``last``; ``first`` must begin a panel."""
        if first % LANES or not 0 <= first <= last <= self.n_out:
            raise KernelError(
                "not rows of this matrix",
                where=self.place,
                got=f"{first} to {last}",
                wanted=f"0 to {self.n_out}, from a multiple of {LANES}",
            )
        return replace(self, data=self.data[first // LANES : n_panels(last)], n_out=last - first)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See ``Encoded.rows``; quantised numbers are exact in float32."""
        panels = self.data[start // LANES : n_panels(stop)]
        decoded = panels if self.kind in FLOATS else _decoded(panels, self.kind)  # [p, n_in, 16]
        lanes = decoded[:, : self.n_in].transpose(0, 2, 1).reshape(len(panels) * LANES, self.n_in)
        return lanes[start % LANES :][: stop - start]


def _decoded(panels: np.ndarray, kind: str) -> np.ndarray:
    """Decode quantised panels [p, n_blocks, bytes] to numbers [p, n_blocks x 32, 16]."""
    n, blocks, n_bytes = panels.shape
    scales = np.ascontiguousarray(panels[..., n_bytes - 32 :]).view(np.float16)  # [p, b, 16]
    integers = panels[..., : n_bytes - 32].reshape(n, blocks, n_bytes // 64, LANES, 4)
    if kind == "q3":
        first, second, third = (integers[:, :, step] >> 6 << 2 * step for step in range(3))
        integers = np.concatenate((integers, (first | second | third)[:, :, None]), axis=2)
    if kind != "q8":
        bits = BITS[kind]
        both = integers & (1 << bits) - 1, integers >> bits & (1 << bits) - 1
        quads = np.stack(both, axis=3)  # [p, b, step, 2, lane, 4]
        integers = quads.reshape(n, blocks, 8, LANES, 4).astype(np.int8) - np.int8(1 << bits - 1)
    quads = integers.view(np.int8).transpose(0, 1, 2, 4, 3)  # [p, b, quad, 4, lane]
    numbers = quads.reshape(n, blocks, BLOCK, LANES) * scales[:, :, None, :].astype(np.float32)
    return numbers.reshape(n, blocks * BLOCK, LANES)
