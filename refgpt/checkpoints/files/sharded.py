"""A matrix whose parts are stored separately or transposed. They are joined and transposed while its rows are read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refgpt.numbers.encoded import Encoded
from refgpt.numbers.leaves import widen
from refgpt.numbers.mapped import release

#: Columns that are copied at a time. Of a part that lies on its side they are so many rows, which are read from end to
#: end; left alone, NumPy walks down its columns, and takes eight times as long.
STRIP = 16


class Sharded(Encoded):
    """Parts of a matrix, one below the other or side by side.

    Parameters
    ----------
    parts : sequence of ndarray [rows, columns]
        Of one dtype; views into files, of any strides.
    axis : {0, 1}
        Along which they follow each other: 0 divides the rows among them, 1 the columns.
    place : str
        See ``Encoded``.
    added : ndarray [n_in], optional
        float32; added to every row, which is then float32.
    """

    encoding = "sharded"

    def __init__(self, parts: Sequence[np.ndarray], axis: int, place: str, added: np.ndarray | None = None) -> None:
        self.parts, self.axis, self.place, self.added = parts, axis, place, added
        n_along = sum(part.shape[axis] for part in parts)
        self.shape = (n_along, parts[0].shape[1]) if axis == 0 else (parts[0].shape[0], n_along)
        self.dtype = parts[0].dtype if added is None else np.dtype("<f4")
        self.nbytes = sum(part.nbytes for part in parts)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See ``Encoded.rows``."""
        joined = np.empty((stop - start, self.shape[1]), self.parts[0].dtype)
        at = 0
        for part in self.parts:
            end = at + part.shape[self.axis]
            if self.axis == 1:
                _copy(part[start:stop], joined[:, at:end])
            else:
                first, last = max(start, at), min(stop, end)  # of the rows asked for, those in this part
                if first < last:
                    _copy(part[first - at : last - at], joined[first - start : last - start])
            at = end
        return joined if self.added is None else widen(joined) + self.added

    def release(self) -> None:
        """See ``Encoded.release``."""
        for part in self.parts:
            release(part)


def _copy(source: np.ndarray, target: np.ndarray) -> None:
    if source.flags.c_contiguous:
        target[...] = source
        return
    for at in range(0, source.shape[1], STRIP):
        target[:, at : at + STRIP] = source[:, at : at + STRIP]
