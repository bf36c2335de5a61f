"""One function a kernel: check the arrays, fill the argument struct, make one C call.

Every function takes ``threads`` (None: all processors) and ``kernel`` (None: the active one; a ``Kernel`` row to
compare rows with one another). Arrays are float32 and C-contiguous unless said otherwise; ``out`` is allocated where
it is not given. The arithmetic and its order are written down in ``csrc/refgpt_kernels.h``.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from refgpt.errors import KernelError
from refgpt.kernels.native import FEW_ROWS, ffi, lib
from refgpt.kernels.registry import Kernel, active
from refgpt.kernels.threads import check_threads
from refgpt.panels import LANES, Panels, aligned_zeros, n_panels, panel_shape
from refgpt.params import BFLOAT16

F32 = np.dtype(np.float32)
I64 = np.dtype(np.int64)
DTYPE_NAMES = {F32: "f32", np.dtype(np.float16): "f16", BFLOAT16: "bf16"}
SMALLEST_PIECE = 1 << 17  # multiplications; some tens of microseconds
QUERY_TILE = np.dtype([("first_row", I64), ("n_rows", I64), ("slot", I64)])


def linear(
    x: np.ndarray,
    w: Panels,
    bias: np.ndarray | None = None,
    out: np.ndarray | None = None,
    *,
    scratch: np.ndarray | None = None,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> np.ndarray:
    """``x @ w.T + bias``: x [t, n_in], w packed [n_out, n_in], bias [n_out], out [t, n_out].

    More than 8 rows are packed first, into ``scratch`` if it is given (see ``linear_scratch``).
    """
    n_rows, n_in = _shape("x", x, (None, w.n_in))
    y = _output(out, (n_rows, w.n_out))
    x_panels = None if n_rows <= FEW_ROWS else pack(x, _row_panels(scratch, n_rows, n_in), threads=threads)
    args = _args("linear", x=_floats("x", x, (n_rows, n_in)), w=ffi.from_buffer(w.data),
                 x_panels=ffi.NULL if x_panels is None else ffi.from_buffer("float[]", x_panels.data),
                 bias=ffi.NULL if bias is None else _floats("bias", bias, (w.n_out,)),
                 y=_floats("out", y, (n_rows, w.n_out)), n_rows=n_rows, n_in=n_in, n_out=w.n_out)  # fmt: skip
    # Pieces are whole groups of panels (4 or 3 of them side by side), and large enough to be worth waking a thread for.
    group = 4 if n_rows == 1 else 12
    grain = group * max(1, SMALLEST_PIECE // max(1, n_rows * n_in * LANES * group))
    _run(kernel or active(f"linear_{w.kind}"), args, n_panels(w.n_out), grain, threads)
    return y


def linear_scratch(n_rows: int, n_in: int) -> np.ndarray:
    """Room for ``linear`` to pack up to ``n_rows`` rows of up to ``n_in`` inputs."""
    return aligned_zeros((n_panels(n_rows) * n_in * LANES,), F32)


def _row_panels(scratch: np.ndarray | None, n_rows: int, n_in: int) -> Panels | None:
    """Panels of so many rows in the scratch, if there is one and it is large enough."""
    shape = panel_shape("f32", n_rows, n_in)
    if scratch is None:
        return None
    if scratch.dtype != F32 or scratch.ndim != 1 or scratch.size < prod(shape):
        raise KernelError("too small or of another dtype", where="scratch", got=f"{scratch.dtype} {scratch.shape}",
                          wanted=f"float32 ({prod(shape)},)")  # fmt: skip
    return Panels(scratch[: prod(shape)].reshape(shape), n_rows, n_in, "f32")


def embedding(
    table: np.ndarray,
    ids: np.ndarray,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> np.ndarray:
    """Rows of a table [n_vocab, c] in its stored dtype as float32: ids int64 [t], out [t, c]."""
    n_vocab, n = _shape("table", table, (None, None))
    (n_rows,) = _shape("ids", ids, (None,))
    dtype = _dtype_name("table", table)
    _within("ids", ids, 0, n_vocab)
    y = _output(out, (n_rows, n))
    args = _args("embedding", table=ffi.from_buffer(_whole("table", table)), ids=_indices("ids", ids),
                 y=_floats("out", y, (n_rows, n)), n=n)  # fmt: skip
    _run(kernel or active(f"embedding_{dtype}"), args, n_rows, 16, threads)
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
) -> np.ndarray:
    """LayerNorm of the rows of x [t, c] with weight w [c] and bias b [c]; out may be x."""
    n_rows, n = _shape("x", x, (None, None))
    y = _output(out, x.shape)
    args = _args("layer_norm", x=_floats("x", x, x.shape), w=_floats("w", w, (n,)), b=_floats("b", b, (n,)),
                 y=_floats("out", y, x.shape), n=n, eps=eps)  # fmt: skip
    _run(kernel or active("layer_norm"), args, n_rows, 4, threads)
    return y


def gelu(
    x: np.ndarray, out: np.ndarray | None = None, *, threads: int | None = None, kernel: Kernel | None = None
) -> np.ndarray:
    """GELU (tanh form) of every element of x [t, f]; out may be x."""
    return _rowwise("gelu", x, out, threads, kernel)


def softmax(
    x: np.ndarray, out: np.ndarray | None = None, *, threads: int | None = None, kernel: Kernel | None = None
) -> np.ndarray:
    """Softmax of the rows of x [t, n]; out may be x."""
    return _rowwise("softmax", x, out, threads, kernel)


def row_sum(x: np.ndarray, *, threads: int | None = None, kernel: Kernel | None = None) -> np.ndarray:
    """Sums of the rows of x [t, n] as [t]: the yardstick for how fast memory is read."""
    n_rows, n = _shape("x", x, (None, None))
    y = np.empty(n_rows, np.float32)
    _run(
        kernel or active("row_sum"),
        _args("row_sum", x=_floats("x", x, x.shape), y=_floats("y", y, y.shape), n=n),
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
) -> np.ndarray:
    """Rotate the interleaved pairs of x [t, h, d] by the angles of ``positions`` int64 [t]; out may be x.

    The tables are [n_ctx, d_rotary]: each cosine twice, each sine once negated and once not.
    """
    n_rows, n_head, d_head = _shape("x", x, (None, None, None))
    n_ctx, d_rotary = _shape("cos", cos, (None, None))
    if d_rotary % 2 or d_rotary > d_head:
        raise KernelError(
            "the rotated dimensions do not fit the head", where="cos", got=d_rotary, wanted=f"even, at most {d_head}"
        )
    _shape("positions", positions, (n_rows,))
    _within("positions", positions, 0, n_ctx)
    y = _output(out, x.shape)
    args = _args("rotary", x=_floats("x", x, x.shape), cos=_floats("cos", cos, (n_ctx, d_rotary)),
                 sin=_floats("sin", sin, (n_ctx, d_rotary)), positions=_indices("positions", positions),
                 y=_floats("out", y, x.shape), n_head=n_head, d_head=d_head, d_rotary=d_rotary)  # fmt: skip
    _run(kernel or active("rotary"), args, n_rows, 16, threads)
    return y


def kv_shapes(n_head: int, d_head: int, capacity: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of one sequence's key and value panels for ``capacity`` positions (rounded up to whole panels)."""
    panels = n_panels(capacity)
    return (n_head, panels, d_head, LANES), (n_head, n_panels(d_head), panels * LANES, LANES)


