"""A model as one GGUF file.

Tokens are in GPT-2's letters, as llama.cpp has them, or plain bytes, as GPT4All's converter of GPT-J (2023) wrote them.
Both are read.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError
from refgpt._common.progress import Progress
from refgpt._common.wording import listed, shown
from refgpt.checkpoints.checkpoint import Checkpoint
from refgpt.checkpoints.families import SUPPORTED, holders
from refgpt.checkpoints.families.formats import Gguf, without_head
from refgpt.checkpoints.families.names import named_params
from refgpt.checkpoints.families.settings import MOST_ENDS, Demands, build_config, first_keys
from refgpt.checkpoints.files import gguf_file
from refgpt.checkpoints.layouts import single_file
from refgpt.checkpoints.mask import find_mask, names_of
from refgpt.numbers.leaves import Leaf
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers.vocabulary import Vocabulary

log = logging.getLogger("refgpt")

ARCHITECTURE = "general.architecture"
NAME = "general.name"
QUANTISATION = "general.quantization_version"
BOS, EOS = "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"
#: True where there is no such token, as this package writes it; where nothing is said, it is the family's.
NO_BOS, NO_EOS = "refgpt.no_bos_token", "refgpt.no_eos_token"
#: Ids that end a text beside ``EOS``: an array, since GGUF has no key for several.
FURTHER_EOS = "refgpt.further_eos_token_ids"

#: Values that keys of every family must have if they are present, and why.
DEMANDS: Demands = {
    QUANTISATION: ((2,), "the blocks of other versions are laid out otherwise"),
    "split.count": ((0, 1), "this file is one of several; join them with llama-gguf-split --merge"),
}

#: Prefix of the names of fields for which the format has no key.
OWN = "refgpt."
#: The mask, as this package writes it; GGUF has no key for a prompt that sees itself both ways.
MASK = "refgpt.mask"

TOKENIZER = "tokenizer.ggml."
#: Whole files: a tokenizer.json and, under names of this package's own, a tokenizer.model and a tokenizer_config.json.
TOKENIZER_JSON, SENTENCEPIECE = "tokenizer.huggingface.json", "refgpt.tokenizer.model"
TOKENIZER_SETTINGS = "refgpt.tokenizer.config"
#: Types of tokens that are matched in a text before merging begins: control and user-defined; 5 is unused.
SPECIAL_TYPES, UNUSED = (3, 4), 5
PRINTABLE = range(0x21, 0x7F)

FIX = "convert the original weights again, or use them as they are"


def is_at(path: Path) -> bool:
    """Whether a path is such a file, or a directory that has one and no other weights."""
    return single_file.is_at(path, gguf_file.MAGIC)


def open_at(path: Path, mask: str, progress: Progress | None = None) -> Checkpoint:
    """Open it, which takes no time: see ``open_checkpoint``."""
    file = single_file.file_at(path, gguf_file.MAGIC)
    content = gguf_file.read(file)
    metadata, tensors = content.metadata, content.tensors
    families = {family.GGUF.architecture.encode(): family for family in holders("GGUF")}
    family = families.get(metadata.get(ARCHITECTURE)) if isinstance(metadata.get(ARCHITECTURE), bytes) else None
    if family is None:
        raise ConfigError(
            "this kind of model is not supported",
            where=file,
            got=f"{ARCHITECTURE} {_shown(metadata.get(ARCHITECTURE))}",
            wanted=listed(name.decode() for name in families),
            fix=SUPPORTED,
        )
    form: Gguf = family.GGUF
    config = read_config(form, metadata, tensors, file)
    params = named_params(without_head(form, tensors, file, FIX), form.names, form.title, config, file, lambda *_: FIX)
    mask, source = _mask(mask, metadata, config, file)
    infos = single_file.tensor_infos(tensors, file)
    vocabulary, fault = None, ""
    try:
        vocabulary = read_vocabulary(metadata, config, file)
    except ConfigError as error:  # the weights may be used without it
        fault = str(error)
    kind = f"GGUF, version {content.version}"
    if QUANTISATION in metadata:
        kind += f", quantisation version {metadata[QUANTISATION]}"
    return Checkpoint(
        path,
        kind,
        family.MODEL_TYPE,
        config,
        params,
        mask,
        source,
        infos,
        vocabulary,
        tokenizer_fault=fault,
        mask_written=_text(metadata.get(MASK)) == mask,
    )


def read_config(form: Gguf, metadata: Mapping[str, Any], tensors: Mapping[str, Leaf], path: Path) -> Any:
    """The metadata as the family's ``Config``; the vocabulary's size is that of the embedding.

    Raises
    ------
    ConfigError
        If a key is missing or makes no sense, or describes something other than the family.
    """
    demands = {key.format(form.architecture): demand for key, demand in form.demands.items()} | dict(DEMANDS)
    keys_of = {field: tuple(key.format(form.architecture) for key in keys) for field, keys in form.keys.items()}
    for key, (accepted, reason) in demands.items():
        if key in metadata and not any(_same(metadata[key], value) for value in accepted):
            raise ConfigError(
                f"{key} says what is not read: {reason}",
                where=path,
                got=_shown(metadata[key]),
                wanted=" or ".join(map(_shown, accepted)),
            )
    given: dict[str, Any] = {
        field: _value(metadata, keys, getattr(form.config, field), path) for field, keys in keys_of.items()
    }
    if missing := [keys_of[field][0] for field in given if given[field] is None and field not in form.optional]:
        raise ConfigError(
            f"the metadata lacks keys that make a {form.title}", where=path, got=f"no {listed(missing)}", fix=FIX
        )
    groups = metadata.get(f"{form.architecture}.attention.head_count_kv", given["n_head"])
    if not _same(groups, given["n_head"]):
        raise ConfigError(
            f"{form.architecture}.attention.head_count_kv describes another model: {form.title}'s heads share no keys",
            where=path,
            got=_shown(groups),
            wanted=given["n_head"],
        )
    for name in (form.names("wte"), form.names("blocks.0.b_in")):
        if name not in tensors:
            raise CheckpointError(f"a tensor of a {form.title} is missing", where=path, got=f"no {name}", fix=FIX)
    n_vocab = given["n_vocab"] = tensors[form.names("wte")].shape[0]
    told = {field: getattr(form.config, field) for field in form.optional}
    told["d_ff"] = tensors[form.names("blocks.0.b_in")].size
    given |= {field: value for field, value in told.items() if given[field] is None}
    given |= {field: tell(tensors) for field, tell in form.told.items()}
    given |= _own(form, metadata, given, path)
    default = form.config.eos_id if n_vocab > (form.config.eos_id or 0) else None
    for field, key, absent in (("bos_id", BOS, NO_BOS), ("eos_id", EOS, NO_EOS)):
        value = _value(metadata, (key,), 0, path)
        if value is None or value >= n_vocab:
            value = None if metadata.get(absent) is True else default
        given[field] = value
    given["further_eos_ids"] = _further_ends(metadata.get(FURTHER_EOS), n_vocab, path)
    known_as = first_keys(keys_of) | {field: OWN + field for field in form.own}
    return build_config(form.config, given, known_as, path, FIX)


def _further_ends(value: Any, n_vocab: int, path: Path) -> tuple[int, ...]:
    """The ids in an array of whole numbers, all of them within the vocabulary."""
    if value is None:
        return ()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or value.size > MOST_ENDS:
        raise ConfigError(f"{FURTHER_EOS} is no list of ids", where=path, got=_shown(value), fix=FIX)
    return tuple(n for n in value.tolist() if 0 <= n < n_vocab)


def _own(form: Gguf, metadata: Mapping[str, Any], given: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Fields for which the format has no key: from this package's keys, or the defaults."""
    found: dict[str, Any] = {}
    for field, default in form.own.items():
        default = default(given) if callable(default) else default
        value = _value(metadata, (OWN + field,), default, path)
        found[field] = default if value is None else value
    if form.note and not any(OWN + field in metadata for field in form.own):
        log.info("%s: %s", path, form.note)
    return found


