"""From the parameter tree to what kernels read: matrices as panels in the dtype they are kept in, vectors as float32.

Leaves are taken one by one, and the pages of the file that a leaf occupied are given back before the next is touched,
so that loading needs little more memory than the packed model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from refgpt.checkpoints import check_finite, place_of, release
from refgpt.kernels import Panels, aligned_zeros, pack
from refgpt.params import Params, kept_leaf, widen

Progress = Callable[[int, int], None]


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
    n_total = sum(leaf.nbytes for _, leaf in params.items())
    n_done = 0

    def packed(name: str, leaf: np.ndarray) -> Any:
        nonlocal n_done
        check_finite(name, leaf)
        kept = kept_leaf(place_of(leaf, name), leaf, dtype)
        if leaf.ndim == 2 and dtype == "f32":
            kept = widen(kept)
        result: np.ndarray | Panels
        if leaf.ndim == 1:
            result = np.array(widen(kept))
        elif name == "wte":
            result = aligned_zeros(kept.shape, kept.dtype)
            result[...] = kept
        else:
            result = pack(np.require(kept, requirements=["C", "ALIGNED"]), threads=threads)
        release(leaf)
        n_done += leaf.nbytes
        if progress is not None:
            progress(n_done, n_total)
        return result

    blocks = tuple(
        PackedBlock(**{f.name: packed(f"blocks.{i}.{f.name}", getattr(block, f.name)) for f in fields(block)})
        for i, block in enumerate(params.blocks)
    )
    rest = {f.name: packed(f.name, getattr(params, f.name)) for f in fields(params) if f.name != "blocks"}
    return PackedParams(blocks=blocks, **rest)
