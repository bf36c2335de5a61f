"""Matrices in the layout that the kernels multiply with: panels of 16 rows side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from refgpt.kernels.native import LANES

ALIGNMENT = 64


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """A C-ordered array of zeros that begins on a cache line; large ones take memory only where they are written."""
    n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.zeros(n_bytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + n_bytes].view(dtype).reshape(shape)


def n_panels(n_rows: int) -> int:
    """How many panels hold ``n_rows`` rows."""
    return -(-n_rows // LANES)


@dataclass(frozen=True)
class Panels:
    """A packed matrix ``[n_out, n_in]``.

    Attributes
    ----------
    data : ndarray [n_panels, n_in, 16]
        In the dtype the matrix was stored in; lanes past ``n_out`` are zero.
    dtype : str
        "f32", "f16" or "bf16".
    pointer : cdata
        To ``data``, taken once.
    """

    data: np.ndarray
    n_out: int
    n_in: int
    dtype: str
    pointer: Any
