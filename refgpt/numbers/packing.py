"""From stored leaves to leaves in memory: one storage plan, and one loop that casts and packs.

``plan`` decides the dtype and layout of a leaf. ``parts`` produces it, some rows at a time: it checks them, casts them
and stores them as rows or panels. Engines collect the parts in memory, converters write one after the other, and
neither holds a second copy of a large matrix. A leaf's pages of the file are released before the next leaf is read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TypeGuard

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.float_state import default_float_state
from refgpt._common.memory import check_obtainable
from refgpt._common.progress import Progress
from refgpt.numbers.casting import cast, check_cast
from refgpt.numbers.dtypes import STORED_DTYPES, Compute, dtype_name
from refgpt.numbers.finite import check_finite
from refgpt.numbers.leaves import Leaf, StoredRows, row_slices
from refgpt.numbers.mapped import check_unchanged, files_of, in_memory, place_of, release
from refgpt.numbers.panels import BLOCK_BYTES, FLOATS, Panels, aligned_zeros, panel_dtype, panel_shape
from refgpt.numbers.quantisation import check_range
from refgpt.numbers.tree import ParamTree, Tree

#: What to do about weights that take too much memory.
SMALLER = (
    "load with dtype='q8' or dtype='q4' (--dtype q8 or --dtype q4), or let refgpt convert write them in the packed "
    "format, which is read where it lies"
)

#: Stores rows in panels: unchanged for floats, quantised for 8, 4 and 3 bits.
Fill = Callable[[np.ndarray, Panels], object]


@dataclass(frozen=True)
class Kept:
    """The dtype and layout of a leaf in memory.

    Attributes
    ----------
    kind : str
        A dtype or encoding of ``refgpt.numbers.panels.KINDS``; also "f64" for a leaf that is only written to a file.
    layout : "rows" or "panels"
        A vector is one row.
    """

    kind: str
    layout: str

    def holds(self, leaf: StoredRows | Panels) -> bool:
        """Whether a matrix already has this dtype and layout."""
        return leaf.encoding == self.kind and isinstance(leaf, Panels) == (self.layout == "panels")

    def n_bytes(self, shape: tuple[int, ...]) -> int:
        """What a leaf of this shape takes so."""
        if self.layout == "panels":
            return prod(panel_shape(self.kind, shape[0], shape[1])) * panel_dtype(self.kind).itemsize
        return prod(shape) * STORED_DTYPES[self.kind].itemsize

    def is_like(self, own: Leaf | None, shape: tuple[int, ...]) -> TypeGuard[np.ndarray | Panels]:
        """Whether some memory is laid out as a leaf of this shape would be."""
        if isinstance(own, Panels):
            return self.layout == "panels" and own.kind == self.kind and own.shape == shape
        return (
            isinstance(own, np.ndarray)
            and self.layout == "rows"
            and own.dtype == STORED_DTYPES[self.kind]
            and own.shape == shape
        )

    def zeros(self, shape: tuple[int, ...], place: str) -> np.ndarray | Panels:
        """Allocate memory for a leaf, or for some of its rows."""
        if self.layout == "panels":
            return Panels.zeros(self.kind, shape[0], shape[1], place)
        return aligned_zeros(shape, STORED_DTYPES[self.kind])


#: Matrices that are read row by row by id or position; the tied head of some models is one of them as well.
EMBEDDINGS = ("wte", "wpe")


def plan(
    name: str,
    leaf: Leaf,
    dtype: str | None,
    looked_up: Collection[str] = ("wte",),
    compute: Compute = "f32",
) -> Kept:
    """The dtype and layout of a leaf, in engines and in the packed format.

    Parameters
    ----------
    name : str
        What ``Params.items`` calls it.
    dtype : "f32", "f16", "bf16", "q8", "q4", "q3" or None
        The requested dtype; None means as stored. Vectors are always float32. Matrices whose stored dtype has no panels
        become float32 unless another dtype is requested.
    looked_up : collection of str
        The model's ``ParamTree.looked_up``: matrices that are not multiplied with. A table of embeddings that is the
        head as well lies in panels, from which rows are looked up too: in both forms it would take twice the memory.
    compute : "f32" or "bf16"
        With "bf16", panels of float32 become panels of bfloat16, because they are multiplied in it.
    """
    if leaf.ndim == 1:
        return Kept("f32", "rows")
    kind = kept_kind(name, dtype)
    if kind is None and isinstance(leaf, Panels) and (name not in EMBEDDINGS or leaf.kind in (*FLOATS, "q8")):
        kind = leaf.kind
    if kind is None:
        stored = dtype_name(leaf.dtype)
        kind = stored if stored in FLOATS else "f32"
    if lies_in_rows(name, kind, looked_up):
        return Kept(kind, "rows")
    return Kept("bf16" if kind == "f32" and compute == "bf16" else kind, "panels")


def kept_kind(name: str, dtype: str | None) -> str | None:
    """The dtype of a matrix for a requested dtype; ``name`` is its name in ``Params.items``.

    In a model of fewer bits the embeddings have 8 bits: a token reads only one row of them, so they cost memory but no
    time, and their errors would go through every block. Where the head is tied to them it has 8 bits too: one table is
    all there is. Embeddings of positions stay floats, as stored: they are few, and each is added to every text.
    """
    if name == "wpe" and dtype in BLOCK_BYTES:
        return None
    return "q8" if dtype in BLOCK_BYTES and name == "wte" else dtype


def lies_in_rows(name: str, kind: str, looked_up: Collection[str] = ("wte",)) -> bool:
    """Whether a matrix of this kind stays a matrix of rows: a table in floats that is not multiplied with does."""
    return name in looked_up and kind in FLOATS


@default_float_state()
def pack_params(
    params: Tree,
    dtype: str | None,
    fill: Fill,
    progress: Progress | None = None,
    n_beside: int = 0,
    copy: bool = False,
    compute: Compute = "f32",
) -> Tree:
    """The same tree, with every leaf in the dtype and layout that ``plan`` gives it.

    Parameters
    ----------
    fill : callable
        ``refgpt.kernels.store``, or ``refgpt.numbers.quantisation.store``, which takes longer.
    progress : callable, optional
        Called as ``progress(bytes done, bytes in all)`` after each leaf, counting bytes of the file.
    n_beside : int
        Bytes that adapters will take in addition.
    copy : bool
        Whether to copy leaves into memory that could be used directly from a mapped file.
    compute : "f32" or "bf16"
        What the matrices in panels get: see ``Panels`` and ``plan``.

    Raises
    ------
    CheckpointError
        Before any leaf is read, if all of them take more memory than this process can have, or a matrix has no
        dtype that ``compute`` allows; or naming the first leaf that holds NaN, infinity or what ``dtype`` cannot.
    """
    planned = {name: plan(name, leaf, dtype, params.looked_up, compute) for name, leaf in params.items()}
    if compute != "f32":
        _check_compute(params, planned)
    check_room([n_beside, *(packed_bytes(leaf, planned[name], copy) for name, leaf in params.items())])
    n_total, n_done = params.nbytes, 0

    def packed(name: str, leaf: Leaf) -> Leaf:
        nonlocal n_done
        check_unchanged(leaf)
        kept: Leaf = pack_leaf(name, leaf, planned[name], fill)
        kept = in_memory(kept) if copy else kept
        kept = computing(kept, compute)
        release(leaf)
        n_done += leaf.nbytes
        if progress is not None:
            progress(n_done, n_total)
        return kept

    return params.map(packed)


def computing(leaf: Leaf, compute: Compute) -> Leaf:
    """The same leaf, with ``compute`` if it is in panels."""
    return replace(leaf, compute=compute) if isinstance(leaf, Panels) and leaf.compute != compute else leaf


def _check_compute(params: ParamTree, planned: Mapping[str, Kept]) -> None:
    """Refuse matrices in float16, which cannot be multiplied in bfloat16."""
    for name, leaf in params.items():
        kept = planned[name]
        if kept.layout == "panels" and kept.kind == "f16":
            raise CheckpointError(
                f"is not for weights in {kept.kind}",
                where="compute",
                got=f"{place_of(leaf, name)} in {kept.kind}",
                fix="load with dtype='bf16' or dtype='f32' (--dtype bf16 or f32), or leave compute out",
            )


def packed_bytes(leaf: Leaf, kept: Kept, copy: bool) -> int:
    """Bytes that ``pack_params`` allocates for a leaf: none for a leaf that stays in its file."""
    if isinstance(leaf, StoredRows | Panels) and kept.holds(leaf):
        return copied_bytes(leaf) if copy else 0
    return kept.n_bytes(leaf.shape)


def copied_bytes(leaf: Leaf) -> int:
    """What ``in_memory`` allocates for a leaf."""
    return leaf.nbytes if files_of([leaf]) else 0


def check_room(n_bytes: Iterable[int]) -> None:
    """Refuse weights that take more memory than this process can have, given what is allocated for each leaf."""
    check_obtainable(sum(n_bytes), "the weights", SMALLER, CheckpointError)


def pack_leaf(name: str, leaf: Leaf, kept: Kept, fill: Fill, own: Leaf | None = None) -> np.ndarray | Panels:
    """A leaf in the given dtype and layout; the leaf itself if it already has them. Raises like ``pack_params``.

    ``own`` is memory to use again, if it is of the same kind and shape.
    """
    if isinstance(leaf, StoredRows | Panels) and kept.holds(leaf):
        return leaf.data if isinstance(leaf, StoredRows) else leaf
    whole = own if kept.is_like(own, leaf.shape) else kept.zeros(leaf.shape, place_of(leaf, name))
    for _ in parts(name, leaf, kept, fill, whole):
        pass
    return whole


def parts(
    name: str, leaf: Leaf, kept: Kept, fill: Fill, whole: np.ndarray | Panels | None = None, fix: str = ""
) -> Iterator[np.ndarray | Panels]:
    """Yield a leaf in the given dtype and layout, in parts of whole rows, in order.

    Parameters
    ----------
    whole : ndarray or Panels, optional
        Destination of the parts: each part is then a view of it.
    fix : str
        Advice in the error about numbers that are too large for ``kept``; by default, to load in another dtype.

    Raises
    ------
    CheckpointError
        If a number is NaN, infinite or too large.
    """
    check_unchanged(leaf)
    where, start = place_of(leaf, name), 0
    for rows in row_slices(leaf):
        stop = start + len(rows)
        check_finite(where, rows)
        if kept.kind in BLOCK_BYTES:
            check_range(where, rows, kept.kind)
            rows = cast(where, rows, "f32") if rows.dtype == STORED_DTYPES["f64"] else rows
        elif not (kept.kind == "bf16" and isinstance(whole, Panels) and rows.dtype == STORED_DTYPES["f32"]):
            rows = cast(where, rows, kept.kind, fix)
        if isinstance(whole, Panels):
            part: np.ndarray | Panels = whole.part(start, stop)
        else:
            part = kept.zeros(rows.shape, where) if whole is None else whole[start:stop]
        if isinstance(part, Panels):
            fill(np.ascontiguousarray(rows), part)  # rounds float32 to bfloat16
            if kept.kind == "bf16":
                check_cast(where, part.data, kept.kind, fix)
        else:
            part[...] = rows
        yield part
        start = stop
    release(leaf)