def kv_append(
    k: np.ndarray,
    v: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    positions: np.ndarray,
    slots: np.ndarray,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> None:
    """Store k and v [t, h, d] at ``positions`` of the sequences ``slots`` (both int64 [t]).

    The caches are [n_slots, \\*shape] with the shapes of ``kv_shapes``, float32 or float16.
    """
    n_rows, n_head, d_head = _shape("k", k, (None, None, None))
    n_slots, capacity, dtype = _cache(k_cache, v_cache, n_head, d_head, written=True)
    _shape("positions", positions, (n_rows,))
    _shape("slots", slots, (n_rows,))
    _within("positions", positions, 0, capacity)
    _within("slots", slots, 0, n_slots)
    args = _args("kv_append", k=_floats("k", k, k.shape), v=_floats("v", v, k.shape), k_cache=ffi.from_buffer(k_cache),
                 v_cache=ffi.from_buffer(v_cache), positions=_indices("positions", positions),
                 slots=_indices("slots", slots), n_head=n_head, d_head=d_head, capacity=capacity)  # fmt: skip
    _run(kernel or active(f"kv_append_{dtype}"), args, n_rows, 16, threads)


def query_tiles(slots: np.ndarray) -> np.ndarray:
    """Cut rows whose sequences are ``slots`` [t] into tiles of neighbours of one sequence, for ``attention``."""
    tiles: list[tuple[int, int, int]] = []
    for row, slot in enumerate(slots.tolist()):
        if tiles and tiles[-1][2] == slot and tiles[-1][1] < FEW_ROWS:
            tiles[-1] = (tiles[-1][0], tiles[-1][1] + 1, slot)
        else:
            tiles.append((row, 1, slot))
    return np.array(tiles, QUERY_TILE)


def attention(
    q: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    tiles: np.ndarray,
    n_visible: np.ndarray,
    out: np.ndarray | None = None,
    *,
    pattern: np.ndarray | None = None,
    scratch: np.ndarray | None = None,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> np.ndarray:
    """Attention of rotated queries q [t, h, d] over the cache; row r sees the keys before ``n_visible[r]``.

    Parameters
    ----------
    tiles : ndarray
        From ``query_tiles``.
    n_visible : ndarray [t], int64
        For GPT-J max(position + 1, prefix_len).
    pattern : ndarray [h, t, n_keys], optional
        Receives the attention probabilities, 0 where a key is not visible.
    scratch : ndarray [threads, 8, capacity], optional
        Room for scores.
    """
    n_rows, n_head, d_head = _shape("q", q, (None, None, None))
    n_slots, capacity, dtype = _cache(k_cache, v_cache, n_head, d_head)
    n_threads = check_threads(threads)
    _shape("n_visible", n_visible, (n_rows,))
    n_keys = capacity if pattern is None else _shape("pattern", pattern, (n_head, n_rows, None))[2]
    _within("n_visible", n_visible, 1, min(capacity, n_keys) + 1)
    _check_tiles(tiles, n_rows, n_slots)
    if scratch is None:
        scratch = np.empty((n_threads, FEW_ROWS, capacity), np.float32)
    elif scratch.shape[0] < n_threads or scratch.shape[1:] != (FEW_ROWS, capacity):
        raise KernelError("wrong shape", where="scratch", got=scratch.shape, wanted=(n_threads, FEW_ROWS, capacity))
    z = _output(out, q.shape)
    args = _args("attention", q=_floats("q", q, q.shape), k=ffi.from_buffer(k_cache), v=ffi.from_buffer(v_cache),
                 z=_floats("out", z, q.shape),
                 pattern=ffi.NULL if pattern is None else _floats("pattern", pattern, pattern.shape, written=True),
                 scratch=_floats("scratch", scratch, scratch.shape, written=True),
                 tiles=ffi.from_buffer("refgpt_query_tile[]", tiles), n_visible=_indices("n_visible", n_visible),
                 n_rows=n_rows, n_keys=n_keys, n_head=n_head, d_head=d_head, capacity=capacity)  # fmt: skip
    _run(kernel or active(f"attention_{dtype}"), args, len(tiles) * n_head, 1, n_threads)
    return z


def pack(
    w: np.ndarray, out: Panels | None = None, *, threads: int | None = None, kernel: Kernel | None = None
) -> Panels:
    """A matrix [n_out, n_in] (float32, float16 or bfloat16) as panels of the same dtype, whole: nothing is rounded.

    The matrix may lie at any address, as it does in files. ``out`` are panels of its shape and dtype; new ones are made
    by default.
    """
    n_out, n_in = _shape("w", w, (None, None))
    kind = _dtype_name("w", w)
    out = Panels.zeros(kind, n_out, n_in) if out is None else out
    if (out.kind, out.shape) != (kind, (n_out, n_in)):
        raise KernelError("other panels than the matrix", where="out", got=f"{out.kind} {out.shape}",
                          wanted=f"{kind} {(n_out, n_in)}")  # fmt: skip
    args = _args("pack", w=ffi.from_buffer(_whole("w", w, anywhere=True)),
                 panels=ffi.from_buffer(_whole("out", out.data, written=True)), n_in=n_in, n_out=n_out)  # fmt: skip
    _run(kernel or active(f"pack_b{w.dtype.itemsize}"), args, n_panels(n_out), 4, threads)
    return out


# ---- the plumbing ---------------------------------------------------------------------------------------------


def _rowwise(op: str, x: np.ndarray, out: np.ndarray | None, threads: int | None, kernel: Kernel | None) -> np.ndarray:
    n_rows, n = _shape("x", x, (None, None))
    y = _output(out, x.shape)
    args = _args(op, x=_floats("x", x, x.shape), y=_floats("out", y, x.shape), n=n)
    _run(kernel or active(op), args, n_rows, 4, threads)
    return y


def _args(op: str, **values: Any) -> Any:
    """The argument struct of an op, and nothing kept alive but the struct: callers hold the arrays."""
    return ffi.new(f"refgpt_{op}_args *", values)


def _run(kernel: Kernel, args: Any, n_items: int, grain: int, threads: int | None) -> None:
    if kernel.obstacle:
        raise KernelError(f"{kernel} cannot run here", got=kernel.obstacle)
    lib.refgpt_run(kernel.run, args, n_items, grain, check_threads(threads))


def _shape(name: str, array: np.ndarray, wanted: tuple[int | None, ...]) -> tuple[int, ...]:
    """The array's shape, after comparing it with the one wanted (None: any size)."""
    shape = array.shape
    fits = len(shape) == len(wanted)
    for size, want in zip(shape, wanted, strict=False):  # a loop: this runs a hundred times a token
        fits = fits and (want is None or want == size)
    if not fits:
        raise KernelError("wrong shape", where=name, got=shape, wanted=tuple("any" if w is None else w for w in wanted))
    return shape


def _floats(name: str, array: np.ndarray, shape: tuple[int, ...], written: bool = False) -> Any:
    if array.dtype != F32 or array.shape != shape:
        raise KernelError(
            "not a float32 array of this shape", where=name, got=f"{array.dtype} {array.shape}", wanted=shape
        )
    return ffi.from_buffer("float[]", _whole(name, array, written))


def _indices(name: str, array: np.ndarray) -> Any:
    if array.dtype != I64:
        raise KernelError("not an int64 array", where=name, got=array.dtype)
    return ffi.from_buffer("int64_t[]", _whole(name, array))


def _within(name: str, index: np.ndarray, least: int, stop: int) -> None:
    """Refuse an index outside ``least`` .. ``stop - 1``: in C it would reach beyond an array."""
    # As unsigned numbers those below ``least`` are the largest: one pass finds both kinds.
    if index.dtype != I64 or (index.size and int((index - least).view(np.uint64).max()) >= stop - least):
        raise KernelError(
            "an index is out of range",
            where=name,
            got=f"{index.dtype} {index.min()} .. {index.max()}",
            wanted=f"int64 {least} .. {stop - 1}",
        )


def _whole(name: str, array: np.ndarray, written: bool = False, anywhere: bool = False) -> np.ndarray:
    """The array, if its elements lie side by side, each where its type wants it or ``anywhere``."""
    flags = array.flags
    if not (flags.c_contiguous and (flags.aligned or anywhere)):
        raise KernelError("not C-contiguous and aligned", where=name, fix="pass np.require(it, requirements='CA')")
    if written and not flags.writeable:
        raise KernelError("not writable", where=name)
    return array


def _check_tiles(tiles: np.ndarray, n_rows: int, n_slots: int) -> None:
    """Refuse tiles that are not each row once, in order: in C they would reach beyond an array."""
    row, fits = 0, tiles.dtype == QUERY_TILE and tiles.ndim == 1
    for first_row, height, slot in tiles.tolist() if fits else ():
        fits = fits and first_row == row and 1 <= height <= FEW_ROWS and 0 <= slot < n_slots
        row += height
    if not fits or row != n_rows:
        raise KernelError("the tiles do not cover the rows", where="tiles", fix="make them with query_tiles")
    _whole("tiles", tiles)


def _dtype_name(name: str, array: np.ndarray) -> str:
    if array.dtype not in DTYPE_NAMES:
        raise KernelError(
            "not a dtype that weights are kept in", where=name, got=array.dtype, wanted=" ".join(DTYPE_NAMES.values())
        )
    return DTYPE_NAMES[array.dtype]


def _output(out: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    if out is None:
        return np.empty(shape, np.float32)
    if not out.flags.writeable:
        raise KernelError("not writable", where="out")
    return out


def _cache(
    k_cache: np.ndarray, v_cache: np.ndarray, n_head: int, d_head: int, written: bool = False
) -> tuple[int, int, str]:
    """Number of slots, capacity and dtype of a cache, after checking both arrays."""
    n_slots, capacity = _shape("k_cache", k_cache, (None,) * 5)[0], _shape("v_cache", v_cache, (None,) * 5)[3]
    k_shape, v_shape = kv_shapes(n_head, d_head, capacity)
    _shape("k_cache", k_cache, (n_slots, *k_shape))
    _shape("v_cache", v_cache, (n_slots, *v_shape))
    dtype = _dtype_name("k_cache", k_cache)
    if k_cache.dtype != v_cache.dtype or dtype == "bf16":
        raise KernelError(
            "unusable dtype",
            where="cache",
            got=f"{k_cache.dtype} and {v_cache.dtype}",
            wanted="float32 or float16, both alike",
        )
    _whole("k_cache", k_cache, written)
    _whole("v_cache", v_cache, written)
    return n_slots, capacity, dtype
