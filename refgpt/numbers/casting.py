"""Casting: changing the stored dtype of numbers, and refusing numbers that the new dtype cannot hold."""

from __future__ import annotations

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt.numbers.dtypes import BFLOAT16, STORED_DTYPES, dtype_name
from refgpt.numbers.encoded import Encoded
from refgpt.numbers.finite import all_finite
from refgpt.numbers.leaves import Leaf, widen

#: The largest number of each dtype.
LARGEST = {"f16": 65504.0, "bf16": 2.0**128 - 2.0**120, "f32": float(np.finfo(np.float32).max), "f64": np.inf}
#: Advice when a model is loaded, for numbers that a dtype cannot hold.
FIXES = {
    "f16": "load with dtype='f32' (--dtype f32)",
    "bf16": "load with dtype='f32' (--dtype f32)",
    "f32": "load with dtype='f64' and backend='numpy' (--dtype f64 --backend numpy)",
}


def cast(where: str, rows: np.ndarray, dtype: str, fix: str = "") -> np.ndarray:
    """Cast finite numbers to another dtype, rounding to nearest even if it is narrower.

    Raises
    ------
    CheckpointError
        If one of them is too large for it.
    """
    if dtype_name(rows.dtype) == dtype:
        return rows
    narrow = narrowed(rows, dtype)
    check_cast(where, narrow, dtype, fix)
    return narrow


def check_cast(where: str, narrow: np.ndarray, dtype: str, fix: str = "") -> None:
    """Refuse finite numbers that became infinite in ``dtype``. Raises like ``cast``."""
    if not all_finite(narrow):
        raise CheckpointError(
            f"holds numbers that {dtype} cannot",
            where=where,
            wanted=f"at most {LARGEST[dtype]:g}",
            fix=fix or FIXES.get(dtype, ""),
        )


def kept_leaf(name: str, leaf: Leaf, dtype: str | None) -> Leaf:
    """A leaf as floats, in the dtype in which an engine keeps it in memory.

    Parameters
    ----------
    dtype : "f16", "bf16", "f32", "f64" or None
        "f16" and "bf16" round matrices; the few vectors (biases, LayerNorms) keep their dtype. "f32" and None round
        float64 to float32 and keep narrower floats, since widening them later is exact. "f64" changes nothing.

    Raises
    ------
    CheckpointError
        If the leaf has a number that the dtype cannot represent; ``name`` is its ``where``.
    """
    other = other_dtype(leaf, dtype)
    return leaf if other is None else cast(name, _decoded(leaf), other)


def other_dtype(leaf: Leaf, dtype: str | None) -> str | None:
    """What ``kept_leaf`` casts a leaf to; None if it leaves it as it is."""
    if dtype in ("f16", "bf16") and leaf.ndim == 2 and leaf.dtype != STORED_DTYPES[dtype]:
        return dtype
    return "f32" if dtype != "f64" and leaf.dtype == STORED_DTYPES["f64"] else None


def _decoded(leaf: Leaf) -> np.ndarray:
    return leaf.rows(0, leaf.shape[0]) if isinstance(leaf, Encoded) else leaf


def narrowed(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Cast numbers to another dtype, rounding to nearest even; numbers that are too large become infinite."""
    wide = widen(rows, np.float64 if rows.dtype == np.float64 else np.float32)
    if dtype == "bf16":
        return _to_bfloat16(wide)
    with np.errstate(over="ignore"):
        return wide.astype(STORED_DTYPES[dtype])


def _to_bfloat16(wide: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = wide.astype(np.float32)
    if wide.dtype == np.float64:  # two roundings could end on the wrong side of a tie, so the first rounds to odd
        beyond = np.abs(single) > np.abs(wide)
        single = np.where(beyond, np.nextafter(single, np.float32(0)), single)
        single = (single.view(np.uint32) | (single != wide)).view(np.float32)
    bits = single.view(np.uint32)
    nearest_even = bits + (0x7FFF + ((bits >> 16) & 1))
    return (nearest_even >> 16).astype(np.uint16).view(BFLOAT16)
