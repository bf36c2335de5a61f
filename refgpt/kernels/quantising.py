"""Kernels for weights and files instead of activations: quantising a matrix, and checksums of stored bytes.

See ``refgpt.kernels.ops`` for their common arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refgpt._common.arguments import one_of, whole_number
from refgpt._common.errors import KernelError
from refgpt.kernels.calling import (
    Program,
    arguments,
    check_apart,
    check_array,
    check_panels,
    check_shape,
    check_whole,
    float_kind,
    output_panels,
    run,
    table_row,
)
from refgpt.kernels.linear import pack
from refgpt.kernels.native import ffi
from refgpt.kernels.registry import Kernel
from refgpt.numbers.checksums import PIECE_WORDS
from refgpt.numbers.finite import EXPONENT_BITS
from refgpt.numbers.panels import BLOCK_BYTES, Panels, n_panels

#: Their numbers in the C header.
DTYPE_NUMBERS = {"f32": 0, "f16": 1, "bf16": 2}


def quantise(
    w: np.ndarray,
    kind: str,
    out: Panels | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> Panels:
    """Quantise a matrix [n_out, n_in] (float32, float16 or bfloat16): see ``refgpt.numbers.quantisation.quantise``.

    Its weights must be finite and within ``refgpt.numbers.quantisation.LARGEST_WEIGHT``; this function does not check
    that. The matrix may be unaligned, as in files. ``out`` are panels of its shape and kind; by default new ones are
    made.
    """
    n_out, n_in = check_shape("w", w, (None, None))
    dtype = DTYPE_NUMBERS[float_kind("w", w)]
    one_of("kind", kind, tuple(BLOCK_BYTES), KernelError)
    out = output_panels(out, kind, (n_out, n_in))
    check_apart("out", out.data, w)
    matrix, panels = check_whole("w", w, anywhere=True), check_whole("out", out.data, written=True)
    args = arguments(
        "quantise", w=ffi.from_buffer(matrix), panels=ffi.from_buffer(panels), n_in=n_in, n_out=n_out, dtype=dtype
    )
    run(table_row(f"quantise_{kind}", kernel), args, n_panels(n_out), 1, threads, program)
    return out


def store(rows: np.ndarray, out: Panels, *, threads: int | None = None) -> None:
    """Store rows in panels: floats unchanged, few bits quantised. This is a ``Fill`` of ``refgpt.numbers.packing``.

    See ``pack`` and ``quantise``.
    """
    if check_panels("out", out).kind in BLOCK_BYTES:
        quantise(rows, out.kind, out, threads=threads)
    else:
        pack(rows, out, threads=threads)


def digests(
    words: np.ndarray,
    piece_words: int = PIECE_WORDS,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """Digests uint64 [n_pieces] of the pieces of some words, uint32 [n]: ``refgpt.numbers.checksums.digests``."""
    return _digests(words, piece_words, out, {}, threads, kernel, program)


def digests_and_finite(
    words: np.ndarray,
    numbers: np.ndarray,
    piece_words: int = PIECE_WORDS,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> tuple[np.ndarray, bool]:
    """Digests of some words, and whether the floats in them are finite: both while the words are read once.

    See ``refgpt.numbers.checksums.digests_and_finite``. The floats are a view of the words: float32, float16 or
    bfloat16, contiguous or the scales of ``Panels.numbers``.
    """
    kind = float_kind("numbers", numbers)
    check_array("words", words)
    size, first_byte = numbers.itemsize, numbers.ctypes.data - words.ctypes.data
    n_floats = numbers.size if numbers.flags.c_contiguous else numbers.shape[-1]
    n_groups = numbers.size // n_floats if n_floats else 0
    # What is not contiguous is read as groups at equal distances.
    group_bytes = size * n_floats if numbers.flags.c_contiguous else numbers.strides[-2] if numbers.ndim > 1 else 0
    end = first_byte + (n_groups - 1) * group_bytes + n_floats * size
    if n_groups and not (
        (numbers.flags.c_contiguous or _in_groups(numbers))
        and first_byte % size == group_bytes % size == 0
        and 0 <= first_byte <= end <= words.nbytes
    ):
        raise KernelError("not floats that lie in the words", where="numbers", got=f"{numbers.dtype} {numbers.shape}")
    finite = np.zeros(-(-words.size // whole_number("piece_words", piece_words, 1, None, KernelError)), np.uint8)
    looked_at = {
        "finite": ffi.from_buffer("uint8_t[]", finite),
        "float_bytes": size,
        "exponent": EXPONENT_BITS[kind],
        "first_byte": first_byte,
        "group_bytes": group_bytes,
        "n_groups": n_groups,
        "n_floats": n_floats,
    }
    found = _digests(words, piece_words, None, looked_at if n_groups else {}, threads, kernel, None)
    return found, n_groups == 0 or bool(finite.all())


def _in_groups(array: np.ndarray) -> bool:
    """Whether an array is groups, its last axis, at equal distances that do not overlap."""
    if array.ndim < 2:
        return False
    *outer, group, item = array.strides
    distances = [step * n for step, n in zip((*outer, group)[1:], array.shape[1:-1], strict=True)]
    return item == array.itemsize and group >= item * array.shape[-1] and outer == distances


def _digests(
    words: np.ndarray,
    piece_words: int,
    out: np.ndarray | None,
    looked_at: dict[str, Any],
    threads: int | None,
    kernel: Kernel | None,
    program: Program | None,
) -> np.ndarray:
    (n_words,) = check_shape("words", words, (None,))
    if words.dtype != np.uint32 or not words.dtype.isnative:
        raise KernelError("not words", where="words", got=words.dtype, wanted="uint32")
    piece_words = whole_number("piece_words", piece_words, 1, (1 << 63) - 1, KernelError)
    n_pieces = -(-n_words // piece_words)
    out = np.empty(n_pieces, np.uint64) if out is None else out
    check_array("out", out)
    check_apart("out", out, words)
    if out.dtype != np.uint64 or out.shape != (n_pieces,):
        raise KernelError("unusable", where="out", got=f"{out.dtype} {out.shape}", wanted=f"uint64 {(n_pieces,)}")
    args = arguments(
        "digests",
        words=ffi.from_buffer("uint32_t[]", check_whole("words", words)),
        digests=ffi.from_buffer("uint64_t[]", check_whole("out", out, written=True)),
        n_words=n_words,
        piece_words=piece_words,
        **looked_at,
    )
    run(table_row("digests", kernel), args, n_pieces, 16, threads, program)
    return out
