"""GPT-2's byte-level BPE, which GPT-J uses with 143 additional tokens (``<|extratoken_1|>`` and so on).

The vocabulary spells every byte as one printable letter, so that JSON can hold it: a space is "Ġ", a newline "Ċ". The
tokenizers library does the splitting and merging. This module reads the models' files, gives the library the parts
needed for encoding, and keeps the bytes of every token for decoding.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from refgpt._common.errors import TokenizerError
from refgpt._common.wording import FRESH_COPY, listed, shown
from refgpt.tokenizers.base import Tokenizer
from refgpt.tokenizers.components import check_components
from refgpt.tokenizers.files import OtherKind, expect, faults_named, read_json_object, read_text
from refgpt.tokenizers.settings import (
    NOTHING_SAID,
    Settings,
    added_token,
    check_content,
    checked_ids,
    give_ids,
    read_directory,
    warn_of_ignored,
)
from refgpt.tokenizers.spans import Span

END_OF_TEXT = "<|endoftext|>"
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _byte_of_letter() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes for U+0100 and on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_LETTER = _byte_of_letter()
LETTER_OF_BYTE = {byte: letter for letter, byte in BYTE_OF_LETTER.items()}


class ByteLevelBPE(Tokenizer):
    """A byte-level BPE from files, see `load_tokenizer_json` and `load_vocab_and_merges`.

    Special tokens are text like any other: ``"<|endoftext|>"`` in a text becomes its id, and that id becomes its text
    again, so that ``decode(encode(text)) == text`` for every text, unless the tokenizer's file itself changes the text
    (by a normalizer, a prefixed space, or added tokens that absorb the white space around them).

    Parameters
    ----------
    description : dict
        The contents of a tokenizer.json. Its truncation, padding, dropout and post-processor are left out.
    path : Path
        The file, for errors.
    source : str
        The file's name, for display.
    settings : Settings, optional
        The settings from the files beside it.

    Attributes
    ----------
    vocab : dict of str to int
        Ids by token in letters, and by text for added tokens.
    merges : list of str
        Pairs in letters with a space between, in order of priority.
    added : dict of int to str
        The tokens that are searched for in a text first.
    """

    kind = "byte-level BPE"

    def __init__(self, description: dict[str, Any], path: Path, source: str, settings: Settings = NOTHING_SAID) -> None:
        model = expect(description.get("model"), dict, "model", path)
        _refuse_other_kinds(description, model, path)
        check_components(description, path)
        vocab = checked_ids(model.get("vocab"), "vocab", path)
        self.merges = _checked_merges(model.get("merges"), vocab, path)
        added: dict[str, dict[str, Any]] = {}
        for entry in [*_added_tokens(description, path), *settings.added.values()]:
            content, token_id = check_content(entry["content"], path), entry["id"]
            if vocab.setdefault(content, token_id) != token_id:
                got = f"{shown(token_id)} and {vocab[content]} for {shown(content)}"
                raise TokenizerError("an added token has two ids", where=path, got=got, fix=FRESH_COPY)
            added.setdefault(content, settings.added.get(content, entry))
        vocab = checked_ids(vocab, "vocab with the added tokens", path)
        give_ids(vocab, settings.further)
        last = next((name for name in [*settings.eos, END_OF_TEXT] if name in vocab), None)
        special = settings.special | ({} if last is None else {last: settings.special.get(last, added_token(last))})
        for content in special.keys() & vocab.keys():
            added.setdefault(content, {"id": vocab[content], **special[content]})
        self.added = {vocab[content]: content for content in added}
        self.vocab = vocab

        # A byte whose letter is not in the vocabulary would be dropped silently. This token, which no text contains,
        # marks it.
        missing = "\0" * (1 + max(map(len, vocab), default=0))
        self._missing_id = max(vocab.values(), default=-1) + 1
        self._description: dict[str, Any] = {
            "version": "1.0",
            "added_tokens": sorted(added.values(), key=lambda entry: entry["id"]),
            "normalizer": description.get("normalizer"),
            "pre_tokenizer": _with_prefix_space(description["pre_tokenizer"], settings.add_prefix_space),
            "decoder": BYTE_LEVEL,
            "model": {
                "type": "BPE",
                "fuse_unk": False,
                "ignore_merges": model.get("ignore_merges", False),
                "vocab": vocab,
                "merges": self.merges,
            },
        }
        with_missing = {"unk_token": missing, "vocab": vocab | {missing: self._missing_id}}
        kept = self._description | {"model": self._description["model"] | with_missing}
        with faults_named("the tokenizers library refuses this tokenizer", path):
            self._library = tokenizers.Tokenizer.from_str(json.dumps(kept))
            tokens = {token_id: bytes_of_token(token) for token, token_id in vocab.items()}
            tokens |= {vocab[content]: content.encode() for content in added}
        super().__init__(tokens, None if last is None else vocab[last], source)

    def files(self) -> dict[str, bytes]:
        """A tokenizer.json, and the other files that transformers reads."""
        settings: dict[str, Any] = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": self._adds_prefix_space()}
        found = {"tokenizer.json": self._description, "tokenizer_config.json": settings}
        if self.eos_id is not None:
            eos = self.added[self.eos_id]
            found["special_tokens_map.json"] = {"bos_token": eos, "eos_token": eos, "unk_token": eos}
            settings |= found["special_tokens_map.json"]
        return {name: json.dumps(contents, ensure_ascii=False).encode() for name, contents in found.items()}

    def _adds_prefix_space(self) -> bool:
        step = self._description["pre_tokenizer"]
        steps = step["pretokenizers"] if step["type"] == "Sequence" else [step]
        return any(step["type"] == "ByteLevel" and step.get("add_prefix_space") is True for step in steps)

    def _encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self._encoding(text, special).ids
        return ids

    def _encode_spans(self, text: str, special: bool) -> tuple[list[int], list[Span]]:
        encoding = self._encoding(text, special)
        return encoding.ids, encoding.offsets

    def _encoding(self, text: str, special: bool) -> tokenizers.Encoding:
        with faults_named("the tokenizers library cannot encode this text", "the text"):
            library = self._library if special else self._without_special
            encoding = library.encode(text, add_special_tokens=False)
            ids = encoding.ids
        if self._missing_id in ids:
            start, end = encoding.offsets[ids.index(self._missing_id)]
            got = f"{text[start:end]!r} at position {start}"
            raise TokenizerError("no token spells this character", where="the text", got=got, fix="leave it out")
        return encoding

    @cached_property
    def _without_special(self) -> tokenizers.Tokenizer:
        """The library's tokenizer without the special tokens."""
        description = json.loads(self._library.to_str())
        description["added_tokens"] = [
            entry for entry in description["added_tokens"] if not entry["special"] and entry["id"] != self.eos_id
        ]
        return tokenizers.Tokenizer.from_str(json.dumps(description))


