"""LoRA adapters as PEFT stores them: adapter_config.json beside adapter_model.safetensors, or .bin.

Which matrices have an adapter is read from the tensors, and compared with what the configuration says. Whatever would
change the model and is not a plain pair of matrices is refused by name: otherwise the model
would silently compute something else than was trained.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.arguments import path_of
from refgpt._common.errors import CheckpointError, missing
from refgpt._common.memory import check_obtainable
from refgpt._common.small_files import is_there, read_json, reading
from refgpt._common.wording import listed, shown, tensor_at
from refgpt.checkpoints.families import FAMILIES
from refgpt.checkpoints.families.names import Place
from refgpt.checkpoints.files import safetensors_file, torch_pickle
from refgpt.numbers.casting import cast
from refgpt.numbers.dtypes import dtype_name
from refgpt.numbers.finite import check_finite
from refgpt.numbers.leaves import widen
from refgpt.numbers.mapped import map_file
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import leaf_shapes

CONFIG = "adapter_config.json"
SAFETENSORS = "adapter_model.safetensors"
READERS = {SAFETENSORS: safetensors_file.read, "adapter_model.bin": torch_pickle.read}
#: In the metadata of the weights: the mask that the adapter was trained with.
MASK = "refgpt_mask"
#: The prefix that PEFT's wrapper adds to the model's tensor names.
WRAPPER = "base_model.model."
TENSOR = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")

#: A module of a block: "transformer.h.0.attn.q_proj", "gpt_neox.layers.0.attention.dense".
BLOCK = re.compile(r"\w+\.(\w+)\.(\d+)\..+")
#: The modules that give the logits, to which "all-linear" does not extend.
HEADS = {"lm_head", "embed_out"}

#: Patterns of a file that are longer, or repeat more, are not tried: they may take for ever to match.
LONGEST_PATTERN = 1000
MOST_REPEATS = 4

#: What a configuration may say at most. Where several adapters are written as one, ranks and alphas add up, so new
#: adapters have a lower limit: see ``refgpt.training.new_adapter``.
LARGEST_RANK, LARGEST_ALPHA = 1 << 20, 1 << 40

#: Keys that do not affect what an adapter computes, or that are read below.
KNOWN = frozenset(
    [
        "peft_type",
        "task_type",
        "inference_mode",
        "base_model_name_or_path",
        "revision",
        "auto_mapping",
        "peft_version",
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "layers_to_transform",
        "megatron_core",
        "init_lora_weights",
        "qalora_group_size",
        "runtime_config",
        "layers_pattern",
        "bias",
    ]
)
#: Initialisations that leave the base weights unchanged; all others change them.
HARMLESS_INITS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, eq=False)
class Pair:
    """The adapter of one matrix: ``scale * b a`` is added to it."""

    a: np.ndarray  # [rank, n_in], float32
    b: np.ndarray  # [n_out, rank], float32
    scale: float


@dataclass(frozen=True)
class Module:
    """A module that can have an adapter, as PEFT sees the model.

    Attributes
    ----------
    name : str
        "transformer.h.0.attn.q_proj".
    leaves : tuple of str
        What its weight holds: one matrix, or queries, keys and values.
    places : tuple of Place
        Where in the weight each of them is.
    """

    name: str
    leaves: tuple[str, ...]
    places: tuple[Place, ...]

    @property
    def turned(self) -> bool:
        """Whether its weight is [in, out], which PEFT calls "fan_in_fan_out"."""
        return self.places[0].turned

    def rows(self, part: int, n: int, n_head: int) -> np.ndarray:
        """Which rows of its B are those of one of its leaves, which has ``n`` of them."""
        if len(self.leaves) == 1:
            return np.arange(n)
        if self.places[part].by_head:
            return np.arange(3 * n).reshape(n_head, 3, -1)[:, part].reshape(-1)
        return np.arange(part * n, (part + 1) * n)


def modules_of(config: AnyConfig) -> dict[str, Module]:
    """The modules of a model that can have an adapter, by their names, in the order of the forward pass."""
    names = FAMILIES[config.model_type].HUGGING_FACE.names
    found: dict[str, list[tuple[str, Place]]] = {}
    for leaf, shape in leaf_shapes(config).items():
        if len(shape) == 2 and leaf not in ("wte", "wpe"):
            place = names.place(leaf)
            found.setdefault(place.tensor.removesuffix(".weight"), []).append((leaf, place))
    return {name: Module(name, *(tuple(column) for column in zip(*rows, strict=True))) for name, rows in found.items()}


def peft_key(module: str, side: str) -> str:
    """The name of matrix A or B of a module: "base_model.model.transformer.h.0.attn.q_proj.lora_A.weight"."""
    return f"{WRAPPER}{module}.lora_{side}.weight"


def read_adapter(directory: str | os.PathLike[str], config: AnyConfig) -> dict[str, Pair]:
    """The adapter in a directory.

    Parameters
    ----------
    directory : str or Path
    config : Config
        Of the model that it is for.

    Returns
    -------
    dict of str to Pair
        By the leaf that each is for.

    Raises
    ------
    CheckpointError
        Naming what is missing, damaged, of another shape or for another model, or not a plain pair of matrices.
    """
    place = path_of("adapter", directory, CheckpointError)
    told = read_json(place / CONFIG, CheckpointError)
    modules, shapes = modules_of(config), leaf_shapes(config)
    _check_config(told, place / CONFIG, modules)
    with reading(place, CheckpointError):
        weights = next((place / name for name in READERS if is_there(place / name)), None)
    if weights is None:
        raise missing(CheckpointError)("there is no adapter", where=place, wanted=" or ".join(READERS))
    tensors = READERS[weights.name](weights)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        match = TENSOR.fullmatch(name.removeprefix(WRAPPER))
        if match is None or match["module"] not in modules:
            raise CheckpointError(
                "there is no place for it in this model",
                where=tensor_at(weights, name),
                wanted="pairs of matrices, as base_model.model.transformer.h.0.attn.q_proj.lora_A.weight",
            )
        sides = found.setdefault(match["module"], {})
        if match["side"] in sides:
            raise CheckpointError(
                f"is there twice, with {WRAPPER} before its name and without", where=tensor_at(weights, name)
            )
        sides[match["side"]] = tensor
    _check_targets(told, found.keys(), modules, weights)
    n_bytes = sum(4 * tensor.size for sides in found.values() for tensor in sides.values())
    check_obtainable(n_bytes, "adapters", "train one of a lower rank", CheckpointError)
    pairs: dict[str, Pair] = {}
    for name in sorted(found, key=list(modules).index):
        module, sides = modules[name], found[name]
        if sides.keys() != {"A", "B"}:
            raise CheckpointError("the other half of the pair is missing", where=tensor_at(weights, name))
        rank, alpha = (_patterned(told, key, name, place / CONFIG) for key in ("r", "lora_alpha"))
        n_out, n_in = shapes[module.leaves[0]]
        for side, shape in (("A", (rank, n_in)), ("B", (n_out * len(module.leaves), rank))):
            where = tensor_at(weights, f"{name}.lora_{side}")
            if dtype_name(sides[side].dtype) is None:
                raise CheckpointError("holds no floating-point numbers", where=where, got=sides[side].dtype)
            if sides[side].shape != shape:
                raise CheckpointError(
                    "is of another shape", where=where, got=list(sides[side].shape), wanted=list(shape)
                )
            check_finite(where, sides[side])
            sides[side] = np.array(widen(cast(where, sides[side], "f32")))
        scale = alpha / (math.sqrt(rank) if told.get("use_rslora") else rank)
        for part, leaf in enumerate(module.leaves):
            rows = sides["B"][module.rows(part, n_out, config.n_head)]
            pairs[leaf] = Pair(sides["A"].copy() if part else sides["A"], np.ascontiguousarray(rows), scale)
    return pairs


def check_names(adapters: object) -> None:
    """Refuse what does not give each adapter a name: a text that can be shown, without an equals sign.

    Raises
    ------
    CheckpointError
    """
    if not isinstance(adapters, Mapping):
        got, wanted = shown(adapters), "a mapping from names to directories"
        raise CheckpointError("cannot be used", where="adapters", got=got, wanted=wanted)
    for name in adapters:
        if not isinstance(name, str) or not name.strip() or not name.isprintable() or "=" in name:
            wanted = "a printable text without an equals sign"
            raise CheckpointError("cannot be a name", where="adapters", got=shown(name), wanted=wanted)


def read_adapters(
    adapters: Mapping[str, str | os.PathLike[str]], config: AnyConfig
) -> dict[str, tuple[dict[str, Pair], str | None]]:
    """Several adapters of one model, by name, each with the mask that it was trained with, if it says so.

    Raises
    ------
    CheckpointError
        See ``read_adapter``, with the adapter's name as well; or if a name cannot be used.
    """
    check_names(adapters)
    found = {}
    for name, directory in adapters.items():
        try:
            found[name] = read_adapter(directory, config), adapter_mask(directory)
        except CheckpointError as error:
            raise error.within(f"adapter {name}") from None
    return found


def adapter_mask(directory: str | os.PathLike[str]) -> str | None:
    """The mask that an adapter was trained with, "causal" or "prefix", if it was trained here; otherwise None.

    PEFT's configuration has no place for it, so it stands in the metadata of the weights.
    """
    path = path_of("adapter", directory, CheckpointError) / SAFETENSORS
    with reading(path, CheckpointError):
        if not is_there(path):
            return None
    metadata = safetensors_file.read_mapped(map_file(path))[1]
    mask = metadata.get(MASK) if isinstance(metadata, dict) else None
    return mask if mask in ("causal", "prefix") else None


def _check_config(told: dict[str, Any], path: Path, modules: Mapping[str, Module]) -> None:
    """Refuse what is not a plain LoRA adapter."""

    def refuse(what: str, key: str, wanted: object = None) -> CheckpointError:
        return CheckpointError(f"{key} {what}", where=path, got=shown(told[key]), wanted=wanted)

    if told.get("peft_type") != "LORA":
        raise CheckpointError("peft_type is not one that is read", where=path, got=told.get("peft_type"), wanted="LORA")
    turned = any(module.turned for module in modules.values())  # PEFT then sets fan_in_fan_out, whatever it says
    for key, value in told.items():
        if key == "fan_in_fan_out" and turned:
            continue
        if key not in KNOWN and value not in (None, False, {}, [], ""):
            raise refuse("is set, and not understood here", key, "a plain LoRA adapter")
    if told.get("use_rslora") not in (None, True, False):
        raise refuse("makes no sense", "use_rslora", "true or false")
    if told.get("bias", "none") != "none":
        raise refuse("trains biases, which are not read", "bias", "none")
    init = told.get("init_lora_weights", True)
    if not any(init is one or (isinstance(init, str) and init == one) for one in HARMLESS_INITS):
        raise refuse("may have changed the base, which is not this model's then", "init_lora_weights")
    layers = next(match[1] for name in modules if (match := BLOCK.fullmatch(name)))
    if told.get("layers_pattern") not in (None, [], layers, [layers]):
        raise refuse("names layers that this model does not have", "layers_pattern", layers)


def _patterned(told: dict[str, Any], key: str, module: str, path: Path) -> Any:
    """A module's rank or alpha: what the pattern for it says, or else what holds for all."""
    pattern_key = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[key]
    patterns = told.get(pattern_key) or {}
    value: Any = told.get(key)
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{pattern_key} makes no sense", where=path, got=shown(patterns))
    for pattern, special in patterns.items():
        matches = _matcher(pattern, pattern_key, path)
        if matches is None:
            what = f"{pattern_key} has a pattern that may take for ever to match"
            raise CheckpointError(what, where=path, got=shown(pattern), wanted="names of modules")
        ends = [module, *(module[at + 1 :] for at, mark in enumerate(module) if mark == ".")]
        if any(matches(end) for end in (ends[:1] if pattern.startswith("^") else ends)):
            value = special
            break
    most, kind = (LARGEST_RANK, "whole number") if key == "r" else (LARGEST_ALPHA, "number")
    right_type = type(value) is int or (key == "lora_alpha" and type(value) is float)
    if not right_type or not 0 < value <= most:
        wanted = f"a {kind} above 0, at most {most:,}"
        raise CheckpointError(f"{key} makes no sense", where=path, got=shown(value), wanted=wanted)
    return value


