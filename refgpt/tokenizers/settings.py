"""Settings from the small files beside a tokenizer, with transformers' precedence.

========================  ==============================================================================================
said of                   by
========================  ==============================================================================================
ids of added tokens       ``added_tokens_decoder`` of tokenizer_config.json, and tokenizer.json; where the former is
                          absent, added_tokens.json
flags of added tokens     the same, in this order (``lstrip`` and others: see ``FLAGS``)
special tokens            tokenizer_config.json; where it has no ``added_tokens_decoder``, special_tokens_map.json
                          first; of lists of further ones tokenizer_config.json first
space before a text       ``add_prefix_space`` of tokenizer_config.json, then tokenizer.json
========================  ==============================================================================================

So special_tokens_map.json and added_tokens.json are ignored beside an ``added_tokens_decoder``, which contains the same
information. Where transformers 5.24 differs from earlier versions, this follows 5.24.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from refgpt._common.errors import TokenizerError
from refgpt._common.file_names import ADDED_TOKENS, SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG
from refgpt._common.small_files import is_there, reading
from refgpt._common.wording import FRESH_COPY, shown
from refgpt.spec.config import LARGEST
from refgpt.tokenizers.files import expect, read_settings

log = logging.getLogger("refgpt")

#: How an added token is searched for: as a separate word, with the white space on its left or right, in the normalized
#: text; and whether it is special, a control token instead of text.
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
#: The special tokens that have a name, in transformers' order.
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
#: Keys of lists of further special tokens, the old key and the new one.
FURTHER = ("additional_special_tokens", "extra_special_tokens")
#: Classes that use a tokenizer.json unchanged; all other GPT-2-like classes set its prefix space again.
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
GPT2 = ("GPT2Tokenizer", "GPT2TokenizerFast")
#: Longest added token, in bytes: the library's table of added tokens takes up to a kilobyte for each byte.
LONGEST_ADDED = 1024

Entry = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """A directory's settings for its tokenizer.

    Attributes
    ----------
    added : dict of str to dict
        Added tokens by their text, each with its id and all ``FLAGS``.
    special : dict of str to dict
        Special tokens by their text, each with all ``FLAGS`` but without an id; the vocabulary has the ids.
    further : tuple of str
        The special tokens that get the next free id if the vocabulary lacks them.
    eos : tuple of str
        Candidates for the end-of-text token; the first one in the vocabulary is used.
    add_prefix_space : bool or None
        Whether a space is added before a text; None if the files do not say.
    source : str
        The file that the added tokens come from, "" if there are none.
    """

    added: dict[str, Entry] = field(default_factory=dict)
    special: dict[str, Entry] = field(default_factory=dict)
    further: tuple[str, ...] = ()
    eos: tuple[str, ...] = ()
    add_prefix_space: bool | None = None
    source: str = ""


NOTHING_SAID = Settings()


def added_token(content: str, token_id: int | None = None, **flags: bool) -> Entry:
    """An added token in the form of a tokenizer.json; by default a special one."""
    entry: Entry = {} if token_id is None else {"id": token_id}
    special = flags.get("special", True)
    default = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special, "special": special}
    return entry | {"content": content} | default | flags


def read_directory(directory: Path) -> Settings:
    """Read the settings of a model's directory.

    Raises
    ------
    TokenizerError
        If a file is damaged, or holds something else than it should.
    """
    config_path = directory / TOKENIZER_CONFIG
    config = _read(config_path) or {}
    if config.get("added_tokens_decoder") is not None:
        return settings_of(config, config_path)
    map_path, added_path = directory / SPECIAL_TOKENS_MAP, directory / ADDED_TOKENS
    found = settings_of(config, config_path, _read(map_path), map_path)
    table = checked_ids(_read(added_path) or {}, "the file", added_path)
    added = {
        check_content(content, added_path): added_token(content, token_id, special=content in found.special)
        for content, token_id in table.items()
    }
    return replace(found, added=added, source=added_path.name if added else "")


def settings_of(
    config: dict[str, Any], path: Path, special_map: dict[str, Any] | None = None, map_path: Path | None = None
) -> Settings:
    """The settings of a tokenizer_config.json and of a special_tokens_map.json, which has precedence.

    Raises
    ------
    TokenizerError
        If an entry is invalid.
    """
    decoder = config.get("added_tokens_decoder")
    added = {} if decoder is None else _decoder(expect(decoder, dict, "added_tokens_decoder", path), path)
    eos: list[str] = []
    special: list[Entry] = []
    further: list[Entry] = []
    said = [(special_map or {}, map_path or path), (config, path)]
    for key in dict.fromkeys((*NAMED, *(key for table, _ in said for key in table if _is_own_name(key, table[key])))):
        entries = [_special(key, table[key], where) for table, where in said if table.get(key) is not None]
        if key == "eos_token":
            eos = [entry["content"] for entry in entries]
        (special if key in NAMED else further).extend(entries[:1])
    for (table, where), keys in zip(said[::-1], _keys_of_lists(config, special_map or {}), strict=True):
        further += [entry for key in keys for entry in _list_of_special(key, table[key], where)]
    found = {entry["content"]: entry for entry in [*further, *special][::-1]}
    names = dict.fromkeys(entry["content"] for entry in further)
    source = path.name if added else ""
    return Settings(added, found, tuple(names), tuple(eos), _prefix_space(config, path), source)


def _is_own_name(key: str, value: object) -> bool:
    """Whether a key names a model-specific special token."""
    return key.endswith("_token") and key not in NAMED and isinstance(value, str)


def _keys_of_lists(config: dict[str, Any], special_map: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The keys of further special tokens to use, in a tokenizer_config.json and in a special_tokens_map.json."""
    extra = FURTHER[-1]
    there = [key for key in FURTHER if config.get(key) is not None]
    of_config = [extra] if config.get(extra) else there[:1]
    of_map = [key for key in FURTHER if special_map.get(key) is not None and (key == extra or not there)]
    return of_config, of_map


