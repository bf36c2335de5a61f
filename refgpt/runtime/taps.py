"""Taps in an engine that reuses its buffers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from refgpt.spec.taps import Tap, checked, no_tap


@dataclass(frozen=True)
class TapView:
    """A tap that is shown copies, since buffers are overwritten; what it did not change stays the buffer.

    Attributes
    ----------
    tap : Tap
    names : frozenset of str or None
        What it wants to see; None is everything.
    prefix : str
        Of the names in this part of the model.
    """

    tap: Tap
    names: frozenset[str] | None
    prefix: str = ""

    @classmethod
    def to(cls, tap: Tap) -> TapView:
        """Nothing for ``no_tap``; for others what their ``names`` say, if they have any."""
        names = () if tap is no_tap else getattr(tap, "names", None)
        return cls(checked(tap, np.float32), None if names is None else frozenset(names))

    def part(self, prefix: str) -> TapView:
        """The same for a part of the model."""
        return replace(self, prefix=prefix)

    def wants(self, name: str) -> bool:
        """Whether an activation is to be shown, and so to be computed into memory."""
        return self.names is None or self.prefix + name in self.names

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if not self.wants(name):
            return value
        copy = value.copy()
        answer = self.tap(self.prefix + name, copy)
        return value if answer is copy and np.array_equal(copy, value) else np.ascontiguousarray(answer)
