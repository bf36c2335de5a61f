"""The kernels of the backward pass. See ``refgpt.kernels.ops`` for what their functions share.

Gradients of weights are sums over the rows of a text. They are added to an array, ``into``, which holds those of
earlier texts or zeros. Rows may be those of several texts, one after the other: text ``s`` has the rows ``starts[s]``
to ``starts[s + 1] - 1``, int64 [n_texts + 1]; by default they are all of one. The bits are those of a call for each.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from refgpt._common.arguments import one_of
from refgpt._common.errors import KernelError
from refgpt._common.wording import shown
from refgpt.kernels.attention import score_divisor
from refgpt.kernels.calling import (
    I64,
    SMALLEST_PIECE,
    arguments,
    as_float32,
    check_apart,
    check_array,
    check_before,
    check_panels,
    check_shape,
    check_whole,
    check_within,
    even_grain,
    floats,
    indices,
    output,
    run,
    table_row,
)
from refgpt.kernels.linear import LinearInput
from refgpt.kernels.native import CHUNK, ffi
from refgpt.kernels.ops import LARGEST_FLOAT
from refgpt.kernels.registry import Kernel
from refgpt.kernels.threads import check_threads
from refgpt.numbers.dtypes import COMPUTES, Compute
from refgpt.numbers.panels import BLOCK, LANES, Panels, aligned_zeros, n_blocks, n_panels


def linear_backward(
    dy: np.ndarray | LinearInput,
    w: Panels,
    out: np.ndarray | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> np.ndarray:
    """The gradient of the rows of ``linear``: ``dy @ w``. dy [t, n_out], w packed [n_out, n_in], out [t, n_in].

    Weights of 8, 4 and 3 bits count as the numbers that they decode to. Rows are not rounded, unless the weights'
    ``compute`` is "bf16": then both are rounded to bfloat16.
    """
    w = check_panels("w", w)
    rows = dy if isinstance(dy, LinearInput) else LinearInput(dy, threads=threads)
    n_rows, n_out = check_shape("dy", rows.x, (None, w.n_out))
    floats("dy", rows.x, (n_rows, n_out))
    dx = output(out, (n_rows, w.n_in))
    packed = rows.packed().data
    check_apart("out", dx, rows.x, w.data, packed)
    args = arguments(
        "linear_backward",
        dy_panels=ffi.from_buffer("float[]", packed),
        w=ffi.from_buffer(check_whole("w", w.data)),
        dx=floats("out", dx, (n_rows, w.n_in)),
        n_rows=n_rows,
        n_in=w.n_in,
        n_out=n_out,
    )
    op, beside = (f"linear_backward_{w.kind}", 3) if w.compute == "f32" else (f"linear_backward_dots_{w.kind}", 6)
    least = max(1, SMALLEST_PIECE // max(1, n_rows * n_out * BLOCK))
    grain = even_grain(n_blocks(w.n_in), beside, least, threads)  # so many blocks go together
    run(table_row(op, kernel), args, n_blocks(w.n_in), grain, threads)
    return dx


def linear_weight_backward(
    dy: np.ndarray,
    x: np.ndarray,
    into: np.ndarray,
    *,
    starts: np.ndarray | None = None,
    compute: Compute = "f32",
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> np.ndarray:
    """Add the gradient of the weights of ``linear``, ``dy.T @ x``, to ``into`` [n_out, n_in]. dy [t, n_out], x [t,
    n_in]. With ``compute`` "bf16", both are rounded to bfloat16."""
    one_of("compute", compute, COMPUTES, KernelError)
    n_rows, n_out = check_shape("dy", dy, (None, None))
    n_in = check_shape("x", x, (n_rows, None))[1]
    starts = _starts(starts, n_rows)
    check_apart("into", into, dy, x, starts)
    args = arguments(
        "linear_weight_backward",
        x=floats("x", x, (n_rows, n_in)),
        dy=floats("dy", dy, (n_rows, n_out)),
        dw=floats("into", into, (n_out, n_in), written=True),
        starts=indices("starts", starts),
        n_texts=len(starts) - 1,
        n_in=n_in,
        n_out=n_out,
    )
    least = max(1, SMALLEST_PIECE // max(1, n_rows * n_in * LANES))
    grain = even_grain(n_panels(n_out), 8, least, threads)  # 8 panels share what is gathered for them
    op = "linear_weight_backward" if compute == "f32" else "linear_weight_backward_dots"
    run(table_row(op, kernel), args, n_panels(n_out), grain, threads)
    return into


def column_sum(
    x: np.ndarray,
    into: np.ndarray,
    *,
    starts: np.ndarray | None = None,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> np.ndarray:
    """Add the sums of the columns of x [t, n] to ``into`` [n]: the gradient of a bias."""
    n_rows, n = check_shape("x", x, (None, None))
    starts = _starts(starts, n_rows)
    check_apart("into", into, x, starts)
    pointers = {"x": floats("x", x, x.shape), "y": floats("into", into, (n,), written=True)}
    args = arguments("column_sum", **pointers, starts=indices("starts", starts), n_texts=len(starts) - 1, n=n)
    run(table_row("column_sum", kernel), args, n_panels(n), _columns_grain(n_rows), threads)
    return into


def attention_backward(
    dz: np.ndarray,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    n_visible: np.ndarray,
    *,
    first_visible: np.ndarray | None = None,
    divisor: float | None = None,
    dpattern: np.ndarray | None = None,
    out: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    scratch: np.ndarray | None = None,
    starts: np.ndarray | None = None,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradients of q, k and v of texts, from that of attention's z. All [t, h, d].

    Scores are computed again, some queries at a time: memory is linear in the text.

    Parameters
    ----------
    q, k, v : ndarray [t, h, d]
        Queries and keys rotated; keys and values as the cache keeps them, rounded to its dtype.
    n_visible, first_visible, divisor
        See ``attention``; of a text the keys are its own rows.
    dpattern : ndarray [h, t, t], optional
        Receives the gradient of the attention probabilities, also of keys that a row does not see; of a single text.
    out : three ndarrays [t, h, d], optional
        For the gradients of q, k and v.
    scratch : ndarray [threads, attention_backward_scratch(t, d)], optional
        Memory for all threads, by the ``t`` of the longest text.
    """
    n_rows, n_head, d_head = shape = check_shape("dz", dz, (None, None, None))
    n_threads = check_threads(threads)
    starts = _starts(starts, n_rows)
    lengths, n_texts = np.diff(starts), len(starts) - 1
    n_longest = int(lengths.max())
    check_shape("n_visible", n_visible, (n_rows,))
    check_within("n_visible", n_visible, 1, n_longest + 1)
    if n_texts > 1:
        if dpattern is not None:
            raise KernelError("only of a single text", where="dpattern", got=f"{n_texts} texts", wanted=1)
        if not (n_visible <= np.repeat(lengths, lengths)).all():
            raise KernelError("a row sees keys of another text", where="n_visible", fix="count its own text's only")
    if first_visible is not None:
        check_shape("first_visible", first_visible, (n_rows,))
        check_within("first_visible", first_visible, 0, n_longest)
        check_before(first_visible, n_visible)
    scratch_floats = attention_backward_scratch(n_longest, d_head)
    if scratch is None:
        scratch = aligned_zeros((n_threads, scratch_floats), np.dtype(np.float32))
    elif check_shape("scratch", scratch, (None, scratch_floats))[0] < n_threads:
        raise KernelError("wrong shape", where="scratch", got=scratch.shape, wanted=(n_threads, scratch_floats))
    read = (dz, q, k, v, n_visible, first_visible, starts)
    dq, dk, dv = (output(given, shape) for given in (out or (None, None, None)))
    check_apart("out", dq, *read, dk, dv, dpattern)
    check_apart("out", dk, *read, dv, dpattern)
    check_apart("out", dv, *read, dpattern)
    check_apart("scratch", scratch, *read, dq, dk, dv, dpattern)
    if dpattern is not None:
        check_array("dpattern", dpattern)
        check_apart("dpattern", dpattern, *read)
    args = arguments(
        "attention_backward",
        q=floats("q", q, shape),
        k=floats("k", k, shape),
        v=floats("v", v, shape),
        dz=floats("dz", dz, shape),
        dq=floats("out", dq, shape),
        dk=floats("out", dk, shape),
        dv=floats("out", dv, shape),
        dpattern=ffi.NULL if dpattern is None else floats("dpattern", dpattern, (n_head, n_rows, n_rows), written=True),
        scratch=floats("scratch", scratch, scratch.shape, written=True),
        first_visible=ffi.NULL if first_visible is None else indices("first_visible", first_visible),
        n_visible=indices("n_visible", n_visible),
        starts=indices("starts", starts),
        n_head=n_head,
        d_head=d_head,
        scratch_floats=scratch_floats,
        divisor=score_divisor(divisor, d_head),
    )
    grain = max(1, SMALLEST_PIECE // max(1, 5 * n_longest * n_longest * d_head))
    run(table_row("attention_backward", kernel), args, n_texts * n_head, grain, n_threads)
    return dq, dk, dv


def attention_backward_scratch(n_rows: int, d_head: int) -> int:
    """How many float32 each thread of ``attention_backward`` needs."""
    width, n_keys = n_panels(d_head) * LANES, -(-n_rows // CHUNK) * CHUNK
    return 5 * n_keys * width + 2 * CHUNK * (width + n_keys + LANES)


def layer_norm_backward(
    dy: np.ndarray,
    x: np.ndarray,
    w: np.ndarray,
    eps: float,
    out: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of the input x [t, c] of ``layer_norm``, [t, c]; and its rows' mean and root, [t, 2]: ``out``."""
    n_rows, n = check_shape("x", x, (None, None))
    if not isinstance(eps, float | int | np.floating) or not abs(eps) <= LARGEST_FLOAT:
        raise KernelError("cannot be used", where="eps", got=shown(eps), wanted="a number of float32")
    given = out or (None, None)
    dx, moments = output(given[0], x.shape), output(given[1], (n_rows, 2))
    check_apart("out", dx, x, w, dy, moments)
    check_apart("out", moments, x, w, dy)
    args = arguments(
        "layer_norm_backward",
        x=floats("x", x, x.shape),
        w=floats("w", w, (n,)),
        dy=floats("dy", dy, x.shape),
        dx=floats("out", dx, x.shape),
        moments=floats("out", moments, (n_rows, 2)),
        n=n,
        eps=as_float32(eps),
    )
    run(table_row("layer_norm_backward", kernel), args, n_rows, 4, threads)
    return dx, moments


def layer_norm_weight_backward(
    dy: np.ndarray,
    x: np.ndarray,
    moments: np.ndarray,
    into: np.ndarray,
    *,
    starts: np.ndarray | None = None,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> np.ndarray:
    """Add the gradient of the weight [c] of ``layer_norm`` to ``into``; ``moments`` are those of its
    ``layer_norm_backward``. The gradient of its bias is ``column_sum`` of dy."""
    n_rows, n = check_shape("x", x, (None, None))
    starts = _starts(starts, n_rows)
    check_apart("into", into, dy, x, moments, starts)
    args = arguments(
        "layer_norm_weight_backward",
        x=floats("x", x, x.shape),
        dy=floats("dy", dy, x.shape),
        moments=floats("moments", moments, (n_rows, 2)),
        dw=floats("into", into, (n,), written=True),
        starts=indices("starts", starts),
        n_texts=len(starts) - 1,
        n=n,
    )
    run(table_row("layer_norm_weight_backward", kernel), args, n_panels(n), _columns_grain(n_rows), threads)
    return into


def embedding_backward(
    dy: np.ndarray, ids: np.ndarray, into: np.ndarray, *, threads: int | None = None, kernel: Kernel | None = None
) -> np.ndarray:
    """Add the gradient dy [t, c] of each row to the row of its id, int64 [t], of ``into`` [n_vocab, c]: in their
    order."""
    n_rows, n = check_shape("dy", dy, (None, None))
    n_vocab = check_shape("into", into, (None, n))[0]
    check_shape("ids", ids, (n_rows,))
    check_within("ids", ids, 0, n_vocab)
    check_apart("into", into, dy, ids)
    args = arguments(
        "embedding_backward",
        dy=floats("dy", dy, (n_rows, n)),
        ids=indices("ids", ids),
        dtable=floats("into", into, (n_vocab, n), written=True),
        n_rows=n_rows,
        n=n,
    )
    run(table_row("embedding_backward", kernel), args, n_panels(n), _columns_grain(n_rows), threads)
    return into


def cross_entropy_backward(
    dy: np.ndarray,
    logits: np.ndarray,
    targets: np.ndarray,
    out: np.ndarray | None = None,
    *,
    parts: np.ndarray | None = None,
    threads: int | None = None,
    kernel: Kernel | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The gradient of logits [t, v] by way of the cross-entropy with targets int64 [t], and the parts of that.

    Parameters
    ----------
    dy : ndarray [t]
        The gradient of each row's cross-entropy.
    out : ndarray [t, v], optional
        May be ``logits``.
    parts : ndarray [t, 2], optional
        For the second result.

    Returns
    -------
    dlogits : ndarray [t, v]
    parts : ndarray [t, 2]
        The cross-entropy of a row is the logarithm of its first number less its second.
    """
    n_rows, n = check_shape("logits", logits, (None, None))
    check_shape("targets", targets, (n_rows,))
    check_within("targets", targets, 0, n)
    dx, parts = output(out, logits.shape), output(parts, (n_rows, 2))
    check_apart("out", dx, dy, targets, parts, over=(logits,))
    check_apart("parts", parts, dy, targets, logits)
    args = arguments(
        "cross_entropy_backward",
        x=floats("logits", logits, logits.shape),
        targets=indices("targets", targets),
        dy=floats("dy", dy, (n_rows,)),
        dx=floats("out", dx, logits.shape),
        parts=floats("parts", parts, (n_rows, 2)),
        n=n,
    )
    run(table_row("cross_entropy_backward", kernel), args, n_rows, 4, threads)
    return dx, parts


def _starts(starts: np.ndarray | None, n_rows: int) -> np.ndarray:
    """The start of each text and the end of the last; checked, because C code reads at these places."""
    if starts is None:
        return np.array([0, n_rows], np.int64)
    check_shape("starts", starts, (None,))
    listed = starts.tolist()  # few: a loop is faster than NumPy
    ascending = all(start <= stop for start, stop in pairwise(listed))
    if starts.dtype != I64 or len(listed) < 2 or listed[0] != 0 or listed[-1] != n_rows or not ascending:
        got = f"{starts.dtype} {shown(listed)}"
        raise KernelError("not where texts start", where="starts", got=got, wanted=f"ascending, from 0 to {n_rows}")
    return starts


def _columns_grain(n_rows: int) -> int:
    """Panels of columns that are worth waking a thread for."""
    return max(1, SMALLEST_PIECE // 4 // max(1, n_rows * LANES))
