"""Taps: ``tap(name, value) -> value`` is shown every named activation, and what it returns is used from there on.

So one mechanism records, patches and forces. All engines fire the same names in the same order. A tap may have an
attribute ``names``, the activations that it looks at or changes: an engine need not show it any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import numpy as np
from numpy.typing import DTypeLike

from refgpt.config import ModelConfig
from refgpt.errors import RefgptError

Tap = Callable[[str, np.ndarray], np.ndarray]

#: The activations of one block, in the order of the forward pass.
BLOCK_TAPS = (
    "ln",
    "q",
    "k",
    "v",
    "q_rot",
    "k_rot",
    "pattern",
    "z",
    "attn_out",
    "mlp_pre",
    "mlp_post",
    "mlp_out",
    "resid_post",
)

#: The axes of an activation, by the last part of its name: t query position, s key position, h head, d head width,
#: c d_model, f d_ff, v vocabulary. Keys and values have a row for each position too, under the name it has for them.
TAP_AXES = {
    "embed": "tc",
    "ln": "tc",
    "q": "thd",
    "k": "shd",
    "v": "shd",
    "q_rot": "thd",
    "k_rot": "shd",
    "pattern": "hts",
    "z": "thd",
    "attn_out": "tc",
    "mlp_pre": "tf",
    "mlp_post": "tf",
    "mlp_out": "tc",
    "resid_post": "tc",
    "ln_final": "tc",
    "logits": "tv",
}


def tap_names(config: ModelConfig) -> list[str]:
    """Every activation's name, in the order of the forward pass."""
    blocks = [f"blocks.{i}.{name}" for i in range(config.n_layer) for name in BLOCK_TAPS]
    return ["embed", *blocks, "ln_final", "logits"]


def tap_axes(name: str) -> str:
    """One letter of ``TAP_AXES`` for each axis of an activation."""
    return TAP_AXES[name.rpartition(".")[2]]


def tap_shapes(config: ModelConfig, n: int) -> dict[str, tuple[int, ...]]:
    """Every activation's shape for a text of ``n`` tokens, in the order of the forward pass."""
    sizes = {
        "t": n,
        "s": n,
        "h": config.n_head,
        "d": config.d_head,
        "c": config.d_model,
        "f": config.d_ff,
        "v": config.n_vocab,
    }
    return {name: tuple(sizes[axis] for axis in tap_axes(name)) for name in tap_names(config)}


def no_tap(name: str, value: np.ndarray) -> np.ndarray:
    """Leave everything as it is."""
    return value


def prefixed(tap: Tap, prefix: str) -> Tap:
    """A tap for one part of a model: it puts ``prefix`` before the names it hands to ``tap``."""
    return lambda name, value: tap(prefix + name, value)


def checked(tap: Tap, dtype: DTypeLike) -> Tap:
    """``tap`` with its answers held to the shape they replace and turned into ``dtype``.

    Raises
    ------
    RefgptError
        Naming the activation for which ``tap`` returned something else (a forgotten ``return`` gives None).
    """

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
    """A tap that keeps a copy of what it is shown.

    Parameters
    ----------
    names : collection of str, optional
        Keep only these; by default all.

    Attributes
    ----------
    trace : dict of str to ndarray
        What was kept, in the order it was fired.
    """

    def __init__(self, names: Collection[str] | None = None) -> None:
        self.names = None if names is None else frozenset(names)
        self.trace: dict[str, np.ndarray] = {}

    def __call__(self, name: str, value: np.ndarray) -> np.ndarray:
        if self.names is None or name in self.names:
            self.trace[name] = value.copy()
        return value