def _read(path: Path) -> dict[str, Any] | None:
    """Read a file of settings; None if it does not exist. (A dangling link is an error.)"""
    with reading(path, TokenizerError):
        return read_settings(path) if is_there(path) else None


def warn_of_ignored(directory: Path, settings: Settings, names: Container[str], adds: bool) -> None:
    """Warn of settings that have no effect.

    Parameters
    ----------
    directory : Path
    settings : Settings
        Of this directory.
    names : collection of str
        All tokens that the tokenizer has.
    adds : bool
        Whether transformers would obey ``add_bos_token`` and ``add_eos_token``; it does not beside a tokenizer.json.
    """
    for content in settings.special:
        if content not in names:
            log.warning(
                "%s: the special token %s is not in the vocabulary, so there is none", directory, shown(content)
            )
    path = directory / TOKENIZER_CONFIG
    config = (_read(path) or {}) if adds else {}
    for key, where in (("add_bos_token", "begin"), ("add_eos_token", "end")):
        if config.get(key) is True:
            what = "%s: %s is set, but nothing is added to a text here: %s it with that token yourself"
            log.warning(what, path, key, where)


def _decoder(table: dict[str, Any], path: Path) -> dict[str, Entry]:
    """Read an ``added_tokens_decoder``, which maps ids (as text) to tokens with their flags."""
    found: dict[str, Entry] = {}
    ids: dict[str, int] = {}
    for key, value in table.items():
        if not (key.isascii() and key.isdigit() and len(key) <= 8):
            raise TokenizerError(
                "an id in added_tokens_decoder makes no sense",
                where=path,
                got=shown(key),
                wanted=f"a whole number from 0 to {LARGEST['n_vocab'] - 1}",
                fix=FRESH_COPY,
            )
        entry = _entry(expect(value, dict, "an added token", path), path, special=False)
        if ids.setdefault(entry["content"], int(key)) != int(key):
            got = f"{ids[entry['content']]} and {int(key)} for {shown(entry['content'])}"
            raise TokenizerError("an added token has two ids", where=path, got=got, fix=FRESH_COPY)
        found[entry["content"]] = {"id": int(key), **entry}
    checked_ids(ids, "added_tokens_decoder", path)
    return found


def _special(key: str, value: object, path: Path) -> Entry:
    """A special token: a text, or an object with flags."""
    if isinstance(value, dict):
        return _entry(value, path, what=key, special=True) | {"special": True}
    return added_token(check_content(expect(value, str, key, path), path))


def _list_of_special(key: str, value: object, path: Path) -> list[Entry]:
    """Special tokens: a list of them, or an object from names to them."""
    values = list(value.values()) if isinstance(value, dict) else expect(value, list, key, path)
    return [_special(key, one, path) for one in values]


def _entry(raw: dict[str, Any], path: Path, what: str = "an added token's content", special: bool = True) -> Entry:
    """A token with its flags; flags may be absent."""
    content = check_content(expect(raw.get("content"), str, what, path), path)
    flags = {flag: raw[flag] for flag in FLAGS if raw.get(flag) is not None}
    if wrong := [flag for flag in flags if not isinstance(flags[flag], bool)]:
        raise TokenizerError(
            f"{wrong[0]} of an added token is neither true nor false",
            where=path,
            got=f"{shown(flags[wrong[0]])} for {shown(content)}",
            fix=FRESH_COPY,
        )
    return added_token(content, **{"special": special, **flags})


def check_content(content: str, path: Path) -> str:
    """Check that an added token's text is not too long to search for, and return it."""
    if len(content.encode("utf-8", "replace")) > LONGEST_ADDED:
        raise TokenizerError(
            "an added token is absurdly long",
            where=path,
            got=shown(content),
            wanted=f"at most {LONGEST_ADDED} bytes",
            fix=FRESH_COPY,
        )
    return content


def checked_ids(table: object, what: str, path: Path) -> dict[str, int]:
    """Check that every id in a table from token to id is valid and unique, and return a copy."""
    owners: dict[int, str] = {}
    for token, token_id in expect(table, dict, what, path).items():
        if type(token_id) is not int or not 0 <= token_id < LARGEST["n_vocab"]:
            got = f"{shown(token_id)} for {shown(token)}"
            wanted = f"a whole number from 0 to {LARGEST['n_vocab'] - 1}"
            raise TokenizerError(f"an id in {what} makes no sense", where=path, got=got, wanted=wanted, fix=FRESH_COPY)
        if owners.setdefault(token_id, token) != token:
            got = f"{token_id} for {shown(owners[token_id])} and {shown(token)}"
            raise TokenizerError(f"two tokens of {what} share an id", where=path, got=got, fix=FRESH_COPY)
    return {token: token_id for token_id, token in owners.items()}


def give_ids(vocab: dict[str, int], names: Sequence[str]) -> None:
    """Give tokens that a vocabulary lacks the next ids after its last one, in order, as transformers does."""
    for name in names:
        if name not in vocab:
            vocab[name] = max(vocab.values(), default=-1) + 1


def _prefix_space(config: dict[str, Any], path: Path) -> bool | None:
    said = config.get("add_prefix_space")
    if said is not None and not isinstance(said, bool):
        raise TokenizerError("add_prefix_space is neither true nor false", where=path, got=shown(said), fix=FRESH_COPY)
    kind = config.get("tokenizer_class")
    if kind in AS_IT_IS:
        return None
    return False if said is None and kind in GPT2 else said
