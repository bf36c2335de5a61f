"""A leaf as it is written: some rows at a time, rounded to nearest even where its dtype is to be narrower."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from refgpt.checkpoints import all_finite, check_finite, place_of, release
from refgpt.checkpoints.ggml_blocks import Blocks
from refgpt.errors import CheckpointError
from refgpt.params import BFLOAT16, STORED_DTYPES, Leaf, Params, dtype_name, row_slices, widen

PIECE = 1 << 24  # bytes that are copied in one go


def dtypes_of(params: Params, dtype: str | None) -> dict[str, str]:
    """The dtype in which each leaf is written, by the leaf's name.

    A vector (bias, LayerNorm) is written in the narrowest dtype of any matrix that holds it exactly, else in its own.
    So a model in one dtype stays in one, also by way of a format that has all vectors in float32.

    Parameters
    ----------
    dtype : "f32", "f16", "bf16" or None
        Of matrices. None is as stored; quantised ones decode to float32.
    """
    leaves = dict(params.items())
    matrices = {name: dtype or str(dtype_name(leaf.dtype)) for name, leaf in leaves.items() if leaf.ndim == 2}
    vectors = {name: leaf for name, leaf in leaves.items() if leaf.ndim == 1}
    return matrices | {name: _narrowest(leaf, set(matrices.values())) for name, leaf in vectors.items()}


def _narrowest(vector: Leaf, dtypes: set[str]) -> str:
    own, wide = str(dtype_name(vector.dtype)), widen(vector, np.float64)
    candidates = sorted(dtypes, key=lambda name: (STORED_DTYPES[name].itemsize, name != own, name))
    return next((name for name in candidates if (widen(_narrowed(wide, name), np.float64) == wide).all()), own)


def written(name: str, leaf: Leaf, dtype: str) -> Iterator[np.ndarray]:
    """The rows of a leaf in the dtype wanted, contiguous pieces in order; memory of its file is given back.

    Parameters
    ----------
    name : str
        What ``Params.items`` calls it.
    dtype : str
        A key of ``STORED_DTYPES``.

    Raises
    ------
    CheckpointError
        If a number is NaN or infinite, or too large for the dtype.
    """
    where = place_of(leaf, name)
    for rows in row_slices(leaf):
        check_finite(where, rows)
        narrow = rows if dtype_name(rows.dtype) == dtype else _narrowed(rows, dtype)
        if not all_finite(narrow):
            raise CheckpointError(
                f"holds numbers that {dtype} cannot", where=where, fix="convert to bf16 or f32 (--dtype)"
            )
        yield np.ascontiguousarray(narrow)
    release(leaf)


def stored_blocks(leaf: Blocks) -> Iterator[np.ndarray]:
    """The same of a matrix in ggml's blocks, as they are."""
    n_rows = max(1, PIECE * len(leaf.blocks) // leaf.nbytes)
    for start in range(0, len(leaf.blocks), n_rows):
        blocks = np.ascontiguousarray(leaf.blocks[start : start + n_rows])
        for number in ("scale", "least"):
            if number in (blocks.dtype.names or ()):
                check_finite(leaf.place, blocks[number])
        yield blocks
    release(leaf)


def _narrowed(rows: np.ndarray, dtype: str) -> np.ndarray:
    wide = widen(rows, np.float64 if rows.dtype == np.float64 else np.float32)
    if dtype == "bf16":
        return _to_bfloat16(wide)
    with np.errstate(over="ignore"):
        return wide.astype(STORED_DTYPES[dtype])


def _to_bfloat16(wide: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        single = wide.astype(np.float32)
    if wide.dtype == np.float64:  # rounded twice, a number could end on the wrong side of a tie: first round to odd
        beyond = np.abs(single) > np.abs(wide)
        single = np.where(beyond, np.nextafter(single, np.float32(0)), single)
        single = (single.view(np.uint32) | (single != wide)).view(np.float32)
    bits = single.view(np.uint32)
    nearest_even = bits + (0x7FFF + ((bits >> 16) & 1))
    return (nearest_even >> 16).astype(np.uint16).view(BFLOAT16)
