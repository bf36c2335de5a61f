"""From leaves as they are stored to leaves as they are kept: one storage plan, and one loop that casts and packs.

``plan`` says what becomes of a leaf. ``parts`` makes it so, some rows at a time: it checks them, casts them and puts
them into rows or panels. Engines gather the parts in memory, converters write one after the other, and neither ever
holds a second copy of a large matrix. The pages of the file that a leaf occupied are given back before the next is
touched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from refgpt._common.float_state import default_float_state
from refgpt._common.progress import Progress
from refgpt.numbers.casting import cast
from refgpt.numbers.dtypes import STORED_DTYPES, dtype_name
from refgpt.numbers.finite import check_finite
from refgpt.numbers.leaves import Leaf, StoredRows, row_slices
from refgpt.numbers.mapped import check_unchanged, in_memory, place_of, release
from refgpt.numbers.panels import BLOCK_BYTES, FLOATS, Panels, aligned_zeros
from refgpt.numbers.quantisation import check_range
from refgpt.numbers.tree import Tree

#: Puts rows into panels: in floats as they are, in 8 and 4 bits quantised.
Fill = Callable[[np.ndarray, Panels], object]


@dataclass(frozen=True)
class Kept:
    """How a leaf is kept.

    Attributes
    ----------
    kind : str
        A dtype or encoding of ``refgpt.numbers.panels.KINDS``; of a leaf that is only written also "f64".
    layout : "rows" or "panels"
        A vector is one row.
    """

    kind: str
    layout: str

    def holds(self, leaf: StoredRows | Panels) -> bool:
        """Whether a matrix is kept so already."""
        return leaf.encoding == self.kind and isinstance(leaf, Panels) == (self.layout == "panels")

    def zeros(self, shape: tuple[int, ...], place: str) -> np.ndarray | Panels:
        """Memory for a leaf, or some rows of it."""
        if self.layout == "panels":
            return Panels.zeros(self.kind, shape[0], shape[1], place)
        return aligned_zeros(shape, STORED_DTYPES[self.kind])


#: Matrices that are read row by row by id or position; the tied head of some models is one of them as well.
EMBEDDINGS = ("wte", "wpe")


def plan(name: str, leaf: Leaf, dtype: str | None, looked_up: Collection[str] = ("wte",)) -> Kept:
    """How an engine keeps a leaf, and the packed format with it.

    Parameters
    ----------
    name : str
        What ``Params.items`` calls it.
    dtype : "f32", "f16", "q8", "q4" or None
        What was asked for; None is as stored. Vectors are float32 whatever it is, and matrices that are stored in no
        kind of panels are float32 unless it says otherwise.
    looked_up : collection of str
        The model's ``ParamTree.looked_up``: matrices that are not multiplied with. A table of embeddings that is the
        head as well lies in panels, from which rows are looked up too: in both forms it would take twice the memory.
    """
    if leaf.ndim == 1:
        return Kept("f32", "rows")
    kind = kept_kind(name, dtype)
    if kind is None and isinstance(leaf, Panels) and (name not in EMBEDDINGS or leaf.kind in (*FLOATS, "q8")):
        kind = leaf.kind
    if kind is None:
        stored = dtype_name(leaf.dtype)
        kind = stored if stored in FLOATS else "f32"
    return Kept(kind, "rows" if lies_in_rows(name, kind, looked_up) else "panels")


def kept_kind(name: str, dtype: str | None) -> str | None:
    """What a matrix is kept in for a dtype that was asked for; ``name`` is what ``Params.items`` calls it.

    Of a model in "q4" the embeddings have 8 bits: a token reads one row of them, so that they cost memory but no time,
    and an error there goes through every block. Where the head is tied to them it has 8 bits too: there
    is one table. Embeddings of positions stay floats, as stored: they are few, and each is added to every text.
    """
    if name == "wpe" and dtype in BLOCK_BYTES:
        return None
    return "q8" if dtype == "q4" and name == "wte" else dtype


def lies_in_rows(name: str, kind: str, looked_up: Collection[str] = ("wte",)) -> bool:
    """Whether a matrix of this kind stays a matrix of rows: a table in floats that is not multiplied with does."""
    return name in looked_up and kind in FLOATS


@default_float_state()
def pack_params(
    params: Tree, dtype: str | None, fill: Fill, progress: Progress | None = None, copy: bool = False
) -> Tree:
    """The same tree, every leaf kept as ``plan`` says.

    Parameters
    ----------
    fill : callable
        ``refgpt.kernels.store``, or ``refgpt.numbers.quantisation.store``, which takes longer.
    progress : callable, optional
        Called as ``progress(bytes done, bytes in all)`` after each leaf, counting bytes of the file.
    copy : bool
        Whether also what could be read where it lies in a file is copied into memory.

    Raises
    ------
    CheckpointError
        Naming the first leaf that holds NaN, infinity or what ``dtype`` cannot.
    """
    n_total, n_done = params.nbytes, 0

    def packed(name: str, leaf: Leaf) -> Leaf:
        nonlocal n_done
        check_unchanged(leaf)
        kept: Leaf = pack_leaf(name, leaf, plan(name, leaf, dtype, params.looked_up), fill)
        kept = in_memory(kept) if copy else kept
        release(leaf)
        n_done += leaf.nbytes
        if progress is not None:
            progress(n_done, n_total)
        return kept

    return params.map(packed)


def pack_leaf(name: str, leaf: Leaf, kept: Kept, fill: Fill) -> np.ndarray | Panels:
    """A leaf in memory as it is to be kept; itself where it is kept so already. Raises as ``pack_params`` does."""
    if isinstance(leaf, StoredRows | Panels) and kept.holds(leaf):
        return leaf.data if isinstance(leaf, StoredRows) else leaf
    whole = kept.zeros(leaf.shape, place_of(leaf, name))
    for _ in parts(name, leaf, kept, fill, whole):
        pass
    return whole


def parts(
    name: str, leaf: Leaf, kept: Kept, fill: Fill, whole: np.ndarray | Panels | None = None, fix: str = ""
) -> Iterator[np.ndarray | Panels]:
    """The parts of a leaf, whole rows each and in order, as they are to be kept.

    Parameters
    ----------
    whole : ndarray or Panels, optional
        Where they belong: each part is then a view of it.
    fix : str
        What to do about numbers that are too large for ``kept``; by default, to load in another dtype.

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
        else:
            rows = cast(where, rows, kept.kind, fix)
        if isinstance(whole, Panels):
            part: np.ndarray | Panels = whole.part(start, stop)
        else:
            part = kept.zeros(rows.shape, where) if whole is None else whole[start:stop]
        if isinstance(part, Panels):
            fill(np.ascontiguousarray(rows), part)
        else:
            part[...] = rows
        yield part
        start = stop
    release(leaf)
