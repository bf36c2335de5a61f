"""Leaves for writing: some rows at a time, rounded to nearest even if the new dtype is narrower."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from refgpt.checkpoints.files.ggml_blocks import Blocks
from refgpt.checkpoints.files.rearranged import PickedRows, Stacked
from refgpt.numbers.casting import narrowed
from refgpt.numbers.dtypes import STORED_DTYPES, dtype_name
from refgpt.numbers.finite import check_finite
from refgpt.numbers.leaves import Leaf, widen
from refgpt.numbers.mapped import check_unchanged, release
from refgpt.numbers.packing import Kept, parts
from refgpt.numbers.panels import Panels
from refgpt.numbers.quantisation import store

PIECE = 1 << 24  # bytes that are copied at a time


def dtypes_of(leaves: Mapping[str, Leaf], dtype: str | None) -> dict[str, str]:
    """The dtype in which each leaf, or tensor of several, is written, by its name.

    A vector (bias, LayerNorm) is written in the narrowest dtype of any matrix that holds it exactly, otherwise in its
    own. So a model in one dtype keeps one dtype, even after a detour through a format that has all vectors in float32.

    Parameters
    ----------
    dtype : "f32", "f16", "bf16" or None
        The dtype of matrices. None means as stored; quantised matrices are decoded to float32.
    """
    matrices = {name: dtype or str(dtype_name(leaf.dtype)) for name, leaf in leaves.items() if leaf.ndim == 2}
    vectors = {name: leaf for name, leaf in leaves.items() if leaf.ndim == 1}
    return matrices | {name: _narrowest(leaf, set(matrices.values())) for name, leaf in vectors.items()}


def _narrowest(vector: Leaf, dtypes: set[str]) -> str:
    own, wide = str(dtype_name(vector.dtype)), widen(vector, np.float64)
    candidates = sorted(dtypes, key=lambda name: (STORED_DTYPES[name].itemsize, name != own, name))
    return next((name for name in candidates if (widen(narrowed(wide, name), np.float64) == wide).all()), own)


def written(name: str, leaf: Leaf, dtype: str) -> Iterator[np.ndarray]:
    """Yield the rows of a leaf in the wanted dtype, in contiguous pieces. The memory of its file is released.

    Parameters
    ----------
    name : str
        Its name in ``Params.items``.
    dtype : str
        A key of ``STORED_DTYPES``.

    Raises
    ------
    CheckpointError
        If a number is NaN or infinite, or too large for the dtype.
    """
    for part in parts(name, leaf, Kept(dtype, "rows"), store, fix="convert to bf16 or f32 (--dtype)"):
        yield part.data if isinstance(part, Panels) else part


def block_encoding(leaf: Leaf) -> str | None:
    """The encoding of a matrix all of which is in ggml's blocks, of one encoding; None of any other."""
    if isinstance(leaf, Blocks):
        return leaf.encoding
    if isinstance(leaf, PickedRows):
        return block_encoding(leaf.whole)
    if type(leaf) is Stacked:
        encodings = {block_encoding(part) for part in leaf.parts}
        return encodings.pop() if len(encodings) == 1 else None
    return None


def stored_blocks(leaf: Leaf) -> Iterator[np.ndarray]:
    """The same of a matrix in ggml's blocks (see ``block_encoding``), as they are."""
    check_unchanged(leaf)
    if isinstance(leaf, Stacked):
        for part in leaf.parts:
            yield from stored_blocks(part)
        return
    if isinstance(leaf, PickedRows):
        assert isinstance(leaf.whole, Blocks)
        leaf = Blocks(leaf.whole.blocks[leaf.order], leaf.encoding, leaf.place)
    assert isinstance(leaf, Blocks)
    n_rows = max(1, PIECE * len(leaf.blocks) // leaf.nbytes)
    for start in range(0, len(leaf.blocks), n_rows):
        blocks = np.ascontiguousarray(leaf.blocks[start : start + n_rows])
        for number in ("scale", "least"):
            if number in (blocks.dtype.names or ()):
                check_finite(leaf.place, blocks[number])
        yield blocks
    release(leaf)
