"""From the parameter tree to what kernels read: matrices as panels in the dtype they are kept in, vectors as float32.

Leaves are taken one by one, and the pages of the file that a leaf occupied are given back before the next is touched,
so that loading needs little more memory than the packed model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from refgpt.checkpoints import Rows, check_finite, lies_in_rows, place_of, release
from refgpt.kernels import pack, quantise
from refgpt.panels import BLOCK_BYTES, FLOATS, Panels, aligned_zeros
from refgpt.params import STORED_DTYPES, Block, Leaf, Params, Progress, dtype_name, kept_leaf, row_slices, widen
from refgpt.quantisation import check_range, kept_kind


@dataclass(frozen=True)
class PackedBlock:
    """``refgpt.params.Block``, packed."""

    ln_w: np.ndarray
    ln_b: np.ndarray
    wq: Panels
    wk: Panels
    wv: Panels
    wo: Panels
    w_in: Panels
    b_in: np.ndarray
    w_out: Panels
    b_out: np.ndarray


@dataclass(frozen=True)
class PackedParams:
    """``refgpt.params.Params``, packed. The embedding table is looked up by rows: floats stay a matrix of rows."""

    wte: np.ndarray | Panels
    blocks: tuple[PackedBlock, ...]
    ln_w: np.ndarray
    ln_b: np.ndarray
    w_head: Panels
    b_head: np.ndarray

    def leaves(self) -> Iterator[np.ndarray | Panels]:
        """All of them, in no order of note."""
        parts: tuple[PackedParams | PackedBlock, ...] = (self, *self.blocks)
        for part in parts:
            yield from (getattr(part, field.name) for field in fields(part) if field.name != "blocks")

    def tree(self) -> Params:
        """The same numbers as a parameter tree, whose matrices decode where somebody asks for their rows."""
        return Params(**vars(self) | {"blocks": tuple(Block(**vars(block)) for block in self.blocks)})


def pack_params(params: Params, dtype: str | None, threads: int, progress: Progress | None = None) -> PackedParams:
    """Pack every leaf.

    Parameters
    ----------
    dtype : "f32", "f16", "q8", "q4" or None
        What matrices are kept in (see ``kept_leaf`` and ``refgpt.quantisation.kept_kind``); None is as stored. "f32"
        widens 16-bit matrices. Matrices that are panels of the right kind already are taken as they are.
    progress : callable, optional
        Called as ``progress(bytes done, bytes in all)`` after each leaf, counting bytes of the file.

    Raises
    ------
    CheckpointError
        Naming the first leaf that holds NaN, infinity or what ``dtype`` cannot.
    """
    n_total, n_done = params.nbytes, 0
    leaves: dict[str, Any] = {}
    for name, leaf in params.items():
        leaves[name] = _packed(name, leaf, dtype, threads)
        release(leaf)
        n_done += leaf.nbytes
        if progress is not None:
            progress(n_done, n_total)
    blocks = tuple(
        PackedBlock(**{f.name: leaves[f"blocks.{i}.{f.name}"] for f in fields(PackedBlock)})
        for i in range(len(params.blocks))
    )
    return PackedParams(blocks=blocks, **{f.name: leaves[f.name] for f in fields(PackedParams) if f.name != "blocks"})


def packed_kind(name: str, leaf: Leaf, dtype: str | None) -> str:
    """What a leaf is packed as: a kind of ``Panels``; of vectors always "f32".

    Parameters
    ----------
    dtype : str or None
        See ``pack_params``.
    """
    if leaf.ndim == 1:
        return "f32"
    if dtype is not None:
        return kept_kind(name, dtype) or ""
    if isinstance(leaf, Panels) and (name != "wte" or leaf.kind in (*FLOATS, "q8")):
        return leaf.kind
    stored = dtype_name(leaf.dtype)
    return stored if stored in FLOATS else "f32"


def pack_rows(where: str, rows: np.ndarray, out: np.ndarray | Panels, threads: int | None = None) -> None:
    """Put some rows of a matrix, as stored, into the panels or the table that they belong to.

    Raises
    ------
    CheckpointError
        If they hold NaN, infinity or what the kind of ``out`` cannot; ``where`` is named.
    """
    check_finite(where, rows)
    kind = out.kind if isinstance(out, Panels) else dtype_name(out.dtype) or ""
    if isinstance(out, Panels) and kind in BLOCK_BYTES:
        check_range(where, rows, kind)
        quantise(np.ascontiguousarray(kept_leaf(where, rows, None)), kind, out, threads=threads)
        return
    kept = kept_leaf(where, rows, kind)
    kept = kept if kept.dtype == out.dtype else widen(kept)
    if isinstance(out, Panels):
        pack(np.ascontiguousarray(kept), out, threads=threads)
    else:
        out[...] = kept


def pack_vector(name: str, leaf: np.ndarray) -> np.ndarray:
    """A vector in float32. Raises as ``pack_rows`` does."""
    where = place_of(leaf, name)
    check_finite(where, leaf)
    return np.array(widen(kept_leaf(where, leaf, None)))


def _packed(name: str, leaf: Leaf, dtype: str | None, threads: int) -> np.ndarray | Panels:
    """A leaf as kernels read it: some rows at a time, so that no second copy of a large matrix is ever made."""
    if isinstance(leaf, np.ndarray) and leaf.ndim == 1:
        return pack_vector(name, leaf)
    kind, (n_out, n_in) = packed_kind(name, leaf, dtype), leaf.shape
    table = lies_in_rows(name, kind)
    if isinstance(leaf, Rows) and table and leaf.encoding == kind:
        return leaf.data
    if isinstance(leaf, Panels) and not table and leaf.kind == kind:
        return leaf
    where, start = place_of(leaf, name), 0
    room = aligned_zeros((n_out, n_in), STORED_DTYPES[kind]) if table else Panels.zeros(kind, n_out, n_in, where)
    for rows in row_slices(leaf):
        stop = start + len(rows)
        pack_rows(where, rows, room[start:stop] if isinstance(room, np.ndarray) else room.part(start, stop), threads)
        start = stop
    return room
