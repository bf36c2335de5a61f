"""One function per kernel: it checks the arrays, fills the argument struct, and makes one C call.

Every function here and in ``linear`` and ``attention`` takes ``threads`` (None: all processors), ``kernel`` (None: the
active one; a ``Kernel`` row to compare rows with one another) and ``program`` (None: call now; see ``Program``). Arrays
are float32 and C-contiguous unless stated otherwise; ``out`` is allocated if it is not given. The arithmetic and its
order are defined in ``csrc/refgpt_kernels.h``.
"""

from __future__ import annotations

import numpy as np

from refgpt._common.errors import KernelError
from refgpt._common.wording import shown
from refgpt.kernels.calling import (
    Program,
    arguments,
    as_float32,
    check_apart,
    check_shape,
    check_whole,
    check_within,
    float_kind,
    floats,
    indices,
    output,
    run,
    table_row,
)
from refgpt.kernels.native import ffi
from refgpt.kernels.registry import Kernel
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.panels import FLOATS, Panels

LARGEST_FLOAT = float(np.finfo(np.float32).max)


def embedding(
    table: Leaf,
    ids: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """Rows of a table [n_vocab, c] as float32: ids int64 [t], out [t, c].

    The table is an array in the dtype it was stored in, or panels of floats or of 8 bits.
    """
    if not isinstance(table, np.ndarray | Panels):
        raise KernelError("neither an array nor panels", where="table", got=type(table).__name__)
    (n_rows,) = check_shape("ids", ids, (None,))
    n_vocab, n = table.shape if isinstance(table, Panels) else check_shape("table", table, (None, None))
    kind, stored = (table.kind, table.data) if isinstance(table, Panels) else (float_kind("table", table), table)
    check_within("ids", ids, 0, n_vocab, program)
    y = output(out, (n_rows, n))
    check_apart("out", y, stored, ids)
    args = arguments(
        "embedding",
        table=ffi.from_buffer(check_whole("table", stored)),
        ids=indices("ids", ids),
        y=floats("out", y, (n_rows, n)),
        n=n,
    )
    layout = "panels_" if isinstance(table, Panels) and kind in FLOATS else ""
    run(table_row(f"embedding_{layout}{kind}", kernel), args, n_rows, 16, threads, program)
    return y


def layer_norm(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray,
    eps: float,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """LayerNorm of the rows of x [t, c] with weight w [c] and bias b [c]; out may be x."""
    n_rows, n = check_shape("x", x, (None, None))
    if not isinstance(eps, float | int | np.floating) or not abs(eps) <= LARGEST_FLOAT:
        raise KernelError("cannot be used", where="eps", got=shown(eps), wanted="a number of float32")
    y = output(out, x.shape)
    check_apart("out", y, w, b, over=(x,))
    args = arguments(
        "layer_norm",
        x=floats("x", x, x.shape),
        w=floats("w", w, (n,)),
        b=floats("b", b, (n,)),
        y=floats("out", y, x.shape),
        n=n,
        eps=as_float32(eps),
    )
    run(table_row("layer_norm", kernel), args, n_rows, 4, threads, program)
    return y


def _rowwise(
    op: str,
    inputs: dict[str, np.ndarray],
    out: np.ndarray | None,
    threads: int | None,
    kernel: Kernel | None,
    program: Program | None,
) -> np.ndarray:
    """Run a kernel on the rows of ``inputs``, by their names in its argument struct: x [t, n], and others of its shape.

    The output has that shape too, and may be any of the inputs.
    """
    n_rows, n = check_shape("x", inputs["x"], (None, None))
    shape = inputs["x"].shape
    y = output(out, shape)
    check_apart("out", y, over=inputs.values())
    pointers = {name: floats(name, array, shape) for name, array in inputs.items()}
    pointers["dx" if op.endswith("_backward") else "y"] = floats("out", y, shape)
    # Both forms of GELU take the same arguments.
    args = arguments(op.replace("_erf", ""), **pointers, n=n)
    run(table_row(op, kernel), args, n_rows, 4, threads, program)
    return y


def gelu(
    x: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """GELU (tanh form) of every element of x [t, f]; out may be x."""
    return _rowwise("gelu", {"x": x}, out, threads, kernel, program)


def gelu_erf(
    x: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """GELU itself, with erf, of every element of x [t, f]; out may be x."""
    return _rowwise("gelu_erf", {"x": x}, out, threads, kernel, program)


def gelu_backward(
    x: np.ndarray,
    dy: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """The gradient of the input x [t, f] of ``gelu``, from that of its result, dy [t, f]; out may be either."""
    return _rowwise("gelu_backward", {"x": x, "dy": dy}, out, threads, kernel, program)


def gelu_erf_backward(
    x: np.ndarray,
    dy: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """The same of ``gelu_erf``."""
    return _rowwise("gelu_erf_backward", {"x": x, "dy": dy}, out, threads, kernel, program)


def softmax(
    x: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """Softmax of the rows of x [t, n]; out may be x."""
    return _rowwise("softmax", {"x": x}, out, threads, kernel, program)


def residual(
    x: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """Add the outputs of a block's two branches to the residual stream x [t, c]: ``x + a + b``; out may be any of
    them."""
    return _rowwise("residual", {"x": x, "a": a, "b": b}, out, threads, kernel, program)


def add(
    x: np.ndarray,
    a: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """The residual stream x [t, c] and what one branch adds to it: ``x + a``; out may be either."""
    return _rowwise("add", {"x": x, "a": a}, out, threads, kernel, program)


def row_sum(x: np.ndarray, *, threads: int | None = None, kernel: Kernel | None = None) -> np.ndarray:
    """Sums of the rows of x [t, n] as [t]; used to measure how fast memory is read."""
    n_rows, n = check_shape("x", x, (None, None))
    y = np.empty(n_rows, np.float32)
    run(
        table_row("row_sum", kernel),
        arguments("row_sum", x=floats("x", x, x.shape), y=floats("y", y, y.shape), n=n),
        n_rows,
        1,
        threads,
    )
    return y


def rotary(
    x: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    positions: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """Rotate the interleaved pairs of x [t, h, d] by the angles of ``positions`` int64 [t]; out may be x.

    The tables are [n_ctx, d_rotary]: each cosine twice, each sine once negated and once not.
    """
    return _rotated("rotary", x, cos, sin, positions, out, threads, kernel, program)


def rotary_halves(
    x: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    positions: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """The same for pairs of the first and the second half of what turns.

    The tables are [n_ctx, d_rotary]: all cosines twice, all sines once negated and once not.
    """
    return _rotated("rotary_halves", x, cos, sin, positions, out, threads, kernel, program)


def _rotated(
    op: str,
    x: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    positions: np.ndarray,
    out: np.ndarray | None,
    threads: int | None,
    kernel: Kernel | None,
    program: Program | None,
) -> np.ndarray:
    n_rows, n_head, d_head = check_shape("x", x, (None, None, None))
    n_ctx, d_rotary = check_shape("cos", cos, (None, None))
    if d_rotary % 2 or d_rotary > d_head:
        raise KernelError(
            "the rotated dimensions do not fit the head", where="cos", got=d_rotary, wanted=f"even, at most {d_head}"
        )
    check_shape("positions", positions, (n_rows,))
    check_within("positions", positions, 0, n_ctx, program)
    y = output(out, x.shape)
    check_apart("out", y, cos, sin, positions, over=(x,))
    args = arguments(
        "rotary",
        x=floats("x", x, x.shape),
        cos=floats("cos", cos, (n_ctx, d_rotary)),
        sin=floats("sin", sin, (n_ctx, d_rotary)),
        positions=indices("positions", positions),
        y=floats("out", y, x.shape),
        n_head=n_head,
        d_head=d_head,
        d_rotary=d_rotary,
    )
    run(table_row(op, kernel), args, n_rows, 16, threads, program)
    return y
