"""Dtypes in which numbers are stored, under the names that they have throughout the package."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

#: A bfloat16 is the upper half of a float32. NumPy has no such dtype; the field name keeps it apart from integers.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])

STORED_DTYPES: dict[str, np.dtype] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": BFLOAT16,
    "f64": np.dtype("<f8"),
}

#: Other names of what weights can be kept in; q8 and q4 are the nearest to what other programs call int8 and int4.
OTHER_NAMES = {
    "float32": "f32",
    "fp32": "f32",
    "float16": "f16",
    "fp16": "f16",
    "half": "f16",
    "bfloat16": "bf16",
    "float64": "f64",
    "fp64": "f64",
    "double": "f64",
    "int8": "q8",
    "int4": "q4",
}

#: What a cache can keep keys and values in.
KVDtype = Literal["f32", "f16"]
KV_DTYPES = get_args(KVDtype)


def dtype_name(dtype: np.dtype) -> str | None:
    """What a stored dtype is called here, "f32", "f16", "bf16" or "f64"; None for any other dtype."""
    return next((name for name, known in STORED_DTYPES.items() if known == dtype), None)


def known_dtype(dtype: Any) -> Any:
    """What a dtype is called here, by whatever name it was given: "float16", "fp16" and ``np.float16`` are "f16".

    What is not known comes back as it is, for the caller to refuse.
    """
    name = dtype
    if isinstance(dtype, np.dtype) or (isinstance(dtype, type) and issubclass(dtype, np.generic)):
        name = np.dtype(dtype).name
    return OTHER_NAMES.get(name.lower(), dtype) if isinstance(name, str) else dtype
