"""Keys and values of earlier texts, found again by their ids: what texts begin with is not computed twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import GenerationError
from refgpt.runtime.engine import Session

#: Positions of a block: texts share whole blocks.
BLOCK = 32


class PrefixKeeper(Protocol):
    """Where a scheduler looks for what was computed for earlier prompts, and keeps it: a ``PrefixCache`` or another."""

    def fill(self, session: Session, slot: int, ids: Sequence[int]) -> int:
        """Give an empty slot as many leading positions of a text as are known. -> how many"""
        ...

    def keep(self, session: Session, slot: int, ids: Sequence[int]) -> None:
        """Keep a text that a slot holds, or some of it."""
        ...


@dataclass(eq=False)
class _Node:
    """A block of a text, under the blocks before it."""

    parent: _Node | None = None
    key: bytes = b""
    content: Any = None
    n_bytes: int = 0
    last_used: int = 0
    children: dict[bytes, _Node] = field(default_factory=dict)


class PrefixCache:
    """A radix tree over blocks of ids, each with its keys and values.

    A block's keys and values depend on it and on all before it, and on the adapter, of which each has a tree of its
    own: found here or computed anew, they are the same in every bit. A prefix that sees itself whole is never kept.

    Parameters
    ----------
    max_bytes : int
        Most bytes of keys and values. The block that was used longest ago, and that no other follows, goes first.

    Attributes
    ----------
    max_bytes : int
    n_bytes : int
        Bytes of the keys and values that are kept now.

    Raises
    ------
    GenerationError
        If ``max_bytes`` is no whole number from 0.

    Notes
    -----
    It holds for one model: do not give it to the schedulers of two.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = whole_number("max_bytes", max_bytes, 0, None, GenerationError)
        self._roots: dict[str | None, _Node] = {}  # by adapter
        self._clock = self.n_bytes = 0

    def clear(self) -> None:
        """Forget all texts."""
        self._roots, self.n_bytes = {}, 0

    def fill(self, session: Session, slot: int, ids: Sequence[int]) -> int:
        """Give an empty slot as many leading positions of a text as are known. -> how many"""
        found = self._path(self._root(session, slot), ids)
        if found:
            session.adopt(slot, ids[: BLOCK * len(found)], [node.content for node in found])
        return BLOCK * len(found)

    def keep(self, session: Session, slot: int, ids: Sequence[int]) -> None:
        """Keep the whole blocks of a text that a slot holds."""
        root = self._root(session, slot)
        path = self._path(root, ids)
        parent = path[-1] if path else root
        for i in range(len(path), len(ids) // BLOCK):
            content, n_bytes = session.export(slot, i * BLOCK, (i + 1) * BLOCK)
            if not self._make_room(n_bytes, parent):
                return
            key = _key(ids, i)
            node = _Node(parent, key, content, n_bytes, self._clock)
            parent.children[key] = node
            self.n_bytes += n_bytes
            parent = node

    def _root(self, session: Session, slot: int) -> _Node:
        """Where the texts with a slot's adapter begin."""
        return self._roots.setdefault(session.adapter_of(slot), _Node())

    def _path(self, node: _Node, ids: Sequence[int]) -> list[_Node]:
        """The known blocks that a text begins with, after this node."""
        self._clock += 1
        path = []
        for i in range(len(ids) // BLOCK):
            following = node.children.get(_key(ids, i))
            if following is None:
                break
            following.last_used = self._clock
            path.append(following)
            node = following
        return path

    def _make_room(self, n_bytes: int, end: _Node) -> bool:
        """Forget blocks until there is room for one more after ``end``, which stays. -> whether there is"""
        while self.n_bytes + n_bytes > self.max_bytes:
            leaves = [node for node in self._leaves() if node is not end]
            if not leaves:
                return False
            oldest = min(leaves, key=lambda node: node.last_used)
            assert oldest.parent is not None
            del oldest.parent.children[oldest.key]
            self.n_bytes -= oldest.n_bytes
        return True

    def _leaves(self) -> list[_Node]:
        stack, leaves = [node for root in self._roots.values() for node in root.children.values()], []
        while stack:
            node = stack.pop()
            if node.children:
                stack.extend(node.children.values())
            else:
                leaves.append(node)
        return leaves


def _key(ids: Sequence[int], i: int) -> bytes:
    return np.asarray(ids[i * BLOCK : (i + 1) * BLOCK], np.int64).tobytes()
