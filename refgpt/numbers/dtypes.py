"""Stored dtypes, and their names throughout the package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import DTypeLike as DTypeLike
else:  # no program needs numpy.typing, which takes 6 ms to import
    DTypeLike = Any

#: A bfloat16 is the upper half of a float32. NumPy lacks this dtype; the field name distinguishes it from integers.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])

STORED_DTYPES: dict[str, np.dtype] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": BFLOAT16,
    "f64": np.dtype("<f8"),
}

#: Other names of dtypes for weights; q8 and q4 are the closest to other programs' int8 and int4.
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

#: Dtypes of the attention cache.
KVDtype = Literal["f32", "f16", "q8"]
KV_DTYPES = get_args(KVDtype)

#: Dtypes to which the C backend's linear layers round activations for float weights; sums are float32.
Compute = Literal["f32", "bf16"]
COMPUTES = get_args(Compute)


def dtype_name(dtype: np.dtype) -> str | None:
    """The name of a stored dtype: "f32", "f16", "bf16" or "f64"; None for any other dtype."""
    return next((name for name, known in STORED_DTYPES.items() if known == dtype), None)


def known_dtype(dtype: Any) -> Any:
    """The package's name for a dtype that was given in any form: "float16", "fp16" and ``np.float16`` become "f16".

    An unknown value is returned unchanged, for the caller to refuse.
    """
    name = dtype
    if isinstance(dtype, np.dtype) or (isinstance(dtype, type) and issubclass(dtype, np.generic)):
        name = np.dtype(dtype).name
    return OTHER_NAMES.get(name.lower(), dtype) if isinstance(name, str) else dtype
