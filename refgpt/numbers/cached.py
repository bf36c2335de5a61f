"""The attention cache: the layout of keys and values, and how they are rounded.

With 8 bits, 32 neighbouring dimensions of a head share a float16 scale, as in q8 weights: 8.5 bits a number. A number
is scale x integer, which float32 holds exactly. See ``refgpt_attention_args`` in csrc/refgpt_kernels.h.
"""

from __future__ import annotations

from math import prod

import numpy as np

from refgpt._common.arguments import one_of, whole_number
from refgpt._common.errors import KernelError
from refgpt._common.float_state import default_float_state
from refgpt.numbers.dtypes import KV_DTYPES, KVDtype
from refgpt.numbers.panels import BLOCK, LANES, n_blocks, n_panels

#: The NumPy dtypes of the cache's arrays. Records of 8 bits are arrays of bytes, scales included.
KV_ARRAYS: dict[KVDtype, np.dtype] = {"f32": np.dtype("<f4"), "f16": np.dtype("<f2"), "q8": np.dtype(np.int8)}


def kv_shapes(
    n_head: int, d_head: int, capacity: int, dtype: KVDtype = "f32"
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of one sequence's keys and values for ``capacity`` positions (rounded up to whole panels of 16).

    Parameters
    ----------
    dtype : "f32", "f16" or "q8"
        The cache's dtype. With "q8" both shapes are [n_head, n_panels, bytes / 16, 16]: records of 16 positions.

    Raises
    ------
    KernelError
    """
    named = {"n_head": n_head, "d_head": d_head, "capacity": capacity}
    n_head, d_head, capacity = (whole_number(name, n, 0, None, KernelError) for name, n in named.items())
    one_of("dtype", dtype, KV_DTYPES, KernelError)
    panels, d_panels = n_panels(capacity), n_panels(d_head)
    if dtype != "q8":
        return (n_head, panels, d_head, LANES), (n_head, d_panels, panels * LANES, LANES)
    scales = 2 * n_blocks(d_head)
    return (n_head, panels, d_head + scales, LANES), (n_head, panels, d_panels * LANES + scales, LANES)


def kv_bytes(n_layer: int, n_head: int, d_head: int, dtype: KVDtype) -> int:
    """Bytes of one position's keys and values, padding and scales included."""
    shapes = kv_shapes(n_head, d_head, LANES, dtype)
    return n_layer * sum(map(prod, shapes)) * KV_ARRAYS[dtype].itemsize // LANES


def kv_dtype_of(cache: np.ndarray) -> KVDtype | None:
    """The dtype to which an array of a cache rounds keys or values; None if it is not such an array."""
    return next((name for name in KV_DTYPES if KV_ARRAYS[name] == cache.dtype), None)


def scales_in(records: np.ndarray, d_head: int) -> np.ndarray:
    """The scales of records of 8 bits [..., bytes / 16, 16]: a view [..., n_blocks, 16 positions], float16."""
    n = n_blocks(d_head)
    scales = records[..., records.shape[-2] - 2 * n :, :].view(np.float16)
    return scales.reshape(*scales.shape[:-2], n, LANES)


def values_in(records: np.ndarray, d_head: int) -> np.ndarray:
    """The integers of records of values [..., bytes / 16, 16]: a view [..., n_panels, 16 positions, 16 dimensions]."""
    n = n_panels(d_head)
    return records[..., : n * LANES, :].reshape(*records.shape[:-2], n, LANES, LANES)


@default_float_state()
def rounded_kv(x: np.ndarray, dtype: KVDtype) -> np.ndarray:
    """Keys or values as attention reads them from the cache.

    Parameters
    ----------
    x : ndarray [..., d_head], float32
    dtype : "f32", "f16" or "q8"

    Returns
    -------
    ndarray [..., d_head], float32
        A number too large for the dtype becomes infinite with "f16"; with "q8" it and its 31 neighbours become NaN.
    """
    if dtype == "f32":
        return x
    if dtype == "f16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).astype(np.float32)
    integers, scales = quantised_kv(x)
    numbers = integers * scales[..., None].astype(np.float32)
    return np.ascontiguousarray(numbers.reshape(*x.shape[:-1], -1)[..., : x.shape[-1]])


@default_float_state()
def quantised_kv(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Round keys or values to 8 bits: the same bits as the kernel ``kv_append_q8``.

    Parameters
    ----------
    x : ndarray [..., d_head], float32

    Returns
    -------
    integers : ndarray [..., n_blocks, 32], int8
    scales : ndarray [..., n_blocks], float16
        NaN where one of the 32 numbers is NaN or infinite, or the scale is too large for float16.
    """
    padded = np.zeros((*x.shape[:-1], n_blocks(x.shape[-1]) * BLOCK), np.float32)
    padded[..., : x.shape[-1]] = x
    blocks = padded.reshape(*x.shape[:-1], -1, BLOCK)
    largest = np.abs(blocks).max(-1, initial=0)  # NaN if one is
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scales = (largest / np.float32(127)).astype(np.float16)
        scales[~np.isfinite(scales)] = np.nan
        wide = scales.astype(np.float32)
        steps = np.where(wide > 0, np.float32(1) / wide, np.float32(0))[..., None]
        nearest = np.rint(np.minimum(np.maximum(blocks * steps, np.float32(-127)), np.float32(127)))
    return np.where(np.isnan(nearest), 127, nearest).astype(np.int8), scales
