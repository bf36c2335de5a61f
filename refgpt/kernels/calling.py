"""Calling a kernel: check arrays, turn them into pointers, then make one C call, now or as part of a program."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from refgpt._common.errors import KernelError
from refgpt._common.float_state import default_float_state
from refgpt._common.wording import shown
from refgpt.kernels.native import ffi, lib
from refgpt.kernels.registry import Kernel, active
from refgpt.kernels.threads import MOST_THREADS, check_threads
from refgpt.numbers.dtypes import BFLOAT16
from refgpt.numbers.panels import Panels

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
DTYPE_NAMES = {F32: "f32", np.dtype(np.float16): "f16", BFLOAT16: "bf16"}
#: Smallest number of float multiplications worth waking a thread for (some tens of microseconds).
SMALLEST_PIECE = 1 << 17


class Program:
    """Kernel calls that are recorded once and then run many times, all in one call into C.

    Pass it to functions of this package as ``program=``: they check their arguments as usual and record their call
    instead of making it. Arrays and their shapes are fixed by the recording; their contents are read when the program
    runs. Indices are checked again before each run, because C code uses them to access other arrays; they must not
    change while it runs.

    Attributes
    ----------
    calls : list
        What was recorded, in order: what each call of ``add`` was given.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Kernel, Any, Any, int, int]] = []
        self._steps: Any = None
        self._ranges: dict[tuple[int, int, int, int], tuple[str, np.ndarray, Any]] = {}
        self._tiles: dict[tuple[int, int, int, int], tuple[np.ndarray, Any]] = {}
        self._ordered: dict[tuple[int, int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._c_ranges: Any = None
        self._most_threads = MOST_THREADS

    def add(self, kernel: Kernel, struct: Any, values: Any, n_items: int, grain: int) -> None:
        """Append a call. ``values`` are the struct's pointers, which keep its arrays alive."""
        self.calls.append((kernel, struct, values, n_items, grain))
        self._steps = None

    def watch(self, name: str, index: np.ndarray, least: int, stop: int) -> None:
        """Refuse to run while a number of ``index`` (int64) is outside ``least`` .. ``stop - 1``."""
        self._ranges[index.ctypes.data, index.size, least, stop] = name, index, indices(name, index)
        self._c_ranges = None

    def watch_tiles(self, tiles: np.ndarray, n_rows: int, n_slots: int) -> None:
        """Refuse to run while these tiles do not cover the rows."""
        self._tiles[tiles.ctypes.data, tiles.size, n_rows, n_slots] = tiles, tile_pointer(tiles)

    def watch_order(self, first: np.ndarray, stop: np.ndarray) -> None:
        """Refuse to run while a number of ``first`` is not below its number of ``stop``."""
        self._ordered[first.ctypes.data, stop.ctypes.data, first.size] = first, stop

    def limit_threads(self, most: int) -> None:
        """Refuse to run on more than ``most`` threads, because a call has scratch memory for only that many."""
        self._most_threads = min(self._most_threads, most)

    def run(self, threads: int) -> None:
        """Make the calls, one after another, each on ``threads`` threads.

        Raises
        ------
        KernelError
            If an index is now outside its array, or the calls have too little scratch memory for so many threads.
        """
        if check_threads(threads) > self._most_threads:
            raise KernelError("recorded for fewer threads", where="threads", got=threads, wanted=self._most_threads)
        self._check_indices()
        if self._steps is None:
            self._steps = ffi.new("refgpt_step[]", [(k.run, s, n, grain) for k, s, _, n, grain in self.calls])
        lib.refgpt_run_steps(self._steps, len(self.calls), threads)

    def _check_indices(self) -> None:
        if self._c_ranges is None:
            ranges = [(data, n, least, stop) for (_, n, least, stop), (*_, data) in self._ranges.items()]
            self._c_ranges = ffi.new("refgpt_range[]", ranges)
        outside = lib.refgpt_outside(self._c_ranges, len(self._ranges))
        if outside >= 0:
            (_, _, least, stop), (name, index, _) = list(self._ranges.items())[outside]
            raise _outside(name, index, least, stop)
        for (_, n, n_rows, n_slots), (_, data) in self._tiles.items():
            if not lib.refgpt_tiles_fit(data, n, n_rows, n_slots):
                raise uncovered()
        for first, stop in self._ordered.values():
            check_before(first, stop)


Arguments = tuple[Any, dict[str, Any]]


def arguments(op: str, **values: Any) -> Arguments:
    """Build the argument struct of an op. Also returns its values, which keep the arrays alive."""
    return ffi.new(f"refgpt_{op}_args *", values), values


def run(
    kernel: Kernel, args: Arguments, n_items: int, grain: int, threads: int | None, program: Program | None = None
) -> None:
    """Call a kernel for all of its items, in pieces of whole multiples of ``grain``; or add the call to a program."""
    if kernel.obstacle:
        raise KernelError(f"{kernel} cannot run here", got=kernel.obstacle)
    if program is not None and not isinstance(program, Program):
        raise KernelError("not a program", where="program", got=type(program).__name__)
    struct, values = args
    if program is None:
        lib.refgpt_run(kernel.run, struct, n_items, grain, check_threads(threads))
    else:
        program.add(kernel, struct, values, n_items, grain)


def even_grain(n_items: int, group: int, least: int, threads: int | None) -> int:
    """The number of items in the smallest pieces of a call: at least ``least``, in whole groups if there are many.

    With so few items that one group more or less would change the time, pieces are chosen so that every thread can get
    the same number.
    """
    grain, n_threads = group * max(1, -(-least // group)), check_threads(threads)
    if n_items >= max(32, 8 * n_threads) * grain:
        return grain
    share = -(-n_items // n_threads)
    while share >= 4 * grain:
        share = -(-share // 2)
    return max(share, least)


def table_row(op: str, kernel: Kernel | None) -> Kernel:
    """The row of the table to call for an op: ``kernel`` if given, otherwise the active one."""
    if kernel is None:
        return active(op)
    if not isinstance(kernel, Kernel) or kernel.op != op:  # it would take the arguments for those of another op
        got = str(kernel) if isinstance(kernel, Kernel) else shown(kernel)
        raise KernelError("not a kernel of this op", where="kernel", got=got, wanted=op)
    return kernel


def check_array(name: str, array: np.ndarray) -> None:
    """Refuse a value that is not an array."""
    if not isinstance(array, np.ndarray):
        raise KernelError("not an array", where=name, got=type(array).__name__, wanted="numpy.ndarray")


def check_panels(name: str, panels: object) -> Panels:
    """Refuse a value that is not ``Panels``. (``Panels`` check their description when they are made.)"""
    if not isinstance(panels, Panels):
        raise KernelError(
            "not packed into panels",
            where=name,
            got=type(panels).__name__,
            fix="pack it with refgpt.kernels.pack or quantise",
        )
    return panels


def check_shape(name: str, array: np.ndarray, wanted: tuple[int | None, ...]) -> tuple[int, ...]:
    """The array's shape, after comparing it with the one wanted (None: any size)."""
    check_array(name, array)
    shape = array.shape
    fits = len(shape) == len(wanted)
    for size, want in zip(shape, wanted, strict=False):  # a loop, for speed: this runs a hundred times per token
        fits = fits and (want is None or want == size)
    if not fits:
        raise KernelError("wrong shape", where=name, got=shape, wanted=tuple("any" if w is None else w for w in wanted))
    return shape


def check_apart(name: str, written: np.ndarray, *others: np.ndarray | None, over: Iterable[np.ndarray] = ()) -> None:
    """Refuse an output that overlaps other arrays of its call.

    Parameters
    ----------
    written : ndarray
        The output. All arrays are contiguous.
    over : iterable of ndarray
        Inputs of its shape that it may overwrite, if it is exactly the same memory.
    """
    for other in others:
        if isinstance(other, np.ndarray) and np.may_share_memory(written, other):  # what is no array, others refuse
            raise KernelError("overlaps another array of the call", where=name, fix="pass an array of its own")
    for other in over:
        if not isinstance(other, np.ndarray) or other is written:
            continue
        if np.may_share_memory(written, other) and other.ctypes.data != written.ctypes.data:
            raise KernelError("overlaps a part of an input", where=name, fix="pass the input itself or another array")


def floats(name: str, array: np.ndarray, shape: tuple[int, ...], written: bool = False) -> Any:
    check_array(name, array)
    if array.dtype != F32 or array.shape != shape:
        raise KernelError(
            "not a float32 array of this shape", where=name, got=f"{array.dtype} {array.shape}", wanted=shape
        )
    return ffi.from_buffer("float[]", check_whole(name, array, written))


def indices(name: str, array: np.ndarray) -> Any:
    check_array(name, array)
    if array.dtype != I64:
        raise KernelError("not an int64 array", where=name, got=array.dtype)
    return ffi.from_buffer("int64_t[]", check_whole(name, array))


def check_within(name: str, index: np.ndarray, least: int, stop: int, program: Program | None = None) -> None:
    """Refuse an index outside ``least`` .. ``stop - 1``, now and whenever the program runs. In C it would access memory
    outside an array."""
    check_array(name, index)
    # As unsigned numbers, values below ``least`` are the largest, so one pass finds both kinds.
    if index.dtype != I64 or (index.size and int((index - least).view(np.uint64).max()) >= stop - least):
        raise _outside(name, index, least, stop)
    if program is not None:
        program.watch(name, index, least, stop)


@cache
@default_float_state()
def as_float32(number: float) -> float:
    """A number as C will have it, rounded to nearest whatever the caller's floating-point state is."""
    return float(np.float32(number))


def check_before(first: np.ndarray, stop: np.ndarray) -> None:
    """Refuse rows that see no key: in C their sizes would be negative."""
    if not (first < stop).all():
        raise KernelError("a row sees no key", where="first_visible", fix="let it be below n_visible")


def _outside(name: str, index: np.ndarray, least: int, stop: int) -> KernelError:
    numbers = index.size and index.dtype == I64
    got = f"{index.dtype} {index.min()} .. {index.max()}" if numbers else f"{index.dtype} {index.shape}"
    return KernelError("an index is out of range", where=name, got=got, wanted=f"int64 {least} .. {stop - 1}")


def tile_pointer(tiles: np.ndarray) -> Any:
    return ffi.from_buffer("refgpt_query_tile[]", check_whole("tiles", tiles))


def uncovered() -> KernelError:
    return KernelError("the tiles do not cover the rows", where="tiles", fix="make them with query_tiles")


def check_whole(name: str, array: np.ndarray, written: bool = False, anywhere: bool = False) -> np.ndarray:
    """Check that an array is C-contiguous and, unless ``anywhere``, aligned; return it."""
    flags = array.flags
    if not (flags.c_contiguous and (flags.aligned or anywhere)):
        raise KernelError("not C-contiguous and aligned", where=name, fix="pass np.require(it, requirements='CA')")
    if written and not flags.writeable:
        raise KernelError("not writable", where=name)
    return array


def float_kind(name: str, array: np.ndarray) -> str:
    check_array(name, array)
    if array.dtype not in DTYPE_NAMES:
        raise KernelError(
            "not a dtype that weights are kept in", where=name, got=array.dtype, wanted=" ".join(DTYPE_NAMES.values())
        )
    return DTYPE_NAMES[array.dtype]


def output(out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if out is None:
        return np.empty(shape, np.float32)
    check_array("out", out)
    if not out.flags.writeable:
        raise KernelError("not writable", where="out")
    return out


def output_panels(out: Panels | None, kind: str, shape: tuple[int, int]) -> Panels:
    """Destination of a packed matrix [n_out, n_in]: ``out``, if it has this kind and shape, or new panels."""
    if out is None:
        return Panels.zeros(kind, *shape)
    check_panels("out", out)
    if (out.kind, out.shape) != (kind, shape):
        raise KernelError(
            "panels of another kind or shape than the matrix",
            where="out",
            got=f"{out.kind} {out.shape}",
            wanted=f"{kind} {shape}",
        )
    return out
