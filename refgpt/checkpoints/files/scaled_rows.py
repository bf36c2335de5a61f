"""A matrix whose rows are stored in another order, as integers with a scale for each row, or both."""

from __future__ import annotations

import numpy as np

from refgpt.numbers.encoded import Encoded
from refgpt.numbers.mapped import release


class ScaledRows(Encoded):
    """A matrix made of an array's rows, reordered, scaled, or both.

    Parameters
    ----------
    stored : ndarray [n_out, n_in]
        Floats, or with ``scale`` integers.
    scale : ndarray [n_out] or None
        float32; what the numbers were multiplied with before they were rounded to integers. A number is the integer
        times ``1 / scale``, with either operation rounded to float32.
    order : ndarray [n_out] or None
        Index of the stored row for each row; None if they are in order.
    place : str
        See ``Encoded``.
    """

    def __init__(self, stored: np.ndarray, scale: np.ndarray | None, order: np.ndarray | None, place: str) -> None:
        self.stored, self.scale, self.order, self.place = stored, scale, order, place
        self.shape = stored.shape[0], stored.shape[1]
        self.dtype = stored.dtype if scale is None else np.dtype("<f4")
        self.encoding = "reordered" if scale is None else str(stored.dtype)
        self.nbytes = stored.nbytes + (0 if scale is None else scale.nbytes)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See ``Encoded.rows``."""
        which = slice(start, stop) if self.order is None else self.order[start:stop]
        if self.scale is None:
            return self.stored[which]
        with np.errstate(all="ignore"):  # the caller checks for NaN and infinity
            return self.stored[which].astype(np.float32) * (np.float32(1) / self.scale[which])[:, None]

    def release(self) -> None:
        """See ``Encoded.release``."""
        release(self.stored)
