"""From a format's named tensors to a family's parameter tree, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import listed
from refgpt.checkpoints.checkpoint import check_leaves
from refgpt.checkpoints.files.ggml_blocks import Blocks
from refgpt.checkpoints.files.rearranged import ByHead, PickedRows, Stacked, Turned, joint_dtype, rows_of
from refgpt.checkpoints.files.sharded import Sharded
from refgpt.numbers.encoded import Encoded
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.mapped import place_of
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import family_of, leaf_shapes

#: Makes the advice of an error from the names of missing tensors and of unknown ones; both are empty if a shape
#: differs from the configuration.
WayOut = Callable[[list[str], list[str]], str]


@dataclass(frozen=True)
class Place:
    """Where a format keeps a leaf.

    Attributes
    ----------
    tensor : str
        The tensor's name; of a block's with "{}" for the block's number.
    part : int or None
        0, 1 or 2 for queries, keys and values that are stored in one tensor.
    by_head : bool
        Whether queries, keys and values alternate head by head; otherwise they are three consecutive matrices.
    turned : bool
        Whether the tensor is [in, out] instead of [out, in].
    """

    tensor: str
    part: int | None = None
    by_head: bool = False
    turned: bool = False

    def shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor, from the shape of the leaf."""
        whole = leaf if self.part is None else (3 * leaf[0], *leaf[1:])
        return whole[::-1] if self.turned else whole


def thirds(tensor: str, leaves: str, by_head: bool = False, turned: bool = False) -> dict[str, Place]:
    """The places of three leaves in one tensor; ``leaves`` are their names, with spaces between."""
    return {leaf: Place(tensor, part, by_head, turned) for part, leaf in enumerate(leaves.split())}


@dataclass(frozen=True)
class Names:
    """The names of a family's tensors in a format.

    Attributes
    ----------
    model : mapping of str to str or Place
        For each leaf outside the blocks; a plain name is a tensor that holds only the leaf.
    block : mapping of str to str or Place
        For each leaf of a block, with "{}" for the block's number.
    body : str
        Prefix of the names of all tensors except the head's.
    head : str
        Prefix of the names of the head's tensors, if they do not have the prefix ``body``.
    """

    model: Mapping[str, str | Place]
    block: Mapping[str, str | Place]
    body: str = ""
    head: str = ""

    def place(self, leaf: str) -> Place:
        """Where a leaf is stored."""
        if leaf in self.model:
            found, i = self.model[leaf], ""
        else:
            _, i, name = leaf.split(".")
            found = self.block[name]
        place = Place(found) if isinstance(found, str) else found
        tensor = place.tensor.format(i) if i else place.tensor
        outside = bool(self.head) and tensor.startswith(self.head)
        return replace(place, tensor=tensor if outside else self.body + tensor)

    def __call__(self, leaf: str) -> str:
        """The tensor that a leaf is stored in: "blocks.3.wq" -> "h.3.attn.q_proj.weight"."""
        return self.place(leaf).tensor


def named_params(
    tensors: Mapping[str, Leaf], names: Names, title: str, config: AnyConfig, path: Path, way_out: WayOut
) -> ParamTree:
    """The parameter tree over named tensors; no matrix is copied.

    Parameters
    ----------
    title : str
        What people call the family.

    Raises
    ------
    CheckpointError
        Naming every tensor that is missing, unknown or of another shape than the configuration says.
    """
    shapes = leaf_shapes(config)
    places = {leaf: names.place(leaf) for leaf in shapes}
    wanted = {place.tensor: place.shape(shapes[leaf]) for leaf, place in places.items()}
    missing = [name for name in wanted if name not in tensors]
    unknown = sorted(tensors.keys() - wanted.keys())
    if missing:
        raise CheckpointError(
            f"{len(missing)} of {len(wanted)} tensors of a {title} are missing",
            where=path,
            got=f"no {listed(missing)}",
            fix=way_out(missing, unknown),
        )
    if unknown:
        raise CheckpointError(
            f"there are tensors that have no place in {title}",
            where=path,
            got=listed(unknown),
            fix=way_out(missing, unknown),
        )
    check_leaves(tensors, wanted, path, way_out(missing, unknown))
    leaves = {leaf: _cut(tensors[place.tensor], place, shapes[leaf], config) for leaf, place in places.items()}
    return family_of(config).Params.from_leaves(leaves, config.n_layer)


def _cut(tensor: Leaf, place: Place, shape: tuple[int, ...], config: AnyConfig) -> Leaf:
    """Cut a leaf out of the tensor that holds it."""
    if place.part is None and not (place.turned and tensor.ndim == 2):
        return tensor
    where, n = place_of(tensor, place.tensor), shape[0]
    if place.turned and isinstance(tensor, np.ndarray) and tensor.ndim == 2:
        columns = slice(None) if place.part is None else slice(place.part * n, (place.part + 1) * n)
        return Sharded([tensor[:, columns].T], 0, where)
    assert place.part is not None, place
    if place.by_head:
        order = np.arange(3 * n).reshape(config.n_head, 3, -1)[:, place.part].reshape(-1)
        return tensor[order] if tensor.ndim == 1 else PickedRows(tensor, order, where)
    rows = slice(place.part * n, (place.part + 1) * n)
    if isinstance(tensor, Blocks):
        return Blocks(tensor.blocks[rows], tensor.encoding, where)
    return PickedRows(tensor, np.arange(3 * n)[rows], where) if isinstance(tensor, Encoded) else tensor[rows]


def named_tensors(params: ParamTree, names: Names, config: AnyConfig) -> dict[str, Leaf]:
    """The tensors of a format by name, in the order of the leaves, put together while they are read.

    A tensor that holds one leaf unchanged is the leaf itself.
    """
    groups: dict[str, list[tuple[Place, Leaf]]] = {}
    for name, leaf in params.items():
        place = names.place(name)
        groups.setdefault(place.tensor, []).append((place, leaf))
    return {tensor: _join(tensor, group, config) for tensor, group in groups.items()}


def _join(tensor: str, group: list[tuple[Place, Leaf]], config: AnyConfig) -> Leaf:
    (place, leaf), leaves = group[0], [leaf for _, leaf in group]
    if place.part is not None and leaf.ndim == 1:
        parts = [rows_of(part, 0, part.shape[0], joint_dtype(leaves)) for part in leaves]
        if place.by_head:
            return np.stack([part.reshape(config.n_head, -1) for part in parts], axis=1).reshape(-1)
        return np.concatenate(parts)
    if place.part is not None:
        leaf = ByHead(leaves, config.n_head, tensor) if place.by_head else Stacked(leaves, tensor)
    return Turned(leaf, tensor) if place.turned and leaf.ndim == 2 else leaf
