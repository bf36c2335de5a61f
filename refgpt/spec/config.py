"""The common part of all families' configurations: counts are named ``n_*``, widths ``d_*``."""

from __future__ import annotations

from dataclasses import fields
from typing import Protocol

import numpy as np

from refgpt._common.arguments import keep_whole, whole_number
from refgpt._common.errors import ConfigError
from refgpt._common.wording import shown

#: Limits far above any real model, so that a corrupt file cannot claim all of the machine's memory.
LARGEST = {"n_layer": 1024, "n_head": 1024, "d_model": 1 << 17, "d_ff": 1 << 20, "n_vocab": 1 << 24, "n_ctx": 1 << 20}


class AnyConfig(Protocol):
    """The fields of a configuration that every family has. Shared code uses only these.

    Attributes
    ----------
    model_type : str
        The family, as transformers calls it: a key of ``refgpt.spec.FAMILIES``.
    n_layer, n_head, n_vocab, n_ctx : int
        Blocks, attention heads, rows of the embedding table, positions.
    d_model, d_ff, d_head : int
        Width of the residual stream, of the MLP's hidden layer and of one attention head.
    ln_eps : float
        Added to the variance in LayerNorm.
    bos_id, eos_id : int or None
        Ids that begin and end a text.
    further_eos_ids : tuple of int
        Further ids that end a text, if a model has several; ``eos_ids`` has all of them.
    window : int or None
        How many keys a query sees in the model's local layers, itself included; None if every layer sees all.
    n_params : int
        Number of weights and biases.
    """

    @property
    def model_type(self) -> str: ...
    @property
    def n_layer(self) -> int: ...
    @property
    def n_head(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def d_ff(self) -> int: ...
    @property
    def n_vocab(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def ln_eps(self) -> float: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def further_eos_ids(self) -> tuple[int, ...]: ...
    @property
    def eos_ids(self) -> tuple[int, ...]: ...
    @property
    def d_head(self) -> int: ...
    @property
    def window(self) -> int | None: ...
    @property
    def n_params(self) -> int: ...


class ConfigBase:
    """What the configurations of all families compute alike."""

    d_model: int
    n_head: int
    eos_id: int | None
    further_eos_ids: tuple[int, ...]

    @property
    def eos_ids(self) -> tuple[int, ...]:
        """All ids that end a text."""
        return (() if self.eos_id is None else (self.eos_id,)) + self.further_eos_ids

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_head

    @property
    def window(self) -> int | None:
        """How many keys a query sees in local layers; None, for there are none."""
        return None

    def __str__(self) -> str:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        return " ".join(f"{name}={value}" for name, value in values.items() if value != ())


def check_config(config: AnyConfig) -> None:
    """Refuse numbers that are invalid for every family.

    Raises
    ------
    ConfigError
        Whose ``where`` is the first field that makes no sense.
    """
    for name, most in LARGEST.items():
        keep_whole(config, name, 1, most, ConfigError)
    if config.d_model % config.n_head:
        raise ConfigError("does not divide d_model", where="n_head", got=f"{config.n_head} and {config.d_model}")
    eps = config.ln_eps
    if isinstance(eps, bool) or not isinstance(eps, (int, float)) or not 0 < eps < 1 or not np.float32(eps) > 0:
        wanted = "a number between 0 and 1 that is not 0 in float32"
        raise ConfigError("cannot be used", where="ln_eps", got=shown(eps), wanted=wanted)
    for name in ("bos_id", "eos_id"):
        keep_whole(config, name, 0, config.n_vocab - 1, ConfigError, optional=True)
    further = config.further_eos_ids
    if not isinstance(further, tuple):
        raise ConfigError("cannot be used", where="further_eos_ids", got=shown(further), wanted="a tuple")
    ids = tuple(whole_number("further_eos_ids", n, 0, config.n_vocab - 1, ConfigError) for n in further)
    object.__setattr__(config, "further_eos_ids", ids)
