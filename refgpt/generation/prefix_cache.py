"""Keys and values of earlier texts, found by their ids, so that a common beginning is computed only once."""

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
    """Keeps keys and values of earlier prompts for a scheduler: a ``PrefixCache``, for example."""

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

    A block's keys and values depend on it, on all before it, and on the adapter, with which the tree begins: found here
    or computed anew, they are the same in every bit. A prefix that sees itself whole is never kept.

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
        self._root, self._clock, self.n_bytes = _Node(), 0, 0

    def clear(self) -> None:
        """Forget all texts."""
        self._root, self.n_bytes = _Node(), 0

    def fill(self, session: Session, slot: int, ids: Sequence[int]) -> int:
        """Give an empty slot as many leading positions of a text as are known. -> how many"""
        found = self._path(ids, session.adapter_of(slot))
        if found:
            session.adopt(slot, ids[: BLOCK * len(found)], [node.content for node in found])
        return BLOCK * len(found)

    def keep(self, session: Session, slot: int, ids: Sequence[int]) -> None:
        """Keep the whole blocks of a text that a slot holds."""
        adapter = session.adapter_of(slot)
        path = self._path(ids, adapter)
        parent = path[-1] if path else self._root
        for i in range(len(path), len(ids) // BLOCK):
            content, n_bytes = session.export(slot, i * BLOCK, (i + 1) * BLOCK)
            if not self._make_room(n_bytes, parent):
                return
            key = _key(ids, i, adapter)
            node = _Node(parent, key, content, n_bytes, self._clock)
            parent.children[key] = node
            self.n_bytes += n_bytes
            parent = node

    def _path(self, ids: Sequence[int], adapter: str | None = None) -> list[_Node]:
        """The known blocks that a text begins with."""
        self._clock += 1
        path, node = [], self._root
        for i in range(len(ids) // BLOCK):
            following = node.children.get(_key(ids, i, adapter))
            if following is None:
                break
            following.last_used = self._clock
            path.append(following)
            node = following
        return path

    def _make_room(self, n_bytes: int, end: _Node) -> bool:
        """Forget blocks until there is room for one more after ``end``, which stays. -> whether there is"""
        while self.n_bytes + n_bytes > self.max_bytes:
            leaves = [node for node in self._leaves(self._root) if node is not end]
            if not leaves:
                return False
            oldest = min(leaves, key=lambda node: node.last_used)
            assert oldest.parent is not None
            del oldest.parent.children[oldest.key]
            self.n_bytes -= oldest.n_bytes
        return True

    def _leaves(self, root: _Node) -> list[_Node]:
        stack, leaves = list(root.children.values()), []
        while stack:
            node = stack.pop()
            if node.children:
                stack.extend(node.children.values())
            else:
                leaves.append(node)
        return leaves


def _key(ids: Sequence[int], i: int, adapter: str | None) -> bytes:
    """A block's key under the one before it. That of the first begins with the adapter's name."""
    name = f"{adapter}\0".encode() if adapter is not None and not i else b""
    return name + np.asarray(ids[i * BLOCK : (i + 1) * BLOCK], np.int64).tobytes()
