"""From the parameter tree to what kernels read: matrices as panels in the dtype they are kept in, vectors as float32.

Leaves are taken one by one, and the pages of the file that a leaf occupied are given back before the next is touched,
so that loading needs little more memory than the packed model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from refgpt.checkpoints import check_finite, place_of, release
from refgpt.kernels import pack, quantise
from refgpt.panels import BLOCK_BYTES, Panels, aligned_zeros
from refgpt.params import Block, Leaf, Params, Progress, dtype_name, kept_leaf, row_slices, widen
from refgpt.quantisation import check_range, kind_of


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
        What matrices are kept in (see ``kept_leaf`` and ``refgpt.quantisation.kind_of``); None is as stored. "f32"
        widens 16-bit matrices. Matrices that are panels of the right kind already are taken as they are.
    progress : callable, optional
        Called as ``progress(bytes done, bytes in all)`` after each leaf, counting bytes of the file.

    Raises
    ------
    CheckpointError
        Naming the first leaf that holds NaN, infinity or what ``dtype`` cannot.
    """
    n_total, n_done = sum(leaf.nbytes for _, leaf in params.items()), 0
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


def _packed(name: str, leaf: Leaf, dtype: str | None, threads: int) -> np.ndarray | Panels:
    """A leaf as kernels read it: some rows at a time, so that no second copy of a large matrix is ever made."""
    kind = kind_of(name, dtype)
    if isinstance(leaf, Panels) and kind in (None, leaf.kind) and (name != "wte" or leaf.kind == "q8"):
        return leaf
    if leaf.ndim == 2 and kind in BLOCK_BYTES:
        return _quantised(name, leaf, kind, threads)
    where, room, start = place_of(leaf, name), None, 0
    for rows in row_slices(leaf):
        check_finite(where, rows)
        kept = kept_leaf(where, rows, dtype)
        if leaf.ndim == 1:
            return np.array(widen(kept))
        if dtype == "f32":
            kept = widen(kept)
        stop = start + len(rows)
        if room is None:
            room = _room(name, leaf.shape, kept.dtype)
        if isinstance(room, Panels):
            pack(np.ascontiguousarray(kept), room.part(start, stop), threads=threads)
        else:
            room[start:stop] = kept
        start = stop
    assert room is not None  # no dimension of a model is zero
    return room


def _quantised(name: str, leaf: Leaf, kind: str, threads: int) -> Panels:
    where, start = place_of(leaf, name), 0
    room = Panels.zeros(kind, leaf.shape[0], leaf.shape[1], where)
    for rows in row_slices(leaf):
        check_finite(where, rows)
        check_range(where, rows, kind)
        stop = start + len(rows)
        quantise(np.ascontiguousarray(kept_leaf(where, rows, None)), kind, room.part(start, stop), threads=threads)
        start = stop
    return room


def _room(name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | Panels:
    if name == "wte":
        return aligned_zeros(shape, dtype)
    return Panels.zeros(dtype_name(dtype) or "", shape[0], shape[1])
