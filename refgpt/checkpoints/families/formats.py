"""What a format needs to know about a family: one class for each format, one instance for each family."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError
from refgpt._common.wording import shown
from refgpt.checkpoints.families.names import Names, named_params
from refgpt.checkpoints.families.settings import (
    Demands,
    Keys,
    build_config,
    first_keys,
    ids_of,
    read_ids,
    value_of,
)
from refgpt.checkpoints.files.ggml_file import Header
from refgpt.numbers.leaves import Leaf, row_slices
from refgpt.numbers.mapped import release
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
    architecture : str
        The class of transformers that has the head.
    names : Names
        The tensors. All but the head's may lack ``names.body``, where the body was saved alone.
    buffer : pattern
        Constants that some versions save with the weights, without ``names.body``.
    keys : mapping
        config.json: the key of each field, then the other names under which transformers knows it.
    demands : mapping
        Values that keys must have if they are present, and why.
    constants : mapping
        Values that config.json has in every model of the family; also the defaults of absent keys.
    defaults : mapping
        Fields whose default in transformers is another than that of ``config``.
    mask : str or None
        The buffer that holds a layer's mask, with "{}" for the layer's number, without ``names.body``; None if none
        holds the whole of it.
    aliases : mapping of str to str
        Further names of tensors, without ``names.body``.
    tied_head : str or None
        The name of the head in families whose head is the embedding and so not a leaf.
    known_as : mapping of str to str
        What errors call the keys of the fields that ``read`` gives.
    read, write : callable
        For settings that take more than one key: ``read(raw, given, path)`` changes the fields that a config.json
        gave, and ``write(config)`` gives further keys.
    """

    title: str
    config: Any
    architecture: str
    names: Names
    buffer: re.Pattern[str]
    keys: Keys
    demands: Demands
    constants: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    mask: str | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    tied_head: str | None = None
    known_as: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[Mapping[str, Any], dict[str, Any], Path], None] = lambda raw, given, path: None
    write: Callable[[Any], dict[str, Any]] = lambda config: {}

    def read_config(self, raw: Mapping[str, Any], path: Path) -> Any:
        """Build the ``Config`` from the keys of a config.json; absent keys have the defaults of transformers.

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
                    fix=f"use a checkpoint of {self.title}",
                )
        given: dict[str, Any] = {
            field: value_of(raw, keys, path) for field, keys in self.keys.items() if any(key in raw for key in keys)
        }
        given = {**self.defaults, **given}
        self.read(raw, given, path)
        n_vocab, d_model = given.get("n_vocab", self.config.n_vocab), given.get("d_model", self.config.d_model)
        ids = {field: given.get(field, getattr(self.config, field)) for field in ("bos_id", "eos_id")}
        given |= self.read_ids({self.keys[field][0]: value for field, value in ids.items()}, n_vocab, path)
        if given.get("d_ff") is None and isinstance(d_model, int):
            given["d_ff"] = 4 * d_model
        return build_config(self.config, given, {**first_keys(self.keys), **self.known_as}, path)

    def read_ids(self, raw: Mapping[str, Any], n_vocab: Any, path: Path) -> dict[str, Any]:
        """See ``settings.read_ids``."""
        return read_ids(self.keys, self.defaults.get("eos_id", self.config.eos_id), raw, n_vocab, path)

    def with_ids(self, config: AnyConfig, raw: Mapping[str, Any], path: Path) -> Any:
        """The configuration with the ids that another file, such as a generation_config.json, states."""
        try:
            return replace(config, **self.read_ids(raw, config.n_vocab, path))  # type: ignore[type-var]
        except ConfigError as fault:
            raise (fault if fault.where == path else fault.within(path)) from None

    def config_json(self, config: AnyConfig) -> dict[str, Any]:
        """The configuration as a config.json of transformers."""
        ids = ids_of(config)
        fields = {keys[0]: ids[field] if field in ids else getattr(config, field) for field, keys in self.keys.items()}
        return {"architectures": [self.architecture], **self.constants, **fields, **self.write(config)}

    def split_names(
        self, tensors: Mapping[str, np.ndarray], path: Path
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Separate weights and buffers, each under its name without ``names.body``.

        Raises
        ------
        CheckpointError
            If a tensor is there both with and without it, or under two of its names.
        """
        weights: dict[str, np.ndarray] = {}
        buffers: dict[str, np.ndarray] = {}
        called: dict[str, str] = {}
        for name, tensor in tensors.items():
            short = name.removeprefix(self.names.body)
            short = self.aliases.get(short, short)
            group = buffers if self.buffer.fullmatch(short) else weights
            if short in group:
                raise CheckpointError(
                    "a tensor is there twice",
                    where=path,
                    got=f"{shown(called[short])} and {shown(name)}",
                    fix="remove one of the two",
                )
            group[short], called[short] = tensor, name
        return weights, buffers

    def masks(self, buffers: Mapping[str, np.ndarray], n_layer: int) -> dict[str, np.ndarray]:
        """The buffers that hold a layer's mask."""
        names = [] if self.mask is None else [self.mask.format(i) for i in range(n_layer)]
        return {name: buffers[name] for name in names if name in buffers}

    def build_params(
        self, weights: Mapping[str, np.ndarray], config: AnyConfig, tied: bool | None, path: Path
    ) -> ParamTree:
        """The parameter tree over the tensors of a checkpoint; no matrix is copied.

        Parameters
        ----------
        weights : mapping
            Tensors by their names without ``names.body``, buffers left out.
        config : Config
            Says how many blocks there are and how large everything is.
        tied : bool or None
            Whether config.json says that the head is the embedding; None if it says nothing. Only if they are tied may
            one of the two be absent: which one is kept depends on what wrote the file.
        path : Path
            For errors.

        Raises
        ------
        CheckpointError
            Naming every tensor that is missing, unknown or of another shape than the configuration says; or if the head
            should be the embedding, by the family or by config.json, and the file has another.
        """
        names, weights = replace(self.names, body=""), dict(weights)
        head = names("w_head") if self.tied_head is None else self.tied_head
        table = names("wte")
        if self.constants["tie_word_embeddings"] if tied is None else tied:
            for one, other in ((head, table), (table, head)):
                if one not in weights and other in weights:
                    weights[one] = weights[other]
            if head in weights and not same_numbers(weights[head], weights[table]):
                # transformers before version 5 ties them nevertheless, later versions use what is stored.
                raise CheckpointError(
                    "the head should be the embedding (tie_word_embeddings), but the file has another head",
                    where=path,
                    got=f"{head} and {table} differ",
                    fix=f"remove {head} from the file if the head is the embedding"
                    + ("" if self.tied_head else ", or else set tie_word_embeddings to false"),
                )
        if self.tied_head is not None and table in weights:
            if head not in weights:
                raise CheckpointError(
                    "config.json says that the head is not the embedding, but the file has no other",
                    where=path,
                    got=f"no {head}",
                    fix="remove tie_word_embeddings from config.json if the head is the embedding",
                )
            if not same_numbers(weights.pop(head), weights[table]):
                raise CheckpointError(
                    f"the head is another matrix than the embedding, which {self.title} does not have",
                    where=path,
                    got=f"{head} and {table} differ",
                    fix="if the head should be the embedding, remove it from the file",
                )
        return named_params(weights, names, self.title, config, path, self._way_out)

    def _way_out(self, missing: list[str], unknown: list[str]) -> str:
        if missing == ["lm_head.bias"]:
            return f"{self.title}'s head has a bias: take it from the original weights, or add zeros if there is none"
        if missing and all(name.startswith(self.names.head) for name in missing):
            return f"the body was saved without its head: save the whole {self.architecture}"
        if missing:
            return "check that the download is complete and that config.json came with these weights"
        if any("lora_" in name for name in unknown):
            return "these are LoRA adapters: load their base model with adapter="
        if unknown:
            n_layer = self.keys["n_layer"][0]
            return f"check that these are {self.title}'s weights and that {n_layer} in config.json is theirs"
        return "use the config.json that came with these weights"


