"""Taps: ``tap(name, value) -> value`` is called with every named activation; its return value replaces the activation.

One mechanism thus records, patches and forces activations. All engines call taps with the same names in the same order.
A tap may have an attribute ``names``, the activations that it reads or changes: an engine need not pass it any others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import NamedTuple

import numpy as np

from refgpt._common.arguments import function_of
from refgpt._common.errors import RefgptError
from refgpt._common.wording import listed, shown
from refgpt.numbers.dtypes import DTypeLike

Tap = Callable[[str, np.ndarray], np.ndarray]

#: The axes of an activation, by the last part of its name: t query position, s key position, h head, d head width,
#: c d_model, f d_ff, v vocabulary. Keys and values have a row for each position too, under the name it has for them.
TAP_AXES = {
    "embed": "tc",
    "pos_embed": "tc",
    "resid_pre": "tc",
    "ln": "tc",
    "ln1": "tc",
    "q": "thd",
    "k": "shd",
    "v": "shd",
    "q_rot": "thd",
    "k_rot": "shd",
    "pattern": "hts",
    "z": "thd",
    "attn_out": "tc",
    "resid_mid": "tc",
    "ln2": "tc",
    "mlp_pre": "tf",
    "mlp_post": "tf",
    "mlp_out": "tc",
    "resid_post": "tc",
    "ln_final": "tc",
    "logits": "tv",
}


class TapNames(NamedTuple):
    """The names of a family's activations, in the order of the forward pass; those of ``block`` once for each block.

    Attributes
    ----------
    first : tuple of str
        Before the blocks. The last of them is the residual stream that enters block 0.
    block, last : tuple of str
        In each block, whose last one is the residual stream that leaves it ("resid_post"); and after all blocks.
    """

    first: tuple[str, ...]
    block: tuple[str, ...]
    last: tuple[str, ...]

    def of(self, n_layer: int) -> list[str]:
        """All names for a model of ``n_layer`` blocks: "embed", "blocks.0.ln", ..., "logits"."""
        blocks = [f"blocks.{i}.{name}" for i in range(n_layer) for name in self.block]
        return [*self.first, *blocks, *self.last]

    def stream(self, i: int) -> str:
        """Name of the residual stream that enters block ``i``; of the one that leaves block ``i - 1``."""
        return self.first[-1] if i == 0 else f"blocks.{i - 1}.resid_post"


def tap_axes(name: str) -> str:
    """One letter of ``TAP_AXES`` for each axis of an activation; a RefgptError if there is none of this name."""
    axes = TAP_AXES.get(name.rpartition(".")[2]) if isinstance(name, str) else None
    if axes is None:
        raise RefgptError("there is no such activation", where="name", got=shown(name), wanted=listed(TAP_AXES))
    return axes


def no_tap(name: str, value: np.ndarray) -> np.ndarray:
    """Return the activation unchanged."""
    return value


def prefixed(tap: Tap, prefix: str) -> Tap:
    """A tap for one part of a model: it calls ``tap`` with ``prefix`` put before each name."""
    return no_tap if tap is no_tap else lambda name, value: tap(prefix + name, value)


def checked(tap: Tap, dtype: DTypeLike) -> Tap:
    """``tap`` with checked results: each must have the activation's shape, and is cast to ``dtype``.

    Raises
    ------
    RefgptError
        Naming the activation for which ``tap`` returned something else (a forgotten ``return`` gives None).
    """

    function_of("tap", tap, RefgptError)

    def ask(name: str, value: np.ndarray) -> np.ndarray:
        answer = tap(name, value)
        if not isinstance(answer, np.ndarray) or answer.shape != value.shape:
            got = f"an array {list(answer.shape)}" if isinstance(answer, np.ndarray) else type(answer).__name__
            raise RefgptError(
                "a tap must return an array of the shape it was shown",
                where=name,
                got=got,
                wanted=f"an array {list(value.shape)}",
                fix="return the value unchanged to let it pass",
            )
        return answer.astype(dtype, copy=False)

    return ask


class Recorder:
    """A tap that keeps a copy of each activation.

    Parameters
    ----------
    names : collection of str, optional
        Keep only these; by default all.

    Attributes
    ----------
    trace : dict of str to ndarray
        The copies, in the order of the forward pass.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self.names = None if names is None else frozenset(names)
        self.trace: dict[str, np.ndarray] = {}

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if self.names is None or name in self.names:
            self.trace[name] = value.copy()
        return value
