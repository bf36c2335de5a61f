"""Linear layers: matrices are packed into panels once, and rows are prepared for them once per pass."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import KernelError
from refgpt.kernels.calling import (
    SMALLEST_PIECE,
    Program,
    arguments,
    check_apart,
    check_array,
    check_panels,
    check_shape,
    check_whole,
    even_grain,
    float_kind,
    floats,
    output,
    output_panels,
    run,
    table_row,
)
from refgpt.kernels.native import FEW_ROWS, ROW_GROUP, ffi
from refgpt.kernels.ops import residual
from refgpt.kernels.registry import Kernel
from refgpt.numbers.adapted import Adapted, Mixed, RowsAdapter, Scratch
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.panels import (
    ALIGNMENT,
    BLOCK,
    FLOATS,
    LANES,
    Panels,
    aligned_zeros,
    n_blocks,
    n_panels,
    panel_dtype,
    panel_shape,
)

#: Like ``SMALLEST_PIECE``, for bytes.
SMALLEST_QUANTISED_PIECE = 1 << 19
#: Panels for which many rounded rows are unpacked once, where there are so many.
UNPACKED_ONCE = 16
#: Smallest number of elements to be packed or rounded that is worth waking a thread for.
SMALLEST_PACKED_PIECE = 1 << 15
RECORD = BLOCK + 8  # bytes of a quantised row's block: integers, scale, sum
PAIR = np.dtype(np.uint32)  # two bfloat16, the even input in the lower half


class LinearInput:
    """Rows [t, n_in], and the forms in which linear layers read them. Each form is made when it is first needed.

    Layers with float weights read up to 8 rows unchanged. They read more rows as panels, or, if they multiply in
    bfloat16, as pairs of rounded numbers (``round_rows``). Layers with weights of 8, 4 and 3 bits read rows rounded to
    8 bits by blocks (``quantise_rows``). Layers that read the same rows share this work.

    Parameters
    ----------
    x : ndarray [t, n_in]
    scratch : ndarray, optional
        Memory for the forms: ``scratch_bytes`` bytes (uint8, on a cache line).
    threads, program
        See ``refgpt.kernels.ops``.
    """

    def __init__(
        self,
        x: np.ndarray,
        scratch: np.ndarray | None = None,
        *,
        threads: int | None = None,
        program: Program | None = None,
    ) -> None:
        self.x = x
        self.shape = check_shape("x", x, (None, None))
        self._scratch, self._threads, self._program = scratch, threads, program
        self._n_forms = 0  # in the scratch
        self._panels: Panels | None = None
        self._rounded: np.ndarray | None = None
        self._quantised: np.ndarray | None = None
        self._parts: dict[tuple[int, int], LinearInput] = {}

    def part(self, start: int, stop: int) -> LinearInput:
        """Some neighbouring rows."""
        if (start, stop) == (0, self.shape[0]):
            return self
        if (start, stop) not in self._parts:
            some = LinearInput(self.x[start:stop], threads=self._threads, program=self._program)
            self._parts[start, stop] = some
        return self._parts[start, stop]

    def packed(self) -> Panels:
        """The rows as panels."""
        if self._panels is None:
            n_rows, n_in = self.shape
            shape, dtype = panel_shape("f32", n_rows, n_in), panel_dtype("f32")
            room = self._room(dtype.itemsize * prod(shape)).view(dtype).reshape(shape)
            panels = Panels(room, n_rows, n_in, "f32")
            self._panels = pack(self.x, panels, threads=self._threads, program=self._program)
        return self._panels

    def rounded(self) -> np.ndarray:
        """The rows rounded to bfloat16: pairs [ceil(t / 16), ceil(n_in / 2), 16]."""
        if self._rounded is None:
            shape = _pairs_shape(*self.shape)
            room = self._room(PAIR.itemsize * prod(shape)).view(PAIR).reshape(shape)
            self._rounded = round_rows(self.x, room, threads=self._threads, program=self._program)
        return self._rounded

    def quantised(self) -> np.ndarray:
        """The rows rounded to 8 bits, as records [n_bytes]."""
        if self._quantised is None:
            n_rows, n_in = self.shape
            room = self._room(n_rows * n_blocks(n_in) * RECORD)
            self._quantised = quantise_rows(self.x, room, threads=self._threads, program=self._program)
        return self._quantised

    def _room(self, n_bytes: int) -> np.ndarray:
        room = self._scratch
        if room is None or (self._n_forms and room.size < n_bytes):
            return aligned_zeros((n_bytes,), np.dtype(np.uint8))
        check_array("scratch", room)
        if room.dtype != np.uint8 or room.ndim != 1 or room.size < n_bytes:
            raise KernelError(
                "too small or not of bytes",
                where="scratch",
                got=f"{room.dtype} {room.shape}",
                wanted=f"uint8 ({n_bytes},)",
            )
        self._n_forms += 1
        self._scratch = room[-(-n_bytes // ALIGNMENT) * ALIGNMENT :]
        return room[:n_bytes]


def scratch_bytes(n_rows: int, n_in: int) -> int:
    """Most bytes of the forms of ``n_rows`` rows of up to ``n_in`` inputs.

    With an adapter a layer's rows have two forms, such as panels and pairs; a second form that does not fit gets memory
    of its own.
    """
    n_rows, n_in = (whole_number(name, n, 0, None, KernelError) for name, n in (("n_rows", n_rows), ("n_in", n_in)))
    n_panel_bytes = panel_dtype("f32").itemsize * prod(panel_shape("f32", n_rows, n_in))
    n_pair_bytes = PAIR.itemsize * prod(_pairs_shape(n_rows, n_in))
    return max(n_panel_bytes + ALIGNMENT + n_pair_bytes, n_rows * n_blocks(n_in) * RECORD)


def _pairs_shape(n_rows: int, n_in: int) -> tuple[int, int, int]:
    return n_panels(n_rows), -(-n_in // 2), LANES


def linear(
    x: np.ndarray | LinearInput,
    w: Leaf,
    bias: np.ndarray | None = None,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """``x @ w.T + bias``: x [t, n_in], w packed [n_out, n_in], bias [n_out], out [t, n_out].

    Rows are rounded to 8 bits before they are multiplied with weights of 8, 4 and 3 bits, and to bfloat16 if the
    weights' ``compute`` says so. A matrix with an adapter is not changed: the output of the adapter is added to its
    output.
    """
    if isinstance(w, Mixed) or (isinstance(w, Adapted) and w.panels is not None):
        return _adapted(x, w, bias, out, threads, program)
    w = check_panels("w", w)
    rows = x if isinstance(x, LinearInput) else LinearInput(x, threads=threads, program=program)
    n_rows, n_in = check_shape("x", rows.x, (None, w.n_in))
    y = output(out, (n_rows, w.n_out))
    check_apart("out", y, rows.x, w.data, bias)
    same = {
        "w": ffi.from_buffer(check_whole("w", w.data)),
        "bias": ffi.NULL if bias is None else floats("bias", bias, (w.n_out,)),
        "y": floats("out", y, (n_rows, w.n_out)),
        "n_rows": n_rows,
        "n_in": n_in,
        "n_out": w.n_out,
    }
    dots = (w.kind, w.compute) == ("bf16", "bf16")
    if w.kind in FLOATS:
        unchanged = floats("x", rows.x, (n_rows, n_in))
        x_panels = None  # few rows are read from x
        if n_rows > FEW_ROWS:
            x_panels = rows.rounded() if dots else rows.packed().data
        check_apart("out", y, x_panels)
        packed = ffi.NULL if x_panels is None else ffi.from_buffer(x_panels)
        args = arguments("linear", x=unchanged, x_panels=packed, **same)
    else:
        check_apart("out", y, rows.quantised())
        args = arguments("linear_quantised", x=ffi.from_buffer("char[]", rows.quantised()), **same)
    op = "linear_bf16_dots" if dots else f"linear_{w.kind}"
    run(table_row(op, kernel), args, n_panels(w.n_out), _grain(w, n_rows, threads), threads, program)
    return y


def _grain(w: Panels, n_rows: int, threads: int | None) -> int:
    """The number of panels in the smallest piece of a product, which is worth waking a thread for."""
    n, products = n_panels(w.n_out), max(1, n_rows * w.n_in * LANES)
    if w.kind in FLOATS:  # panels are multiplied 4 or 3 side by side
        group = 4 if n_rows == 1 else 3
        grain = group * max(1, SMALLEST_PIECE // (products * group))
        return even_grain(n, group, grain, threads) if n_rows > FEW_ROWS else grain
    grain = max(1, SMALLEST_QUANTISED_PIECE // products)
    # Many rows are unpacked anew in each piece.
    return even_grain(n, UNPACKED_ONCE, grain, threads) if n_rows > ROW_GROUP else grain


def _adapted(
    x: np.ndarray | LinearInput,
    w: Adapted | Mixed,
    bias: np.ndarray | None,
    out: np.ndarray | None,
    threads: int | None,
    program: Program | None,
) -> np.ndarray:
    """``x @ base.T + bias``, plus ``(x @ a.T) @ b.T`` in all rows, or in those that have an adapter."""
    rows = x if isinstance(x, LinearInput) else LinearInput(x, threads=threads, program=program)
    y = linear(rows, w.base, bias, out, threads=threads, program=program)  # [t, n_out]
    if isinstance(w, Adapted):
        assert w.panels is not None
        parts: Sequence[RowsAdapter] = [RowsAdapter(0, len(y), *w.panels)]
        scratch = Scratch(len(y), len(w.a), w.shape[0])
    else:
        parts, scratch = w.parts, w.scratch
    for part in parts:
        low, added, zeros = scratch.of(part.stop - part.start, part.a.n_out, w.shape[0])
        linear(rows.part(part.start, part.stop), part.a, out=low, threads=threads, program=program)  # [t, rank]
        linear(low, part.b, out=added, threads=threads, program=program)  # [t, n_out]
        own = y[part.start : part.stop]
        residual(own, added, zeros, own, threads=threads, program=program)  # not ``add``, which keeps negative zeros
    return y


def quantise_rows(
    x: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """Rows [t, n_in] rounded to 8 bits by blocks of 32, as records (see ``csrc/refgpt_kernels.h``): bytes [n_bytes]."""
    n_rows, n_in = check_shape("x", x, (None, None))
    n_bytes = n_rows * n_blocks(n_in) * RECORD
    y = np.empty(n_bytes, np.uint8) if out is None else out
    check_array("out", y)
    if y.dtype != np.uint8 or y.shape != (n_bytes,):
        raise KernelError(
            "not an array of this many bytes", where="out", got=f"{y.dtype} {y.shape}", wanted=f"uint8 ({n_bytes},)"
        )
    check_apart("out", y, x)
    records = ffi.from_buffer("char[]", check_whole("out", y, written=True))
    args = arguments("quantise_rows", x=floats("x", x, (n_rows, n_in)), y=records, n_rows=n_rows, n_in=n_in)
    n_items = -(-n_rows // ROW_GROUP) * n_blocks(n_in)
    run(table_row("quantise_rows", kernel), args, n_items, 128, threads, program)
    return y


def round_rows(
    x: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """Round rows to bfloat16, as products in bfloat16 read more than 8 of them.

    Two neighbouring inputs share a word, the even one in its lower half, and 16 rows lie side by side. Rounding is to
    nearest even; numbers whose rounded magnitude is below 2^-56 become 0. Zeros follow the last input and the last row.

    Parameters
    ----------
    x : ndarray [t, n_in]
    out : ndarray [ceil(t / 16), ceil(n_in / 2), 16], uint32, optional
        Must not overlap ``x``.

    Returns
    -------
    ndarray [ceil(t / 16), ceil(n_in / 2), 16], uint32

    Raises
    ------
    KernelError
        If an array has another dtype, shape or layout, or the two overlap.
    """
    n_rows, n_in = check_shape("x", x, (None, None))
    shape = _pairs_shape(n_rows, n_in)
    y = np.empty(shape, PAIR) if out is None else out
    check_shape("out", y, shape)
    if y.dtype != PAIR:
        raise KernelError("not words", where="out", got=y.dtype, wanted=PAIR)
    check_apart("out", y, x)
    pairs = ffi.from_buffer("uint32_t[]", check_whole("out", y, written=True))
    args = arguments("round_rows", x=floats("x", x, (n_rows, n_in)), y=pairs, n_rows=n_rows, n_in=n_in)
    run(table_row("round_rows", kernel), args, shape[0], _packing_grain(n_in), threads, program)
    return y


def pack(
    w: np.ndarray,
    out: Panels | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> Panels:
    """Pack a matrix [n_out, n_in] (float32, float16 or bfloat16) into panels of the same dtype, without rounding.

    The matrix may be unaligned, as in files. ``out`` are panels of its shape and dtype; by default new ones are made.
    A float32 matrix may also be packed into panels of bfloat16, to which it is rounded.
    """
    n_out, n_in = check_shape("w", w, (None, None))
    stored = float_kind("w", w)
    rounded = stored == "f32" and isinstance(out, Panels) and out.kind == "bf16"
    out = output_panels(out, "bf16" if rounded else stored, (n_out, n_in))
    check_apart("out", out.data, w)
    matrix, panels = check_whole("w", w, anywhere=True), check_whole("out", out.data, written=True)
    args = arguments("pack", w=ffi.from_buffer(matrix), panels=ffi.from_buffer(panels), n_in=n_in, n_out=n_out)
    op = "pack_rounded" if rounded else f"pack_b{w.dtype.itemsize}"
    run(table_row(op, kernel), args, n_panels(n_out), _packing_grain(n_in), threads, program)
    return out


def _packing_grain(n_in: int) -> int:
    """The number of panels of ``n_in`` inputs in the smallest piece of packing or rounding."""
    return max(1, SMALLEST_PACKED_PIECE // max(1, LANES * n_in))
