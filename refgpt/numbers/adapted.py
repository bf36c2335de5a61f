"""A matrix with a low-rank adapter beside it (LoRA, Hu et al. 2021, https://arxiv.org/abs/2106.09685).

The weights are ``base + scale * b a``. Training changes ``a`` and ``b``; the base stays as it is stored, and may be
quantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refgpt.numbers.dtypes import STORED_DTYPES
from refgpt.numbers.encoded import Encoded
from refgpt.numbers.leaves import Leaf, widen
from refgpt.numbers.mapped import release
from refgpt.numbers.panels import Panels


class Adapted(Encoded):
    """An adapted matrix [n_out, n_in]. It decodes to the sum, in float64, so that rounding is left to its user.

    Attributes
    ----------
    base : Leaf
        The matrix itself.
    a : ndarray [rank, n_in], float32
        The adapter's first matrix, which is multiplied with the activations.
    b : ndarray [n_out, rank], float32
        Its second matrix.
    scale : float
        The factor of their product.
    panels : (Panels, Panels) or None
        ``a`` and ``scale * b`` as kernels read them, if the base is packed too.
    """

    encoding = "adapted"

    def __init__(
        self, base: Leaf, a: np.ndarray, b: np.ndarray, scale: float, panels: tuple[Panels, Panels] | None = None
    ) -> None:
        self.base, self.a, self.b, self.scale, self.panels = base, a, b, scale, panels
        self.place = base.place if isinstance(base, Encoded) else "adapted"
        self.shape, self.dtype = (base.shape[0], base.shape[1]), STORED_DTYPES["f64"]

    @property
    def nbytes(self) -> int:  # type: ignore[override]
        return self.base.nbytes + self.a.nbytes + self.b.nbytes

    def release(self) -> None:
        """See ``Encoded.release``."""
        release(self.base)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See ``Encoded.rows``."""
        base = self.base.rows(start, stop) if isinstance(self.base, Encoded) else self.base[start:stop]
        product = self.b[start:stop].astype(np.float64) @ self.a.astype(np.float64)
        return widen(base, np.float64) + self.scale * product


@dataclass(frozen=True)
class RowsAdapter:
    """The adapter of some neighbouring rows of activations.

    Attributes
    ----------
    start, stop : int
        Which rows.
    a, b : Panels
        As in ``Adapted.panels``.
    """

    start: int
    stop: int
    a: Panels
    b: Panels


class Scratch:
    """Memory for what adapters add to the rows of a pass. All matrices use it, one after the other.

    Parameters
    ----------
    n_rows, rank, n_out : int
        The largest sizes that occur.
    """

    def __init__(self, n_rows: int, rank: int, n_out: int) -> None:
        self._low, self._added = np.empty(n_rows * rank, np.float32), np.empty(n_rows * n_out, np.float32)
        self._zeros = np.zeros(n_rows * n_out, np.float32)

    def of(self, n_rows: int, rank: int, n_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Memory for ``x a^T`` [n_rows, rank] and for what is added [n_rows, n_out], and zeros [n_rows, n_out]."""
        low, wide = self._low[: n_rows * rank].reshape(n_rows, rank), (n_rows, n_out)
        added, zeros = (room[: n_rows * n_out].reshape(wide) for room in (self._added, self._zeros))
        return low, added, zeros


class Mixed(Encoded):
    """A matrix [n_out, n_in] in one pass whose rows of activations have different adapters, or none.

    Attributes
    ----------
    base : Leaf
        The matrix itself, as kernels read it. All rows are multiplied with it.
    parts : sequence of RowsAdapter
    scratch : Scratch
        Memory for the largest part.
    """

    encoding = "mixed"

    def __init__(self, base: Leaf, parts: Sequence[RowsAdapter], scratch: Scratch) -> None:
        self.base, self.parts, self.scratch = base, parts, scratch
        self.shape, self.dtype, self.nbytes = (base.shape[0], base.shape[1]), STORED_DTYPES["f64"], base.nbytes
        self.place = "mixed"

    def rows(self, start: int, stop: int) -> np.ndarray:
        """See ``Encoded.rows``. Raises TypeError: the weights differ between rows of activations."""
        raise TypeError("a matrix with several adapters has no rows of its own")
