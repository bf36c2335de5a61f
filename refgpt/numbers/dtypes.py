"""Dtypes in which numbers are stored, under the names that they have throughout the package."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

#: A bfloat16 is the upper half of a float32. NumPy has no such dtype; the field name keeps it apart from integers.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])

STORED_DTYPES: dict[str, np.dtype] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": BFLOAT16,
    "f64": np.dtype("<f8"),
}

#: What a cache can keep keys and values in.
KVDtype = Literal["f32", "f16"]
KV_DTYPES = get_args(KVDtype)


def dtype_name(dtype: np.dtype) -> str | None:
    """What a stored dtype is called here, "f32", "f16", "bf16" or "f64"; None for any other dtype."""
    return next((name for name, known in STORED_DTYPES.items() if known == dtype), None)
