"""From the parameter tree to what kernels read: matrices as panels in the dtype they are kept in, vectors as float32.

Leaves are taken one by one, and the pages of the file that a leaf occupied are given back before the next is touched,
so that loading needs little more memory than the packed model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from refgpt.checkpoints import check_finite, place_of, release
from refgpt.kernels import Panels, aligned_zeros, pack
from refgpt.params import Params, Progress, kept_leaf, widen


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
    """``refgpt.params.Params``, packed. The embedding table is looked up by rows, so it stays a matrix of rows."""

    wte: np.ndarray
    blocks: tuple[PackedBlock, ...]
    ln_w: np.ndarray
    ln_b: np.ndarray
    w_head: Panels
    b_head: np.ndarray


def pack_params(params: Params, dtype: str | None, threads: int, progress: Progress | None = None) -> PackedParams:
    """Pack every leaf.

    Parameters
    ----------
    dtype : "f16", "f32" or None
        What matrices are kept in (see ``kept_leaf``); None is as stored. "f32" widens 16-bit matrices.
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


def _packed(name: str, leaf: np.ndarray, dtype: str | None, threads: int) -> np.ndarray | Panels:
    check_finite(name, leaf)
    kept = kept_leaf(place_of(leaf, name), leaf, dtype)
    if leaf.ndim == 1:
        return np.array(widen(kept))
    if dtype == "f32":
        kept = widen(kept)
    if name == "wte":
        table = aligned_zeros(kept.shape, kept.dtype)
        table[...] = kept
        return table
    return pack(np.ascontiguousarray(kept), threads=threads)
