"""Matrices that are not stored as rows of numbers, and are decoded where they are used.

A file may hold a matrix in blocks of quantised numbers, cut into shards, or in the kernels' own layout. In a parameter
tree such a matrix stands where an array would, and costs nothing until somebody asks for its rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np


class Encoded(ABC):
    """A matrix [n_out, n_in] in some encoding. Subclasses say what it is, and decode rows.

    Attributes
    ----------
    shape : (int, int)
        n_out and n_in.
    dtype : dtype
        Of the rows it decodes to: float32, float16 or ``refgpt.numbers.dtypes.BFLOAT16``, whichever holds the stored
        numbers exactly.
    encoding : str
        What the stored form is called, "q4_0" for one.
    nbytes : int
        As stored.
    place : str
        Its file and what it is called there, for errors.
    """

    shape: tuple[int, int]
    dtype: np.dtype
    encoding: str
    nbytes: int
    place: str

    ndim = 2

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return self.shape[0] * self.shape[1]

    @abstractmethod
    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows ``start`` to ``stop``, decoded exactly: [stop - start, n_in] of ``dtype``."""

    def release(self) -> None:
        """Give memory that reading has taken back to the operating system, where there is a way."""
        return None

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """The rows of these numbers [t], as an embedding looks them up."""
        return np.concatenate([self.rows(int(i), int(i) + 1) for i in ids]) if len(ids) else self.rows(0, 1)[:0]
