"""Taps in an engine that reuses its buffers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import numpy as np

from refgpt.spec.taps import Tap, checked, no_tap


@dataclass(frozen=True)
class TapView:
    """Calls a tap with copies, since buffers are overwritten. An activation that the tap does not change stays in its
    buffer.

    Attributes
    ----------
    tap : Tap
    names : frozenset of str or None
        The activations that it reads or changes; None means all.
    prefix : str
        Prefix of the names in this part of the model.
    looks_only : bool
        Whether the tap changes nothing and is shown the buffers themselves.
    """

    tap: Tap
    names: frozenset[str] | None
    prefix: str = ""
    looks_only: bool = False

    @classmethod
    def to(cls, tap: Tap) -> TapView:
        """A view for a tap: no names for ``no_tap``, otherwise the tap's ``names`` if it has that attribute."""
        names = () if tap is no_tap else getattr(tap, "names", None)
        return cls(checked(tap, np.float32), None if names is None else frozenset(names))

    @classmethod
    def to_nothing(cls) -> TapView:
        """A view that shows nothing to anybody."""
        return cls(no_tap, frozenset())

    def part(self, prefix: str) -> TapView:
        """The view for a part of the model."""
        return replace(self, prefix=prefix)

    def wants(self, name: str) -> bool:
        """Whether the tap needs an activation, which must then be computed into memory."""
        return self.names is None or self.prefix + name in self.names

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if not self.wants(name):
            return value
        if self.looks_only:
            self.tap(self.prefix + name, value)
            return value
        copy = value.copy()
        answer = self.tap(self.prefix + name, copy)
        return value if answer is copy and np.array_equal(copy, value) else np.ascontiguousarray(answer)


class _Seen(Exception):
    """Ends a pass: what was wanted is there."""


class OneActivation:
    """A tap that keeps one activation, and ends the pass at it.

    Attributes
    ----------
    value : ndarray
        The activation.
    """

    value: np.ndarray

    def __init__(self, name: str) -> None:
        self.names = frozenset([name])

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if name in self.names:
            self.value = value
            raise _Seen
        return value

    @contextmanager
    def until_seen(self) -> Iterator[None]:
        """The pass, within the block."""
        with suppress(_Seen):
            yield
