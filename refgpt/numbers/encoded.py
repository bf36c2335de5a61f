"""Matrices that are not stored as rows of numbers, and are decoded when they are used.

A file may hold a matrix in blocks of quantised numbers, cut into shards, or in the kernels' own layout. In a parameter
tree such a matrix takes the place of an array. It costs nothing until its rows are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np


class Encoded(ABC):
    """A matrix [n_out, n_in] in some encoding. Subclasses define the encoding and decode rows.

    Attributes
    ----------
    shape : (int, int)
        n_out and n_in.
    dtype : dtype
        Dtype of the decoded rows: float32, float16 or ``refgpt.numbers.dtypes.BFLOAT16``, whichever holds the stored
        numbers exactly.
    encoding : str
        Name of the encoding, for example "q4_0".
    nbytes : int
        Bytes as stored.
    place : str
        Its file and its name in the file, for errors.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    encoding: str
    nbytes: int
    place: str

    ndim = 2

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.shape[0] * self.shape[1]

    @abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``, decoded exactly: [stop - start, n_in] of ``dtype``."""

    def release(self) -> None:
        """Return memory that reading has taken to the operating system, if possible."""
        return None

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """The rows with these indices [t], as in an embedding lookup."""
        return np.concatenate([self.rows(int(i), int(i) + 1) for i in ids]) if len(ids) else self.rows(0, 1)[:0]