def _value(metadata: Mapping[str, Any], keys: tuple[str, ...], like: Any, path: Path) -> Any:
    """The value of the first key that is present, with the type of ``like``; None if there is none."""
    key = next((key for key in keys if key in metadata), None)
    if key is None:
        return None
    value = metadata[key]
    if isinstance(like, bool):
        if not isinstance(value, bool):
            raise ConfigError(f"{key} is neither true nor false", where=path, got=_shown(value), fix=FIX)
        return value
    if isinstance(like, str | tuple):
        if not isinstance(value, bytes):
            raise ConfigError(f"{key} is no text", where=path, got=_shown(value), fix=FIX)
        text = value.decode("utf-8", "backslashreplace")
        return tuple(text.split(" ")) if isinstance(like, tuple) else text
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} is not a number", where=path, got=_shown(value), fix=FIX)
    # The decimal number from which the file's float32 was written.
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _same(value: object, wanted: object) -> bool:
    return not isinstance(value, np.ndarray) and type(value) in (type(wanted), int) and value == wanted


def _mask(asked: str, metadata: Mapping[str, Any], config: AnyConfig, path: Path) -> tuple[str, str]:
    name, stated = (_text(metadata.get(key)) for key in (NAME, MASK))
    called = (name,) if isinstance(name, str) else ()
    return find_mask(asked, {}, config.n_ctx, called + names_of(path), path, MASK, stated, config.window)


