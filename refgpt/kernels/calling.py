"""How a kernel is called: arrays checked and turned into pointers, then one C call, now or as part of a program."""

from __future__ import annotations

from typing import Any

import numpy as np

from refgpt._common.errors import KernelError
from refgpt.kernels.native import ffi, lib
from refgpt.kernels.registry import Kernel
from refgpt.kernels.threads import check_threads
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.panels import Panels

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
DTYPE_NAMES = {F32: "f32", np.dtype(np.float16): "f16", BFLOAT16: "bf16"}
#: Multiplications of floats that are worth waking a thread for, some tens of microseconds.
SMALLEST_PIECE = 1 << 17


class Program:
    """Calls that are recorded once and then made again and again, all of them in one crossing into C.

    Give it to functions of this package as ``program=``: they check their arguments as ever and add their call, without
    making it. What the arrays hold when the program runs is what counts; the arrays themselves, their shapes and the
    checks of their values are those of the recording.
    """

    def __init__(self) -> None:
        self._calls: list[tuple[Kernel, Any, Any, int, int]] = []
        self._steps: Any = None

    def add(self, kernel: Kernel, struct: Any, values: Any, n_items: int, grain: int) -> None:
        """Another call, at the end. ``values`` are the struct's pointers, which keep its arrays alive."""
        self._calls.append((kernel, struct, values, n_items, grain))
        self._steps = None

    def run(self, threads: int) -> None:
        """Make the calls, one after another, each on ``threads`` threads."""
        if self._steps is None:
            self._steps = ffi.new("refgpt_step[]", [(k.run, s, n, grain) for k, s, _, n, grain in self._calls])
        lib.refgpt_run_steps(self._steps, len(self._calls), threads)


Arguments = tuple[Any, dict[str, Any]]


def arguments(op: str, **values: Any) -> Arguments:
    """The argument struct of an op, and the values it was made of, which keep the arrays alive."""
    return ffi.new(f"refgpt_{op}_args *", values), values


def run(
    kernel: Kernel, args: Arguments, n_items: int, grain: int, threads: int | None, program: Program | None = None
) -> None:
    """Call a kernel for all of its items, in pieces of whole multiples of ``grain``; or add the call to a program."""
    if kernel.obstacle:
        raise KernelError(f"{kernel} cannot run here", got=kernel.obstacle)
    struct, values = args
    if program is None:
        lib.refgpt_run(kernel.run, struct, n_items, grain, check_threads(threads))
    else:
        program.add(kernel, struct, values, n_items, grain)


def check_shape(name: str, array: np.ndarray, wanted: tuple[int | None, ...]) -> tuple[int, ...]:
    """The array's shape, after comparing it with the one wanted (None: any size)."""
    shape = array.shape
    fits = len(shape) == len(wanted)
    for size, want in zip(shape, wanted, strict=False):  # a loop: this runs a hundred times a token
        fits = fits and (want is None or want == size)
    if not fits:
        raise KernelError("wrong shape", where=name, got=shape, wanted=tuple("any" if w is None else w for w in wanted))
    return shape


def floats(name: str, array: np.ndarray, shape: tuple[int, ...], written: bool = False) -> Any:
    if array.dtype != F32 or array.shape != shape:
        raise KernelError(
            "not a float32 array of this shape", where=name, got=f"{array.dtype} {array.shape}", wanted=shape
        )
    return ffi.from_buffer("float[]", check_whole(name, array, written))


def indices(name: str, array: np.ndarray) -> Any:
    if array.dtype != I64:
        raise KernelError("not an int64 array", where=name, got=array.dtype)
    return ffi.from_buffer("int64_t[]", check_whole(name, array))


def check_within(name: str, index: np.ndarray, least: int, stop: int) -> None:
    """Refuse an index outside ``least`` .. ``stop - 1``: in C it would reach beyond an array."""
    # As unsigned numbers those below ``least`` are the largest: one pass finds both kinds.
    if index.dtype != I64 or (index.size and int((index - least).view(np.uint64).max()) >= stop - least):
        raise KernelError(
            "an index is out of range",
            where=name,
            got=f"{index.dtype} {index.min()} .. {index.max()}",
            wanted=f"int64 {least} .. {stop - 1}",
        )


def check_whole(name: str, array: np.ndarray, written: bool = False, anywhere: bool = False) -> np.ndarray:
    """The array, if its elements lie side by side, each where its type wants it or ``anywhere``."""
    flags = array.flags
    if not (flags.c_contiguous and (flags.aligned or anywhere)):
        raise KernelError("not C-contiguous and aligned", where=name, fix="pass np.require(it, requirements='CA')")
    if written and not flags.writeable:
        raise KernelError("not writable", where=name)
    return array


def float_kind(name: str, array: np.ndarray) -> str:
    if array.dtype not in DTYPE_NAMES:
        raise KernelError(
            "not a dtype that weights are kept in", where=name, got=array.dtype, wanted=" ".join(DTYPE_NAMES.values())
        )
    return DTYPE_NAMES[array.dtype]


def output(out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if out is None:
        return np.empty(shape, np.float32)
    if not out.flags.writeable:
        raise KernelError("not writable", where="out")
    return out


def output_panels(out: Panels | None, kind: str, shape: tuple[int, int]) -> Panels:
    """Where a packed matrix [n_out, n_in] goes: ``out``, if it is of this kind and shape, or new panels."""
    if out is None:
        return Panels.zeros(kind, *shape)
    if (out.kind, out.shape) != (kind, shape):
        raise KernelError(
            "other panels than the matrix", where="out", got=f"{out.kind} {out.shape}", wanted=f"{kind} {shape}"
        )
    return out
