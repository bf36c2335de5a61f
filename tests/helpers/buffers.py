"""What the kernel tests measure with: guarded outputs, comparisons of bits, and rows of the table run in other ways."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from refgpt.kernels import Kernel, list_kernels
from refgpt.kernels.registry import ffi, lib
from refgpt.numbers.dtypes import BFLOAT16

GUARD = 40  # elements on each side of an output: more than two vectors of any instruction set

RUNNABLE = [kernel for kernel in list_kernels() if kernel.obstacle is None]
SCALAR = {kernel.op: kernel for kernel in RUNNABLE if kernel.isa == "scalar"}


@dataclass(frozen=True)
class Output:
    """What one call wrote.

    Attributes
    ----------
    value : ndarray
        Rows of the call first.
    guards : ndarray
        What it may not have written: still NaN.
    """

    value: np.ndarray
    guards: np.ndarray


def guarded(shape: tuple[int, ...], dtype: np.dtype | type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    """An output of NaN in the middle of a larger buffer of NaN, and the two ends of that buffer as one view."""
    n = int(np.prod(shape))
    buffer = np.full(n + 2 * GUARD, np.nan, dtype)
    ends = np.lib.stride_tricks.as_strided(buffer, (2, GUARD), ((n + GUARD) * buffer.itemsize, buffer.itemsize))
    return buffer[GUARD : GUARD + n].reshape(shape), ends


def assert_same_bits(got: np.ndarray, want: np.ndarray) -> None:
    """Equality of every bit, so that -0 is not 0 and a NaN is itself."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    if got.tobytes() != want.tobytes():
        whole = np.dtype(f"u{got.itemsize}")
        differ = np.ascontiguousarray(got).view(whole) != np.ascontiguousarray(want).view(whole)
        at = tuple(int(i) for i in np.argwhere(differ)[0])
        raise AssertionError(f"{differ.sum()} of {differ.size} differ, first at {at}: {got[at]!r} is not {want[at]!r}")


def in_pieces(kernel: Kernel, threads: int, grain: int = 1) -> Kernel:
    """The row, run on ``threads`` threads in pieces as small as ``grain`` items, however few items there are."""

    def run(args, begin, end, worker):
        assert (begin, worker) == (0, 0)
        lib.refgpt_run(kernel.run, args, end, grain, threads)

    return replace(kernel, run=ffi.callback("refgpt_kernel", run))


def split_at(kernel: Kernel, share: float) -> tuple[Kernel, Kernel]:
    """The row, run on the leading share of its items only; and on the rest of them only."""

    def lead(args, begin, end, worker):
        kernel.run(args, 0, int(end * share), worker)

    def rest(args, begin, end, worker):
        kernel.run(args, int(end * share), end, worker)

    return tuple(replace(kernel, run=ffi.callback("refgpt_kernel", part)) for part in (lead, rest))


# ---- numbers to compute with -----------------------------------------------------------------------------------------

FLAVOURS = ("ordinary", "huge", "tiny", "zeros")
STORED = {"f32": np.dtype(np.float32), "f16": np.dtype(np.float16), "bf16": BFLOAT16}


def numbers(rng: np.random.Generator, flavour: str, *shape: int, huge: float = 1e15, tiny: float = 1e-22) -> np.ndarray:
    """float32 numbers: near 1; near ``huge``; near ``tiny`` (products underflow); or mostly zeros of both signs."""
    x = rng.standard_normal(shape)
    if flavour == "zeros":
        x = np.where(rng.random(shape) < 0.7, np.copysign(0.0, x), x)
    return (x * {"huge": huge, "tiny": tiny}.get(flavour, 1.0)).astype(np.float32)


def stored(rng: np.random.Generator, flavour: str, dtype: str, *shape: int) -> np.ndarray:
    """The same as weights are stored; float16 reaches its largest and its subnormal numbers."""
    if dtype == "f16":
        x = numbers(rng, flavour, *shape, huge=2e4, tiny=1e-6)
        return np.clip(x, -65504, 65504).astype(np.float16)
    x = numbers(rng, flavour, *shape)
    return x if dtype == "f32" else (x.view(np.uint32) >> 16).astype(np.uint16).view(BFLOAT16)
