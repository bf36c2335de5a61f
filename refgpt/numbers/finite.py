"""NaN/Inf checks, run while a leaf is read so that the file is read once."""

from __future__ import annotations

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt.numbers.dtypes import dtype_name

# In NaN and infinity all exponent bits are ones; testing the bits needs no conversion.
EXPONENT_BITS: dict[str | None, int] = {"f16": 0x7C00, "bf16": 0x7F80, "f32": 0x7F800000, "f64": 0x7FF0000000000000}
CHUNK = 1 << 17  # elements checked at a time: small enough to stay in the cache


def all_finite(array: np.ndarray) -> bool:
    """Whether an array holds neither NaN nor infinity.

    Parameters
    ----------
    array : ndarray
        float16, bfloat16 (``refgpt.numbers.dtypes.BFLOAT16``), float32 or float64, of any shape and strides.

    Returns
    -------
    bool
        True for an empty array.
    """
    exponent = EXPONENT_BITS[dtype_name(array.dtype)]
    bits = array.view(f"<u{array.itemsize}")
    rows = bits.reshape(1) if bits.ndim == 0 else bits
    n_rows = max(1, CHUNK * len(rows) // max(rows.size, 1))
    chunks = (rows[i : i + n_rows] for i in range(0, len(rows), n_rows))
    return not any(chunk.size and (chunk & exponent).max() == exponent for chunk in chunks)


def check_finite(where: str, array: np.ndarray) -> None:
    """Refuse NaN and infinity in a leaf.

    Parameters
    ----------
    where : str
        Its file and its name in the file (``place_of``).
    array : ndarray
        The leaf, or some of its rows.

    Raises
    ------
    CheckpointError
    """
    if not all_finite(array):
        raise not_finite(where)


def not_finite(where: str) -> CheckpointError:
    """The error about a leaf, named by its place, that holds NaN or infinity."""
    return CheckpointError(
        "the weights hold NaN or infinity",
        where=where,
        wanted="finite numbers",
        fix="download the file again; if it was converted to float16, use bfloat16 or float32",
    )
