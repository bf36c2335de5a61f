"""Kernels for weights and files instead of activations: quantising a matrix, and checksums of stored bytes.

See ``refgpt.kernels.ops`` for their common arguments.
"""

from __future__ import annotations

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
    )
    run(table_row("digests", kernel), args, n_pieces, 16, threads, program)
    return out
