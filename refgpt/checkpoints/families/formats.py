"""What a format has to know of a family: one class a format. Each family fills in its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError
from refgpt._common.wording import shown
from refgpt.checkpoints.families.names import Names, WayOut, named_params
from refgpt.checkpoints.families.settings import (
    Demands,
    Keys,
    build_config,
    first_keys,
    ids_of,
    read_ids,
    value_of,
)
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig


@dataclass(frozen=True)
class HuggingFace:
    """A family in checkpoints of Hugging Face: tensors of the state dict, keys of config.json.

    Attributes
    ----------
    title : str
        What people call the family.
    config : type
        Its ``Config``; what config.json leaves out has the defaults of this class.
    names : Names
        The tensors, without ``body``.
    body : str
        What stands before the names of all tensors but the head's, or of none (where the body was saved alone).
    head : str
        How the names of the head's tensors begin.
    buffer : pattern
        Constants that some versions save with the weights, without ``body``.
    keys : mapping
        config.json: the key of each field, then the other names under which transformers knows it.
    demands : mapping
        Keys that may be absent but must not say otherwise, and why.
    fix : str
        The way out if they do.
    constants : mapping
        What config.json says of every model of the family.
    tied : tuple of (str, str)
        Leaves that are one where a model's embeddings are tied: each, and what stands for it.
    way_out : callable
        See ``named_params``.
    """

    title: str
    config: Any
    names: Names
    body: str
    head: str
    buffer: re.Pattern[str]
    keys: Keys
    demands: Demands
    fix: str
    constants: Mapping[str, Any]
    tied: tuple[tuple[str, str], ...]
    way_out: WayOut

    def full_name(self, leaf: str) -> str:
        """Where a leaf is stored in a whole model: all but the head with ``body`` in front."""
        name = self.names(leaf)
        return name if name.startswith(self.head) else self.body + name

    def mask_name(self, i: int) -> str:
        """The buffer that holds the mask of a layer."""
        return f"{self.body}h.{i}.attn.bias"

    def read_config(self, raw: Mapping[str, Any], path: Path) -> Any:
        """The keys of a config.json as a ``Config``; what is absent has the default of transformers.

        Parameters
        ----------
        raw : mapping
            The parsed config.json.
        path : Path
            Its path, for errors.

        Raises
        ------
        ConfigError
            If a value makes no sense, two names of one value disagree, or the file describes something other than the
            family.
        """
        for key, (accepted, reason) in self.demands.items():
            if key in raw and raw[key] not in accepted:
                raise ConfigError(
                    f"{key} describes another model: {reason}",
                    where=path,
                    got=shown(raw[key]),
                    wanted=" or ".join(map(repr, accepted)),
                    fix=self.fix,
                )
        given: dict[str, Any] = {
            field: value_of(raw, keys, path) for field, keys in self.keys.items() if any(key in raw for key in keys)
        }
        n_vocab, d_model = given.get("n_vocab", self.config.n_vocab), given.get("d_model", self.config.d_model)
        ids = {field: given.get(field, getattr(self.config, field)) for field in ("bos_id", "eos_id")}
        given |= self.read_ids({self.keys[field][0]: value for field, value in ids.items()}, n_vocab, path)
        if given.get("d_ff") is None and isinstance(d_model, int):
            given["d_ff"] = 4 * d_model
        return build_config(self.config, given, first_keys(self.keys), path)

    def read_ids(self, raw: Mapping[str, Any], n_vocab: Any, path: Path) -> dict[str, Any]:
        """See ``settings.read_ids``."""
        return read_ids(self.keys, self.config.eos_id, raw, n_vocab, path)

    def with_ids(self, config: AnyConfig, raw: Mapping[str, Any], path: Path) -> Any:
        """The configuration with the ids of another file, such as a generation_config.json, as far as it has them."""
        try:
            return replace(config, **self.read_ids(raw, config.n_vocab, path))  # type: ignore[type-var]
        except ConfigError as fault:
            raise (fault if fault.where == path else fault.within(path)) from None

    def config_json(self, config: AnyConfig) -> dict[str, Any]:
        """A configuration in the words of transformers."""
        ids = ids_of(config)
        fields = {keys[0]: ids[field] if field in ids else getattr(config, field) for field, keys in self.keys.items()}
        return {**self.constants, **fields}

    def split_names(
        self, tensors: Mapping[str, np.ndarray], path: Path
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Weights and buffers, each under its name without ``body``.

        Raises
        ------
        CheckpointError
            If a tensor is there both with and without it.
        """
        weights: dict[str, np.ndarray] = {}
        buffers: dict[str, np.ndarray] = {}
        for name, tensor in tensors.items():
            short = name.removeprefix(self.body)
            group = buffers if self.buffer.fullmatch(short) else weights
            if short in group:
                raise CheckpointError(
                    "a tensor is there twice",
                    where=path,
                    got=f"{shown(short)} with and without {self.body!r}",
                    fix="remove one of the two",
                )
            group[short] = tensor
        return weights, buffers

    def build_params(self, weights: Mapping[str, np.ndarray], config: AnyConfig, tied: bool, path: Path) -> ParamTree:
        """The parameter tree over the tensors of a checkpoint; nothing is copied.

        Parameters
        ----------
        weights : mapping
            Tensors by their names without ``body``, buffers left out.
        config : Config
            Says how many blocks there are and how large everything is.
        tied : bool
            Whether config.json says that the head is the embedding; only then may one of the two be absent: which one
            is kept depends on what wrote the file.
        path : Path
            For errors.

        Raises
        ------
        CheckpointError
            Naming every tensor that is missing, unknown or of another shape than the configuration says.
        """
        if tied:
            shared = {
                self.names(one): weights[self.names(other)] for one, other in self.tied if self.names(other) in weights
            }
            weights = {**shared, **weights}
        return named_params(weights, self.names, self.title, config, path, self.way_out)


