"""The list of families, and the interface through which shared code uses a family.

Code outside a family's own files never tests which family a model belongs to; it calls ``family_of(config)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.numbers.dtypes import DTypeLike
from refgpt.numbers.tree import ParamTree
from refgpt.spec import gpt2, gpt_neo, gpt_neox, gptj
from refgpt.spec.config import AnyConfig
from refgpt.spec.taps import Tap, TapNames, no_tap, tap_axes


class Family(Protocol):
    """A module of ``refgpt.spec`` that specifies a family of models."""

    @property
    def Config(self) -> Any:
        """The dataclass of its configuration."""
        ...

    @property
    def Params(self) -> type[ParamTree]:
        """The dataclass of its parameters."""
        ...

    def leaf_shapes(self, config: Any) -> dict[str, tuple[int, ...]]:
        """Every leaf's name and shape, in the order of ``Params.items``."""
        ...

    def taps(self, config: Any) -> TapNames:
        """The names of its activations, in the order of the forward pass."""
        ...

    def forward(
        self,
        params: Any,
        config: Any,
        ids: Sequence[int] | np.ndarray,
        prefix_len: int = 0,
        dtype: DTypeLike = np.float64,
        tap: Tap = no_tap,
    ) -> np.ndarray:
        """Scores for the next token at every position of a text: see ``refgpt.spec.gptj.forward``."""
        ...


#: By the name that transformers gives the family, which is its configuration's ``model_type``.
FAMILIES: dict[str, Family] = {
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gptj": gptj,
    "gpt_neox": gpt_neox,
}


def family_of(config: AnyConfig) -> Family:
    """The module that specifies the family of a configuration.

    Raises
    ------
    RefgptError
        If it is not the configuration of a family.
    """
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if family is None:
        raise RefgptError("cannot be used", where="config", got=shown(config), wanted="the Config of a family")
    return family


def forward(
    params: ParamTree,
    config: AnyConfig,
    ids: Sequence[int] | np.ndarray,
    prefix_len: int = 0,
    dtype: DTypeLike = np.float64,
    tap: Tap = no_tap,
) -> np.ndarray:
    """Scores for the next token at every position of a text, as the model's family specifies them.

    Parameters
    ----------
    params : Params
        Leaves as stored; each is widened to ``dtype`` where it is used.
    config : Config
        Of the same family.
    ids : sequence of int [t]
        The text as token ids.
    prefix_len : int
        Number of leading positions that see one another (GPT-JT's prompt); 0 is the causal mask.
    dtype : floating dtype
        The dtype of all computations; with float64 this is the oracle.
    tap : callable
        ``tap(name, value) -> value``, called for every activation of ``tap_names(config)`` in that order.

    Returns
    -------
    ndarray [t, v]
        Logits: row ``t`` scores every id as the token at position ``t + 1``.

    Raises
    ------
    GenerationError
        If ``ids`` or ``prefix_len`` cannot be used.
    RefgptError
        If ``dtype`` is not a floating dtype, or a tap returns something of another shape.
    """
    return family_of(config).forward(params, config, ids, prefix_len, dtype, tap)


def leaf_shapes(config: AnyConfig) -> dict[str, tuple[int, ...]]:
    """Every leaf's name and shape, in the order of ``Params.items``."""
    return family_of(config).leaf_shapes(config)


def taps_of(config: AnyConfig) -> TapNames:
    """The parts of the activations' names: before the blocks, in each and after them."""
    return family_of(config).taps(config)


def tap_names(config: AnyConfig) -> list[str]:
    """Every activation's name, in the order of the forward pass."""
    return taps_of(config).of(config.n_layer)


def tap_shapes(config: AnyConfig, n: int) -> dict[str, tuple[int, ...]]:
    """Every activation's shape for a text of ``n`` tokens, in the order of the forward pass."""
    names = tap_names(config)
    sizes = {"t": n, "s": n, "h": config.n_head, "d": config.d_head}
    sizes |= {"c": config.d_model, "f": config.d_ff, "v": config.n_vocab}
    return {name: tuple(sizes[axis] for axis in tap_axes(name)) for name in names}
