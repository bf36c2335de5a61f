"""Parameter trees: frozen dataclasses of leaves; one field is the tuple of blocks.

Each family declares its own tree beside its forward pass. This module has the shared parts: walking a tree, and
building one from named leaves. Leaves keep their stored dtype and are usually memory maps, so the tree of a 24 GB
checkpoint costs nothing until it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np

from refgpt.numbers.casting import kept_leaf
from refgpt.numbers.leaves import Leaf

Tree = TypeVar("Tree", bound="ParamTree")


class ParamTree:
    """All parameters of a model. Subclasses are frozen dataclasses that declare the leaves.

    A leaf whose field defaults to None is optional: None in models that do not have it, and left out of ``items``.

    Attributes
    ----------
    wte : Leaf
        Token embeddings [v, c].
    blocks : tuple
        Dataclasses of leaves, of ``block_type``. Each has ``wo``, by which attention writes to the stream [c, h x d].
        Where that has a bias, it is ``bo`` [c].
    ln_w, ln_b : ndarray
        The final LayerNorm [c].
    w_head : Leaf
        The output head [v, c]. Where it is tied to the embeddings it is no leaf but a property, and ``wte`` itself.
    b_head : ndarray or None
        Its bias [v], if it has one.
    looked_up : frozenset of str
        Names of the matrices of which a token reads one row. All others are multiplied with.
    """

    block_type: ClassVar[type]
    looked_up: ClassVar[frozenset[str]] = frozenset({"wte"})
    wte: Leaf
    blocks: tuple[Any, ...]
    ln_w: np.ndarray
    ln_b: np.ndarray
    if TYPE_CHECKING:  # a leaf in one family, a property in another

        @property
        def w_head(self) -> Leaf: ...
        @property
        def b_head(self) -> np.ndarray | None: ...

    @classmethod
    def from_leaves(cls: type[Tree], leaves: Mapping[str, Any], n_layer: int) -> Tree:
        """The tree of leaves named as ``items`` names them: its inverse."""

        def found(of: type, prefix: str) -> dict[str, Any]:
            names = {f.name: f.default is None for f in fields(of) if f.name != "blocks"}
            return {n: leaves.get(prefix + n) if optional else leaves[prefix + n] for n, optional in names.items()}

        blocks = tuple(cls.block_type(**found(cls.block_type, f"blocks.{i}.")) for i in range(n_layer))
        return cls(blocks=blocks, **found(cls, ""))  # type: ignore[call-arg]

    def items(self) -> Iterator[tuple[str, Leaf]]:
        """Each leaf with its name, "wte", "blocks.0.ln_w", ..., in the order of the forward pass."""
        for field in fields(self):  # type: ignore[arg-type]
            if field.name != "blocks":
                yield field.name, getattr(self, field.name)
                continue
            for i, block in enumerate(self.blocks):
                for leaf in fields(block):
                    if getattr(block, leaf.name) is not None:
                        yield f"blocks.{i}.{leaf.name}", getattr(block, leaf.name)

    @property
    def size(self) -> int:
        """Total number of elements of all leaves."""
        return sum(leaf.size for _, leaf in self.items())

    @property
    def nbytes(self) -> int:
        """Total number of bytes of all leaves, as stored."""
        return sum(leaf.nbytes for _, leaf in self.items())

    def map(self: Tree, change: Callable[[str, Leaf], Leaf]) -> Tree:
        """The same tree with every leaf replaced by ``change(name, leaf)``."""
        return self.from_leaves({name: change(name, leaf) for name, leaf in self.items()}, len(self.blocks))

    def kept_as(self: Tree, dtype: str | None) -> Tree:
        """The tree with every leaf as the floats that an engine computes with: see ``kept_leaf``, which may raise."""
        return self.map(lambda name, leaf: kept_leaf(name, leaf, dtype))
