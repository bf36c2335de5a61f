"""Build a family's configuration from the keys of a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refgpt._common.errors import ConfigError
from refgpt._common.wording import listed, shown
from refgpt.spec.config import AnyConfig

log = logging.getLogger("refgpt")

#: Maximum length of a list of ids that end a text; models have two or three.
MOST_ENDS = 64

#: The key of each field of a configuration, then the other names of that key.
Keys = Mapping[str, tuple[str, ...]]
#: Values that keys must have if they are present, and why.
Demands = Mapping[str, tuple[tuple[object, ...], str]]

#: Values that hold for every decoder of every family.
DECODER: Demands = {
    "add_cross_attention": ((False, None), "only decoders are read"),
    "is_encoder_decoder": ((False, None), "only decoders are read"),
    "quantization_config": ((None,), "quantised weights are not read; use the original weights"),
}


def first_keys(keys: Keys) -> dict[str, str]:
    """The first name of each field's key, which is written and used in errors."""
    return {field: names[0] for field, names in keys.items()}


def build_config(family: Any, given: Mapping[str, Any], keys: Mapping[str, str], path: Path, fix: str = "") -> Any:
    """Build the configuration from the fields that a file states.

    Parameters
    ----------
    family : type
        The family's ``Config``.
    keys : mapping of str to str
        The names of the fields in the file, for errors.
    fix : str, optional
        Advice for values that make no sense; by default, to correct them in the file.

    Raises
    ------
    ConfigError
        Naming the first value that makes no sense.
    """
    words = {field for field, default in vars(family).items() if isinstance(default, str | tuple)}
    for field, value in given.items():
        if not isinstance(value, (int, float, type(None))) and field not in words:
            raise ConfigError(f"{keys.get(field, field)} is not a number", where=path, got=shown(value))
    try:
        return family(**given)
    except ConfigError as fault:
        key = keys.get(str(fault.where), fault.where)
        raise ConfigError(
            f"{key} {fault.what}",
            where=path,
            got=fault.got,
            wanted=fault.wanted,
            fix=fix or f"correct {key}, or use the {path.name} of these weights",
        ) from fault


def value_of(raw: Mapping[str, Any], keys: tuple[str, ...], path: Path) -> Any:
    """The value that a file gives under one of a key's names; under several only if they agree."""
    values = [raw[key] for key in keys if key in raw]
    if any(value != values[0] for value in values):
        raise ConfigError(
            f"{' and '.join(keys)} mean the same and disagree",
            where=path,
            got=listed(map(shown, values)),
            fix="remove the wrong one",
        )
    return values[0]


def read_ids(keys: Keys, default: int | None, raw: Mapping[str, Any], n_vocab: Any, path: Path) -> dict[str, Any]:
    """The fields of a configuration for the ids that begin and end a text, as far as keys are there.

    Parameters
    ----------
    default : int or None
        The id that the family's own configuration class writes whatever the vocabulary.

    Raises
    ------
    ConfigError
        If a list is absurdly long. (What is no id is checked with the other fields.)
    """
    found: dict[str, Any] = {}
    bos, eos = keys["bos_id"][0], keys["eos_id"][0]
    if bos in raw:
        found["bos_id"], further = _token_ids(bos, raw[bos], default, n_vocab, path)
        if further:
            log.warning("%s: %s is a list; only its first entry is used: %s", path, bos, shown(raw[bos]))
    if eos in raw:
        found["eos_id"], found["further_eos_ids"] = _token_ids(eos, raw[eos], default, n_vocab, path)
    return found


def _token_ids(key: str, value: Any, default: int | None, n_vocab: Any, path: Path) -> tuple[Any, tuple[int, ...]]:
    """The first id or None, and the further ones of a list; none beyond the vocabulary.

    transformers writes its default even for smaller vocabularies; any other such id deserves a warning.

    Raises
    ------
    ConfigError
        If a list is absurdly long. (What is no id is returned as the first, and checked with the other fields.)
    """
    ids = value if isinstance(value, list) else [value]
    if len(ids) > MOST_ENDS:
        raise ConfigError(f"{key} is absurdly long", where=path, got=f"{len(ids)} ids", wanted=f"at most {MOST_ENDS}")
    if isinstance(value, list) and (wrong := [one for one in ids if type(one) is not int or one < 0]):
        return wrong[0], ()
    kept: list[Any] = []
    for one in dict.fromkeys(ids) if isinstance(value, list) else ids:
        if type(one) is not int or type(n_vocab) is not int or one < n_vocab:
            kept.append(one)
        elif one != default:
            log.warning("%s: %s %d is not in the vocabulary of %d, so there is none", path, key, one, n_vocab)
    return (kept[0], tuple(kept[1:])) if kept else (None, ())


def ids_of(config: AnyConfig) -> dict[str, Any]:
    """The ids that begin and end a text as config.json has them: of several that end one, a list."""
    return {"bos_id": config.bos_id, "eos_id": list(config.eos_ids) if config.further_eos_ids else config.eos_id}