@dataclass(frozen=True)
class Gguf:
    """A family in GGUF files.

    Attributes
    ----------
    title, config
        See ``HuggingFace``.
    architecture : str
        The value of "general.architecture".
    names : Names
        The tensors.
    keys : mapping
        Metadata: the key of each field, then other names that the format has had for it.
    optional : tuple of str
        Those fields that may be absent: the tensors tell the MLP's width, and the rest is the family's.
    demands : mapping
        Keys that may be absent but must not say otherwise, and why.
    """

    title: str
    config: Any
    architecture: str
    names: Names
    keys: Keys
    optional: tuple[str, ...]
    demands: Demands


@dataclass(frozen=True)
class Ggml:
    """A family in the .bin files of ggml.

    Attributes
    ----------
    title, config
        See ``HuggingFace``.
    header : tuple of str
        The header's numbers in order, by the names that ggml's example gives them.
    fields : mapping of str to str
        Which of them each field of the configuration is.
    names : callable
        From a leaf to the name of its tensor.
    n_tensors : (int, int)
        How many there are of a block, and beside.
    constants : mapping
        Fields that ggml's code fixes.
    """

    title: str
    config: Any
    header: tuple[str, ...]
    fields: Mapping[str, str]
    names: Any
    n_tensors: tuple[int, int]
    constants: Mapping[str, Any]


@dataclass(frozen=True)
class CTranslate2:
    """A family in directories of CTranslate2.

    Attributes
    ----------
    title, config
        See ``HuggingFace``.
    spec : str
        What the file calls the kind of model.
    names : Names
        The variables, without "decoder/" and "layer_N/".
    qkv : str
        That which holds queries, keys and values, in a block.
    demands : mapping
        Single values, of the model or of every layer, that are the same in every model of the family, and why.
    needed, free : collections of str
        Single values that must be there, and those that may be anything.
    """

    title: str
    config: Any
    spec: str
    names: Names
    qkv: str
    demands: Mapping[str, tuple[float, str]]
    needed: tuple[str, ...]
    free: frozenset[str]
