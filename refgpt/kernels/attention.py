"""Attention over a cache of keys and values, both kept as panels."""

from __future__ import annotations

from functools import cache

import numpy as np

from refgpt._common.errors import KernelError
from refgpt._common.float_state import default_float_state
from refgpt._common.wording import shown
from refgpt.kernels.calling import (
    I64,
    SMALLEST_PIECE,
    Program,
    arguments,
    as_float32,
    check_apart,
    check_array,
    check_before,
    check_shape,
    check_whole,
    check_within,
    floats,
    indices,
    output,
    run,
    table_row,
    tile_pointer,
    uncovered,
)
from refgpt.kernels.native import CHUNK, FEW_ROWS, ffi, lib
from refgpt.kernels.registry import Kernel
from refgpt.kernels.threads import check_threads
from refgpt.numbers.cached import kv_dtype_of, kv_shapes
from refgpt.numbers.panels import LANES

QUERY_TILE = np.dtype([("first_row", I64), ("n_rows", I64), ("slot", I64)])


def kv_append(
    k: np.ndarray,
    v: np.ndarray,
    k_cache: np.ndarray,
    v_cache: np.ndarray,
    positions: np.ndarray,
    blocks: np.ndarray,
    *,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> None:
    """Store k and v [t, h, d] at ``positions`` of the blocks ``blocks`` of a cache (both int64 [t]).

    The caches are [n_blocks, \\*shape] with the shapes of ``kv_shapes``: float32, float16, or int8 for 8 bits. Each
    sequence may have one block, or several of them: see ``attention``.
    """
    n_rows, n_head, d_head = check_shape("k", k, (None, None, None))
    n_blocks, block, dtype = _cache(k_cache, v_cache, n_head, d_head, written=True)
    check_shape("positions", positions, (n_rows,))
    check_shape("blocks", blocks, (n_rows,))
    check_within("positions", positions, 0, block, program)
    check_within("blocks", blocks, 0, n_blocks, program)
    check_apart("k_cache", k_cache, k, v, v_cache, positions, blocks)
    check_apart("v_cache", v_cache, k, v, positions, blocks)
    args = arguments(
        "kv_append",
        k=floats("k", k, k.shape),
        v=floats("v", v, k.shape),
        k_cache=ffi.from_buffer(k_cache),
        v_cache=ffi.from_buffer(v_cache),
        positions=indices("positions", positions),
        blocks=indices("blocks", blocks),
        n_head=n_head,
        d_head=d_head,
        block=block,
    )
    run(table_row(f"kv_append_{dtype}", kernel), args, n_rows, 16, threads, program)


def query_tiles(slots: np.ndarray) -> np.ndarray:
    """Cut rows whose sequences are ``slots`` [t] into tiles of neighbours of one sequence, for ``attention``."""
    check_shape("slots", slots, (None,))
    check_within("slots", slots, 0, 1 << 62)
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
    tables: np.ndarray | None = None,
    first_visible: np.ndarray | None = None,
    divisor: float | None = None,
    pattern: np.ndarray | None = None,
    scratch: np.ndarray | None = None,
    threads: int | None = None,
    kernel: Kernel | None = None,
    program: Program | None = None,
) -> np.ndarray:
    """Attention of rotated queries q [t, h, d] over the cache; row r sees the keys before ``n_visible[r]``.

    Parameters
    ----------
    tiles : ndarray
        From ``query_tiles``.
    n_visible : ndarray [t], int64
        For GPT-J max(position + 1, prefix_len).
    tables : ndarray [n_slots, n], int64, optional
        The blocks of the cache that hold each sequence, in the order of its positions; sequences may share blocks.
        Where a sequence has several, their size is a multiple of ``CHUNK``. By default the sequence of slot ``i`` has
        block ``i`` alone. No bit depends on where the blocks lie.
    first_visible : ndarray [t], int64, optional
        The first key that each row sees, below its ``n_visible``; by default 0. Earlier keys are not read.
    divisor : float, optional
        Of the scores; by default the root of the head's width.
    pattern : ndarray [h, t, n_keys], optional
        Receives the attention probabilities, 0 where a key is not visible.
    scratch : ndarray [threads, 8, capacity], optional
        Memory for scores.
    """
    n_rows, n_head, d_head = check_shape("q", q, (None, None, None))
    n_blocks, block, dtype = _cache(k_cache, v_cache, n_head, d_head)
    n_slots, capacity = _tables(tables, n_blocks, block, program)
    n_threads = check_threads(threads)
    check_shape("n_visible", n_visible, (n_rows,))
    n_keys = capacity if pattern is None else check_shape("pattern", pattern, (n_head, n_rows, None))[2]
    check_within("n_visible", n_visible, 1, min(capacity, n_keys) + 1, program)
    if first_visible is not None:
        check_shape("first_visible", first_visible, (n_rows,))
        check_within("first_visible", first_visible, 0, min(capacity, n_keys), program)
        check_before(first_visible, n_visible)
        if program is not None:
            program.watch_order(first_visible, n_visible)
    divisor = score_divisor(divisor, d_head)
    _check_tiles(tiles, n_rows, n_slots, program)
    if scratch is None:
        scratch = np.empty((n_threads, FEW_ROWS, capacity), np.float32)
    elif check_shape("scratch", scratch, (None, FEW_ROWS, capacity))[0] < n_threads:
        raise KernelError("wrong shape", where="scratch", got=scratch.shape, wanted=(n_threads, FEW_ROWS, capacity))
    if program is not None:
        program.limit_threads(len(scratch))
    z = output(out, q.shape)
    read = (q, k_cache, v_cache, tiles, tables, n_visible, first_visible)
    check_apart("out", z, *read, pattern, scratch)
    check_apart("scratch", scratch, *read, pattern)
    if pattern is not None:
        check_apart("pattern", pattern, *read)
    args = arguments(
        "attention",
        q=floats("q", q, q.shape),
        k=ffi.from_buffer(k_cache),
        v=ffi.from_buffer(v_cache),
        z=floats("out", z, q.shape),
        pattern=ffi.NULL if pattern is None else floats("pattern", pattern, pattern.shape, written=True),
        scratch=floats("scratch", scratch, scratch.shape, written=True),
        tiles=tile_pointer(tiles),
        tables=ffi.NULL if tables is None else indices("tables", tables),
        first_visible=ffi.NULL if first_visible is None else indices("first_visible", first_visible),
        n_visible=indices("n_visible", n_visible),
        n_tiles=len(tiles),
        n_rows=n_rows,
        n_keys=n_keys,
        n_head=n_head,
        d_head=d_head,
        block=block,
        capacity=capacity,
        divisor=divisor,
    )
    grain = max(1, SMALLEST_PIECE // max(1, 2 * capacity * d_head))
    run(table_row(f"attention_{dtype}", kernel), args, len(tiles) * n_head, grain, n_threads, program)
    return z


def score_divisor(divisor: float | None, d_head: int) -> float:
    """What scores are divided by: a number as C will have it, by default the root of a head's width."""
    if divisor is None:
        return _root(d_head)
    if isinstance(divisor, bool) or not isinstance(divisor, float | int | np.floating) or not np.float32(divisor) > 0:
        raise KernelError("not a number above 0", where="divisor", got=shown(divisor))
    return as_float32(divisor)


@cache
@default_float_state()
def _root(n: int) -> float:
    """The root of a width, whatever the caller's floating-point state is."""
    return float(np.sqrt(np.float32(n)))


def _check_tiles(tiles: np.ndarray, n_rows: int, n_slots: int, program: Program | None) -> None:
    """Refuse tiles that do not contain each row once, in order; checked now and whenever the program runs. In C, wrong
    tiles would access memory outside an array."""
    check_array("tiles", tiles)
    if tiles.dtype != QUERY_TILE or tiles.ndim != 1:
        raise uncovered()
    if not lib.refgpt_tiles_fit(tile_pointer(tiles), len(tiles), n_rows, n_slots):
        raise uncovered()
    if program is not None:
        program.watch_tiles(tiles, n_rows, n_slots)


def _tables(tables: np.ndarray | None, n_blocks: int, block: int, program: Program | None) -> tuple[int, int]:
    """Check tables of blocks, now and whenever the program runs. -> number of sequences, and positions of each"""
    if tables is None:
        return n_blocks, block
    n_slots, n = check_shape("tables", tables, (None, None))
    check_within("tables", tables, 0, n_blocks, program)
    if n > 1 and block % CHUNK:
        raise KernelError(
            "a block ends amid a chunk", where="tables", got=f"blocks of {block}", wanted=f"a multiple of {CHUNK}"
        )
    return n_slots, n * block


def _cache(
    k_cache: np.ndarray, v_cache: np.ndarray, n_head: int, d_head: int, written: bool = False
) -> tuple[int, int, str]:
    """Check both arrays of a cache, and return its number of blocks, their positions, and its dtype."""
    n_blocks, n_panels = check_shape("k_cache", k_cache, (None,) * 5)[::2][:2]
    check_array("v_cache", v_cache)
    dtype = kv_dtype_of(k_cache)
    if dtype is None or k_cache.dtype != v_cache.dtype:
        raise KernelError(
            "unusable dtype",
            where="cache",
            got=f"{k_cache.dtype} and {v_cache.dtype}",
            wanted="float32, float16 or int8, both alike",
        )
    block = n_panels * LANES
    k_shape, v_shape = kv_shapes(n_head, d_head, block, dtype)
    check_shape("k_cache", k_cache, (n_blocks, *k_shape))
    check_shape("v_cache", v_cache, (n_blocks, *v_shape))
    check_whole("k_cache", k_cache, written)
    check_whole("v_cache", v_cache, written)
    return n_blocks, block, dtype
