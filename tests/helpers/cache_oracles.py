"""Oracles of attention and its cache: see ``tests.helpers.oracles``."""

from __future__ import annotations

import numpy as np

from refgpt import spec
from refgpt.kernels import CHUNK, Kernel, attention, kv_append, kv_shapes, query_tiles
from refgpt.numbers.cached import quantised_kv, rounded_kv, scales_in, values_in
from refgpt.numbers.panels import n_panels
from refgpt.spec.bounds import ops
from tests.helpers.buffers import Output, guarded, numbers, stored
from tests.helpers.cases import MOST_WORKERS, Case, Rng, float64

KV = {"f32": np.float32, "f16": np.float16, "q8": np.int8}


def filled_cache(k: np.ndarray, v: np.ndarray, capacity: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """Caches of k and v [slot, s, h, d] as ``kv_shapes`` lays them out, NaN wherever nothing was put."""
    if dtype == "q8":
        return filled_records(k, v, capacity)
    n_slots, n_keys, n_head, d_head = k.shape
    k_cache, v_cache = (np.full((n_slots, *shape), np.nan, KV[dtype]) for shape in kv_shapes(n_head, d_head, capacity))
    with np.errstate(over="ignore"):
        k, v = k.astype(KV[dtype]), v.astype(KV[dtype])
    s = np.arange(n_keys)
    k_cache[:, :, s // 16, :, s % 16] = k.transpose(1, 0, 2, 3)  # the indexed axes come first: [s, slot, h, d]
    for p in range(v_cache.shape[2]):
        part = v[..., 16 * p : 16 * p + 16]  # [slot, s, h, <= 16]
        v_cache[:, :, p, :n_keys, : part.shape[-1]] = part.transpose(0, 2, 1, 3)
    return k_cache, v_cache


def filled_records(k: np.ndarray, v: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """The same in 8 bits; the scale of what was not put is NaN."""
    n_slots, n_keys, n_head, d_head = k.shape
    shapes = kv_shapes(n_head, d_head, capacity, "q8")
    k_cache, v_cache = (np.full((n_slots, *shape), 0x7E, np.int8) for shape in shapes)  # 0x7e7e is NaN in float16
    rows = (x.reshape(-1, n_head, d_head) for x in (k, v))
    put_records(*rows, k_cache, v_cache, np.tile(np.arange(n_keys), n_slots), np.repeat(np.arange(n_slots), n_keys))
    return k_cache, v_cache


def in_blocks(
    k_cache: np.ndarray, v_cache: np.ndarray, block: int, rng: Rng
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same caches in blocks of ``block`` positions, which lie anywhere among some of NaN. -> k, v, tables"""
    n_slots, n = len(k_cache), k_cache.shape[2] * 16 // block
    places = rng.permutation(n_slots * n + 3)[: n_slots * n]
    found = []
    for cache in (k_cache, v_cache):
        axis, size = (2, block // 16) if cache is k_cache or cache.dtype == np.int8 else (3, block)
        cut = cache.reshape(*cache.shape[:axis], n, size, *cache.shape[axis + 1 :])
        cut = np.moveaxis(cut, axis, 1).reshape(n_slots * n, *np.delete(cut.shape, [0, axis]))
        strange = 0x7E if cache.dtype == np.int8 else np.nan
        found.append(np.full((n_slots * n + 3, *cut.shape[1:]), strange, cache.dtype))
        found[-1][places] = cut
    return found[0], found[1], places.reshape(n_slots, n)


def put_records(k, v, k_cache, v_cache, positions, slots) -> None:
    """What ``kv_append_q8`` does, in NumPy."""
    n_rows, n_head, d_head = k.shape
    where = slots, slice(None), positions // 16, slice(None), positions % 16
    for x, records in ((k, k_cache), (v, v_cache)):
        integers, scales = quantised_kv(x)
        scales_in(records, d_head)[where] = scales
        flat = integers.reshape(n_rows, n_head, -1)
        if records is k_cache:
            records[..., :d_head, :][where] = flat[..., :d_head]
        else:
            d_panels = n_panels(d_head)
            values_in(records, d_head)[where] = flat[..., : 16 * d_panels].reshape(n_rows, n_head, d_panels, 16)


def attention_case(dtype: str, n: int, n_rows: int, flavour: str, rng: Rng, n_head: int = 2, d_head: int = 24) -> Case:
    """``n`` keys (one at least) in each of two sequences; the rows are some of the one, some of the other, then more of
    the first.

    Where there is an even number of rows they are of a local layer: each sees the last of its keys only. Their scores
    are divided by another number, too.
    """
    n_keys, capacity, n_slots = max(n, 1), max(n, 1) + 5, 2
    q = numbers(rng, flavour, n_rows, n_head, d_head, huge=1e4)
    k, v = (numbers(rng, flavour, n_slots, n_keys, n_head, d_head, huge=1e4) for _ in range(2))
    slots = np.arange(n_rows) // max(1, n_rows // 3) % 2
    n_visible = rng.integers(1, n_keys + 1, n_rows)
    local, divisor = n_rows % 2 == 0, 1.5 if n_rows % 2 == 0 else None
    first_visible = np.maximum(n_visible - rng.integers(1, 70, n_rows), 0) if local else np.zeros_like(n_visible)
    k_cache, v_cache = filled_cache(k, v, capacity, dtype)
    padded = 16 * n_panels(capacity)
    if dtype == "q8":  # what the cache holds is known in every bit
        k, v, dtype = rounded_kv(k, "q8"), rounded_kv(v, "q8"), "f32"

    def run(kernel: Kernel, rows: slice) -> tuple[Output, Output]:
        shape = q[rows].shape
        z, z_guards = guarded(shape)
        pattern, pattern_guards = guarded((n_head, shape[0], n_keys))
        scratch = np.full((MOST_WORKERS, 8, padded), np.nan, np.float32)
        attention(
            q[rows],
            k_cache,
            v_cache,
            query_tiles(slots[rows]),
            n_visible[rows],
            z,
            first_visible=first_visible[rows] if local else None,
            divisor=divisor,
            pattern=pattern,
            scratch=scratch,
            threads=1,
            kernel=kernel,
        )
        return Output(z, z_guards), Output(pattern.transpose(1, 0, 2), pattern_guards)

    want, bound = ([np.empty(q.shape), np.empty((n_rows, n_head, n_keys))] for _ in range(2))
    for slot in range(n_slots):
        mine = slots == slot
        if not mine.any():
            continue
        mask = np.arange(n_keys) < n_visible[mine][:, None]
        mask &= np.arange(n_keys) >= first_visible[mine][:, None]
        scores = np.einsum("thd,shd->hts", float64(q[mine]), float64(k[slot])) / (divisor or np.sqrt(d_head))
        exact = spec.softmax(np.where(mask, scores, -np.inf))
        want[0][mine] = np.einsum("hts,shd->thd", exact, float64(v[slot]))
        want[1][mine] = exact.transpose(1, 0, 2)
        bound[0][mine] = ops.attention_bound(q[mine], k[slot], v[slot], mask, dtype, CHUNK, divisor)
        bound[1][mine] = ops.pattern_bound(q[mine], k[slot], mask, dtype, CHUNK, divisor).transpose(1, 0, 2)
    return Case(run, tuple(want), tuple(bound))


def kv_append_case(dtype: str, n: int, n_rows: int, flavour: str, rng: Rng, n_head: int = 2) -> Case:
    """``n`` is the width of a head. Rows go to scattered positions of three sequences; all else must stay NaN."""
    if dtype == "q8":
        return kv_append_q8_case(n, n_rows, flavour, rng, n_head)
    n_slots, capacity = 3, 64
    k, v = (stored(rng, flavour, "f32", n_rows, n_head, n) for _ in range(2))
    places = rng.permutation(n_slots * capacity)[:n_rows]
    slots, positions = places // capacity, places % capacity

    def run(kernel: Kernel, rows: slice) -> tuple[Output, Output]:
        shapes = [(n_slots, *shape) for shape in kv_shapes(n_head, n, capacity)]
        (k_cache, k_guards), (v_cache, v_guards) = (guarded(shape, KV[dtype]) for shape in shapes)
        at, slot = positions[rows], slots[rows]
        kv_append(k[rows], v[rows], k_cache, v_cache, at, slot, threads=1, kernel=kernel)
        got_k = k_cache[slot, :, at // 16, :, at % 16]  # [t, h, d]
        got_v = v_cache[slot, :, :, at]  # [t, h, panel, 16]
        k_cache[slot, :, at // 16, :, at % 16] = np.nan
        v_cache[slot, :, :, at] = np.nan
        untouched = [np.concatenate([x.ravel(), y.ravel()]) for x, y in ((k_cache, k_guards), (v_cache, v_guards))]
        return Output(got_k, untouched[0]), Output(got_v.reshape(len(at), n_head, -1), untouched[1])

    padding = [(0, 0), (0, 0), (0, -n % 16)]  # lanes past the head hold zeros
    with np.errstate(over="ignore"):
        want = float64(k.astype(KV[dtype])), float64(np.pad(v, padding).astype(KV[dtype]))
    want = tuple(np.where(np.isinf(w), np.nan, w) for w in want)  # too large for float16
    return Case(run, want, tuple(np.zeros(w.shape) for w in want))


def kv_append_q8_case(n: int, n_rows: int, flavour: str, rng: Rng, n_head: int) -> Case:
    """The numbers that rows of keys and values stand for. Every byte of the cache must be as NumPy leaves it."""
    n_slots, capacity = 3, 64
    k, v = (numbers(rng, flavour, n_rows, n_head, n, huge=3e6, tiny=3e-6) for _ in range(2))
    places = rng.permutation(n_slots * capacity)[:n_rows]
    slots, positions = places // capacity, places % capacity

    def run(kernel: Kernel, rows: slice) -> tuple[Output, Output]:
        raw, guards, wants, outputs = [], [], [], []
        for shape in kv_shapes(n_head, n, capacity, "q8"):
            buffer, ends = guarded((n_slots * int(np.prod(shape)) // 2,), np.float16)
            raw.append(buffer.view(np.int8).reshape(n_slots, *shape))
            guards.append(ends)
            wants.append(raw[-1].copy())
        where = positions[rows], slots[rows]
        kv_append(k[rows], v[rows], *raw, *where, threads=1, kernel=kernel)
        put_records(k[rows], v[rows], *wants, *where)
        at = slots[rows], slice(None), positions[rows] // 16, slice(None), positions[rows] % 16
        for records, want, ends in zip(raw, wants, guards, strict=True):
            integers = records[..., :n, :] if records is raw[0] else values_in(records, n)
            flat = integers[at].reshape(len(where[0]), n_head, -1)[..., :n].astype(np.float32)
            scales = np.repeat(scales_in(records, n)[at].astype(np.float32), 32, axis=-1)[..., :n]
            other = np.where(records == want, np.float16(np.nan), np.float16(0))
            outputs.append(Output(flat * scales, np.concatenate([other.ravel(), ends.ravel()])))
        return tuple(outputs)

    want = float64(rounded_kv(k, "q8")), float64(rounded_kv(v, "q8"))
    return Case(run, want, tuple(np.zeros(w.shape) for w in want))