def read_vocabulary(metadata: Mapping[str, Any], config: AnyConfig, path: Path) -> Vocabulary | None:
    """The tokenizer in the metadata; None if there is none of a known kind.

    Known kinds are a byte-level BPE, as lists or as a whole file, and a sentencepiece model written by this package.

    Raises
    ------
    ConfigError
        If the lists are damaged.
    """
    model, tokens = metadata.get(TOKENIZER + "model"), metadata.get(TOKENIZER + "tokens")
    whole = {
        name: metadata[key]
        for key, name in (
            (TOKENIZER_JSON, "tokenizer.json"),
            (SENTENCEPIECE, "tokenizer.model"),
            (TOKENIZER_SETTINGS, "tokenizer_config.json"),
        )
        if key in metadata
    }
    if whole.keys() == {"tokenizer_config.json"}:
        whole = {}
    if isinstance(whole.get("tokenizer.model"), np.ndarray):
        whole["tokenizer.model"] = whole["tokenizer.model"].tobytes()
    if not all(isinstance(content, bytes) for content in whole.values()):
        raise ConfigError("the tokenizer inside is no file", where=path, got=listed(whole), fix=FIX)
    if tokens is None or (model != b"gpt2" and "tokenizer.model" not in whole):
        return None
    merges, types = metadata.get(TOKENIZER + "merges"), metadata.get(TOKENIZER + "token_type")
    for key, strings in ((TOKENIZER + "tokens", tokens), (TOKENIZER + "merges", merges)):
        if strings is not None and not isinstance(strings, list):
            raise ConfigError(f"{key} is no list of strings", where=path, got=_shown(strings), fix=FIX)
    if len(tokens) > config.n_vocab:
        raise ConfigError(
            "there are more tokens than rows of the embedding",
            where=path,
            got=len(tokens),
            wanted=f"at most {config.n_vocab}",
            fix=FIX,
        )
    if types is not None and (not isinstance(types, np.ndarray) or len(types) != len(tokens)):
        raise ConfigError(f"{TOKENIZER}token_type does not fit the tokens", where=path, got=_shown(types), fix=FIX)
    try:
        pairs = None if merges is None else tuple(merge.decode() for merge in merges)
    except UnicodeDecodeError as fault:
        raise ConfigError(f"{TOKENIZER}merges is not UTF-8", where=path, got=str(fault), fix=FIX) from None
    unused = set() if types is None else set(np.flatnonzero(types == UNUSED).tolist())
    meant = tuple(None if n in unused or token == b"[PAD%d]" % n else token for n, token in enumerate(tokens))
    special = None if types is None else frozenset(np.flatnonzero(np.isin(types, SPECIAL_TYPES)).tolist())
    # GPT-2's letters are UTF-8, in which only printable ASCII takes one byte; a space alone is no letter.
    normal = (token for n, token in enumerate(tokens) if n not in (special or ()))
    plain = any(len(token) == 1 and token[0] not in PRINTABLE for token in normal)
    return Vocabulary(meant, not plain, pairs, special, config.eos_id, path, whole)


def _shown(value: object) -> str:
    return shown(_text(value))


def _text(value: object) -> object:
    """Decode a string of the metadata, whatever its bytes; return any other value unchanged."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
