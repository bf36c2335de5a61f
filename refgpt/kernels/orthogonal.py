"""The steps of Newton-Schulz that make a matrix orthogonal, for Muon. See ``refgpt.kernels.ops`` for what functions
share.

Matrices stay in panels between the steps: x [m, n] as the panels of its rows, and as those of its columns, which are
the panels of its transpose [n, m].
"""

from __future__ import annotations

import numpy as np

from refgpt._common.errors import KernelError
from refgpt._common.wording import shown
from refgpt.kernels.calling import (
    F32,
    SMALLEST_PIECE,
    Program,
    arguments,
    as_float32,
    check_apart,
    check_panels,
    check_shape,
    check_whole,
    even_grain,
    floats,
    run,
    table_row,
)
from refgpt.kernels.linear import pack
from refgpt.kernels.native import ffi
from refgpt.kernels.registry import Kernel
from refgpt.kernels.threads import check_threads
from refgpt.numbers.panels import ALIGNMENT, LANES, Panels, n_panels, panel_shape


def gram(
    x: Panels,
    base: Panels | None = None,
    of_base: float = 1.0,
    of_sum: float = 1.0,
    out: Panels | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> Panels:
    """``x @ x.T``; with a base, ``of_base * base + of_sum * (x @ x.T)``. Only one half is computed.

    Parameters
    ----------
    x : Panels of float32 [m, n]
    base : Panels of float32 [m, m], optional
        A symmetric matrix: only one half is read.
    of_base, of_sum : float
        Only with a base.
    out : Panels of float32 [m, m], optional

    Returns
    -------
    Panels of float32 [m, m]
        The bits are those of ``linear`` and of NumPy's products and sum.
    """
    m, n = _shape("x", x)
    if base is None and (of_base, of_sum) != (1.0, 1.0):
        raise KernelError("only with a base", where="of_base, of_sum", got=f"{shown(of_base)}, {shown(of_sum)}")
    out = _empty(m, m) if out is None else out
    check_apart("out", _data("out", out, (m, m)), _data("x", x), None if base is None else _data("base", base, (m, m)))
    args = arguments(
        "gram",
        x=_pointer(x),
        base=ffi.NULL if base is None else _pointer(base),
        y=_pointer(out, written=True),
        n_rows=m,
        n=n,
        of_base=as_float32(of_base),
        of_sum=as_float32(of_sum),
    )
    # Later items take less time, and small pieces are shared more evenly.
    grain = 2 * max(1, SMALLEST_PIECE // max(1, 2 * LANES * m * n))
    run(table_row("gram", kernel), args, n_panels(m), grain, threads, program)
    return out


def newton_schulz(
    s: Panels,
    columns: Panels,
    of_x: float,
    out: tuple[Panels, Panels] | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> tuple[Panels, Panels]:
    """``of_x * x + s @ x``, where s is symmetric.

    Parameters
    ----------
    s : Panels of float32 [m, m]
    columns : Panels of float32 [n, m]
        The columns of x [m, n].
    of_x : float
    out : two Panels of float32, [n, m] and [m, n], optional
        For the result's columns and its rows.

    Returns
    -------
    columns, rows : Panels of float32, [n, m] and [m, n]
        The bits are those of ``linear`` and of NumPy's product and sum.
    """
    n, m = _shape("columns", columns)
    to, rows = (_empty(n, m), _empty(m, n)) if out is None else out
    read = _data("s", s, (m, m)), _data("columns", columns)
    check_apart("out", _data("out", to, (n, m)), *read, _data("out", rows, (m, n)))
    check_apart("out", rows.data, *read)
    args = arguments(
        "newton_schulz",
        s=_pointer(s),
        x=_pointer(columns),
        y=_pointer(to, written=True),
        rows=_pointer(rows, written=True),
        n_rows=m,
        n=n,
        of_x=as_float32(of_x),
    )
    grain = even_grain(n_panels(n), 3, max(1, SMALLEST_PIECE // max(1, LANES * m * m)), threads)
    run(table_row("newton_schulz", kernel), args, n_panels(n), grain, threads, program)
    return to, rows


def orthogonalised(
    x: np.ndarray, coefficients: tuple[float, float, float], n_steps: int, *, threads: int | None = None
) -> np.ndarray:
    """Steps of the Newton-Schulz iteration ``a x + (b g + c g g^T) x`` with ``g = x x^T``. x [n_out, n_in], float32.

    For a matrix of more rows than columns, these are the steps of its transpose.
    """
    (n_out, n_in), (a, b, c) = check_shape("x", x, (None, None)), coefficients
    floats("x", x, (n_out, n_in))
    tall = n_out > n_in
    packed, turned = pack(x, _empty(n_out, n_in), threads=threads), _turned(x)
    rows, columns = (turned, packed) if tall else (packed, turned)
    m, n = rows.shape
    other, square, polynomial = _empty(n, m), _empty(m, m), _empty(m, m)
    steps = Program(), Program()  # one reads columns and writes other, the next one the reverse
    for program in steps:
        gram(rows, out=square, threads=threads, program=program)
        gram(square, square, b, c, polynomial, threads=threads, program=program)
        newton_schulz(polynomial, columns, a, (other, rows), threads=threads, program=program)
        columns, other = other, columns
    for i in range(n_steps):
        steps[i % 2].run(check_threads(threads))
    columns = other if n_steps % 2 else columns
    return _row_major(rows if tall else columns)


def _turned(x: np.ndarray) -> Panels:
    """The columns of x [m, n] as panels [n, m]."""
    m, n = x.shape
    turned = _empty(n, m)
    if n % LANES:
        turned.data[-1] = 0
    whole = n // LANES
    turned.data[:whole] = x[:, : whole * LANES].reshape(m, whole, LANES).transpose(1, 0, 2)
    if n % LANES:
        turned.data[-1, :, : n % LANES] = x[:, whole * LANES :]
    return turned


def _row_major(columns: Panels) -> np.ndarray:
    """From the columns of x as panels [n, m] to x [m, n]."""
    n, m = columns.shape
    found: np.ndarray = columns.data.transpose(1, 0, 2).reshape(m, -1)
    return np.ascontiguousarray(found[:, :n])


def _empty(n_out: int, n_in: int) -> Panels:
    """Panels for a float32 matrix, not yet written."""
    shape = panel_shape("f32", n_out, n_in)
    raw = np.empty(shape[0] * shape[1] * LANES + ALIGNMENT // F32.itemsize, F32)
    start = -raw.ctypes.data % ALIGNMENT // F32.itemsize
    return Panels(raw[start : start + shape[0] * shape[1] * LANES].reshape(shape), n_out, n_in, "f32")


def _shape(name: str, x: Panels) -> tuple[int, int]:
    if check_panels(name, x).kind != "f32":
        raise KernelError("not panels of float32", where=name, got=x.kind, wanted="f32")
    return x.shape


def _data(name: str, x: Panels, shape: tuple[int, int] | None = None) -> np.ndarray:
    if _shape(name, x) != (shape or x.shape):
        raise KernelError("wrong shape", where=name, got=x.shape, wanted=shape)
    return x.data


def _pointer(x: Panels, written: bool = False) -> object:
    return ffi.from_buffer("float[]", check_whole("out" if written else "x", x.data, written))