def same_numbers(one: Leaf, other: Leaf) -> bool:
    """Whether two matrices hold the same numbers in the same dtype; both are read, unless they are one."""
    if one is other:
        return True
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    same = all(a.tobytes() == b.tobytes() for a, b in zip(row_slices(one), row_slices(other), strict=True))
    release(one)
    release(other)
    return same


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
        Metadata: the key of each field, then other names that the format has had for it; "{}" is the architecture.
    optional : tuple of str
        Fields that may be absent; the family's value is then used.
    demands : mapping
        Values that keys must have if they are present, and why; "{}" is the architecture.
    told : mapping of str to callable
        Fields that are read from the shapes of tensors and not from keys: a function of the tensors by name for each.
    own : mapping
        Fields for which the format has no key, which this package writes as "refgpt.<field>": what each is in files
        that do not say it, or a function that tells it from the other fields.
    assumed : mapping
        Fields for which the format has no key, and the values with which llama.cpp computes the model.
    note : str
        A note that is shown to users of such files.
    tied_head : str or None
        The name of the head in families whose head is the embedding and so not a leaf.
    """

    title: str
    config: Any
    architecture: str
    names: Names
    keys: Keys
    optional: tuple[str, ...] = ()
    demands: Demands = field(default_factory=dict)
    told: Mapping[str, Callable[[Mapping[str, Leaf]], Any]] = field(default_factory=dict)
    own: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    note: str = ""
    tied_head: str | None = None


@dataclass(frozen=True)
class Ggml:
    """A family in the .bin files of ggml.

    Attributes
    ----------
    title, config
        See ``HuggingFace``.
    headers : tuple of Header
        Possible headers; the first with which the file's size fits exactly is used.
    fields : mapping of str to str
        The number in the header for each field of the configuration.
    names : Names
        The tensors.
    constants : mapping
        Fields that are constants in ggml's code.
    told : mapping of str to callable
        Fields that are read from the shapes of tensors: a function of the tensors by name for each.
    tied_head : str or None
        The name of the head in families whose head is the embedding and so not a leaf.
    note : str
        A note that is shown to users of such files.
    """

    title: str
    config: Any
    headers: tuple[Header, ...]
    fields: Mapping[str, str]
    names: Names
    constants: Mapping[str, Any]
    told: Mapping[str, Callable[[Mapping[str, Leaf]], Any]] = field(default_factory=dict)
    tied_head: str | None = None
    note: str = ""


@dataclass(frozen=True)
class CTranslate2:
    """A family in directories of CTranslate2.

    Attributes
    ----------
    title, config
        See ``HuggingFace``.
    spec : str
        The name of the kind of model in the file.
    model, block : mapping of str to str
        The variable of each leaf, without "decoder/" and "layer_N/".
    qkv : str
        The variable of a block that holds queries, keys and values.
    demands : mapping
        Single values, of the model or of every layer, that are the same in every model of the family, and why.
    needed, free : collections of str
        Single values that must be there, and those that may be anything.
    """

    title: str
    config: Any
    spec: str
    model: Mapping[str, str]
    block: Mapping[str, str]
    qkv: str
    demands: Mapping[str, tuple[float, str]]
    needed: tuple[str, ...]
    free: frozenset[str]


def without_head(form: Gguf | Ggml, tensors: Mapping[str, Leaf], path: Path, fix: str) -> Mapping[str, Leaf]:
    """Leave out a head that repeats the embedding, as some converters write it.

    Quantising programs encode the two differently; the more precise one is then used for both.

    Raises
    ------
    CheckpointError
        If the head is another matrix.
    """
    table = form.names("wte")
    if form.tied_head is None or form.tied_head not in tensors or table not in tensors:
        return tensors
    head, embedding = tensors[form.tied_head], tensors[table]
    others = {name: tensor for name, tensor in tensors.items() if name != form.tied_head}
    if head.shape == embedding.shape and (head.nbytes != embedding.nbytes or head.dtype != embedding.dtype):
        return {**others, table: max(embedding, head, key=lambda leaf: leaf.nbytes)}
    if not same_numbers(head, embedding):
        raise CheckpointError(
            f"the head is another matrix than the embedding, which {form.title} does not have",
            where=path,
            got=f"{form.tied_head} and {table} differ",
            fix=fix,
        )
    return others