def load_tokenizer_json(path: Path) -> ByteLevelBPE:
    """A tokenizer.json that holds a byte-level BPE; ``TokenizerError`` if it holds anything else."""
    return _of_directory(read_json_object(path), path)


def load_vocab_and_merges(vocab_path: Path, merges_path: Path) -> ByteLevelBPE:
    """vocab.json and merges.txt, GPT-2's first form (there encoder.json and vocab.bpe).

    Parameters
    ----------
    vocab_path : Path
        A JSON object from token to id.
    merges_path : Path
        One merge per line, two tokens with a space between, in order of priority; a first line "#version" is skipped.
    """
    model = {"vocab": read_json_object(vocab_path), "merges": read_merges(merges_path)}
    description = {"pre_tokenizer": BYTE_LEVEL, "model": model}
    return _of_directory(description, vocab_path, merges_path)


def _of_directory(description: dict[str, Any], *paths: Path) -> ByteLevelBPE:
    """Build the tokenizer from these files and the settings in their directory."""
    settings = read_directory(paths[0].parent)
    source = listed([path.name for path in paths] + [settings.source] * bool(settings.source))
    tokenizer = ByteLevelBPE(description, paths[0], source, settings)
    warn_of_ignored(paths[0].parent, settings, tokenizer.vocab, adds=len(paths) > 1)
    return tokenizer