def _matcher(pattern: str, key: str, path: Path) -> Callable[[str], object] | None:
    """What tells whether a name matches a pattern of a file, or None where that may take longer than anybody waits.

    Without repeated groups and with few repetitions it takes a time of a small power of the name's length.
    """
    many = len(pattern) > LONGEST_PATTERN or len(re.findall(r"[*+?{]", pattern)) > MOST_REPEATS
    if many or re.search(r"\)[*+?{]|\\\d|\(\?", pattern):
        return None
    try:
        return re.compile(pattern).fullmatch
    except (re.error, OverflowError, RecursionError):
        raise CheckpointError(f"{key} has a pattern that is none", where=path, got=shown(pattern)) from None


def _check_targets(told: dict[str, Any], found: Any, modules: Mapping[str, object], weights: Path) -> None:
    """Refuse an adapter that lacks a pair, or has one too many.

    What a pattern means that may take for ever to match is left to the tensors.
    """
    targets, layers = told.get("target_modules"), told.get("layers_to_transform")
    if not found:
        raise CheckpointError("holds no adapter", where=weights, wanted="pairs lora_A and lora_B")
    if targets == "all-linear":
        targets = sorted({module.rpartition(".")[2] for module in modules} - HEADS)
    matches = None
    if isinstance(targets, str):
        if (matches := _matcher(targets, "target_modules", weights.parent / CONFIG)) is None:
            return
    elif not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise CheckpointError("target_modules makes no sense", where=weights.parent / CONFIG, got=shown(targets))
    if layers is not None and type(layers) is int:
        layers = [layers]
    if layers is not None and not (isinstance(layers, list) and all(type(layer) is int for layer in layers)):
        raise CheckpointError("layers_to_transform makes no sense", where=weights.parent / CONFIG, got=shown(layers))
    if matches is not None:
        wanted = set(filter(matches, modules))
    else:
        wanted = {m for m in modules if any(m == target or m.endswith(f".{target}") for target in targets)}
    if layers:
        wanted = {m for m in wanted if (at := BLOCK.fullmatch(m)) and int(at[2]) in layers}
    if absent := sorted(wanted - set(found)):
        raise CheckpointError("pairs are missing", where=weights, got=f"none for {listed(absent)}")
    if foreign := sorted(set(found) - wanted):
        fix = "the configuration and the tensors are not of one adapter"
        raise CheckpointError("there are pairs for other modules", where=weights, got=listed(foreign), fix=fix)