def read_merges(path: Path) -> list[str]:
    """The merges of a merges.txt, each "a b"."""
    lines = read_text(path).replace("\r\n", "\n").split("\n")
    return [line for n, line in enumerate(lines) if line and not (n == 0 and line.startswith("#version"))]


def _refuse_other_kinds(description: dict[str, Any], model: dict[str, Any], path: Path) -> None:
    """Refuse tokenizers other than a byte-level BPE. Old files do not name the model's type; a list of merges then
    suffices."""
    kind = model.get("type", "BPE" if "merges" in model else "unnamed")
    split = description.get("pre_tokenizer")
    steps = split.get("pretokenizers") if isinstance(split, dict) and split.get("type") == "Sequence" else [split]
    steps = steps if isinstance(steps, list) else []
    if kind != "BPE" or not any(isinstance(step, dict) and step.get("type") == "ByteLevel" for step in steps):
        wanted = "a BPE model with a ByteLevel pre-tokenizer, as GPT-2 and GPT-J have"
        names = [step.get("type") if isinstance(step, dict) else step for step in steps]
        fix = "use the tokenizer that came with the model"
        got = f"{shown(kind)} with the pre-tokenizer {shown(names)}"
        raise OtherKind("not a byte-level BPE", where=path, got=got, wanted=wanted, fix=fix)
    for setting in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            got = shown(model[setting])
            raise TokenizerError(f"{setting} has no place in a byte-level BPE", where=path, got=got, wanted="none")


def _checked_merges(merges: object, vocab: dict[str, int], path: Path) -> list[str]:
    """Merges in the form "a b", from that or ["a", "b"]. Both parts and the result must be in the vocabulary."""
    checked = []
    for merge in expect(merges, list, "merges", path):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or any(not isinstance(part, str) or " " in part for part in pair)
        ):
            raise TokenizerError("a merge is not two tokens", where=path, got=shown(merge), fix=FRESH_COPY)
        if not (pair[0] in vocab and pair[1] in vocab and pair[0] + pair[1] in vocab):
            fix = "use the vocabulary and the merges of one and the same model"
            raise TokenizerError("a merge is not in the vocabulary", where=path, got=shown(merge), fix=fix)
        checked.append(" ".join(pair))
    return checked


def _with_prefix_space(step: dict[str, Any], add: bool | None) -> dict[str, Any]:
    """A pre-tokenizer whose byte-level step adds a space before a text, or does not; None changes nothing."""
    if add is None:
        return step
    if step["type"] == "Sequence":
        return step | {"pretokenizers": [_with_prefix_space(inner, add) for inner in step["pretokenizers"]]}
    return step | {"add_prefix_space": add} if step["type"] == "ByteLevel" else step


def _added_tokens(description: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """The added tokens of a tokenizer.json, which are searched for in a text first."""
    entries: list[dict[str, Any]] = expect(description.get("added_tokens") or [], list, "added_tokens", path)
    for entry in entries:
        content = expect(
            expect(entry, dict, "an added token", path).get("content"), str, "an added token's content", path
        )
        checked_ids({content: entry.get("id")}, "added_tokens", path)
    return entries


def bytes_of_token(token: str) -> bytes:
    """A token's bytes by its letters; a token with other characters, such as a space, is plain text."""
    letters = [BYTE_OF_LETTER.get(letter) for letter in token]
    return bytes(byte for byte in letters if byte is not None) if None not in letters else token.encode()


def letters_of_bytes(token: bytes) -> str:
    """Bytes as the vocabulary spells them."""
    return "".join(LETTER_OF_BYTE[byte] for byte in token)
