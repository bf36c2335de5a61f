"""Sentencepiece models (tokenizer.model): the library encodes; decoding follows its rules, but works id by id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sentencepiece

from refgpt._common.errors import TokenizerError
from refgpt._common.wording import FRESH_COPY, listed, shown
from refgpt.tokenizers.base import StreamDecoder, Tokenizer
from refgpt.tokenizers.charsmap import check_texts
from refgpt.tokenizers.files import faults_named, read_bytes
from refgpt.tokenizers.settings import FLAGS, NOTHING_SAID, Settings, give_ids, read_directory, warn_of_ignored
from refgpt.tokenizers.spans import Span, pieces_of, spans_of_bytes

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # stands for a space in pieces: U+2581

#: Appended to a serialised model, these change its normalizer: messages of one field are merged, the last value counts.
DUMMY_PREFIX = {False: b"\x1a\x02\x18\x00", True: b"\x1a\x02\x18\x01"}
KEEP_WHITE_SPACE = b"\x1a\x02\x20\x00"

#: Types of pieces, as a model and a GGUF file number them.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def load_model(path: Path) -> SentencePieceTokenizer:
    """A tokenizer.model, completed by the settings beside it."""
    settings = read_directory(path.parent)
    source = listed([path.name] + [settings.source] * bool(settings.source))
    tokenizer = SentencePieceTokenizer(read_bytes(path), path, source, settings)
    warn_of_ignored(path.parent, settings, tokenizer.vocab, adds=True)
    return tokenizer


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model from a file.

    Control tokens such as "</s>" decode to nothing, the unknown token to the model's own mark, " ⁇ " by default.
    Changes by the model's normalizer are not undone, and U+2581 in a text is decoded as a space, because pieces use it
    for spaces. Decoding an encoded text gives the library's result. For other ids it differs in two points, like all
    tokenizers of this package: invalid UTF-8 from byte pieces becomes one U+FFFD per sequence, not one per byte, and a
    control token between two bytes of a character does not break it.

    Added tokens are searched for in a text first. The text before the first of them is encoded according to the model;
    text after one is encoded as the middle of a text: no space is added before it or removed.

    Parameters
    ----------
    model : bytes
        The contents of a tokenizer.model.
    path : Path
        The file, for errors.
    source : str
        The file's name, for display.
    settings : Settings, optional
        The settings from the files beside it.

    Attributes
    ----------
    vocab : dict of str to int
        Ids by piece and by added token.
    added_tokens : dict of str to dict
        The tokens that are searched for in a text first, each with its id and flags.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, path: Path, source: str, settings: Settings = NOTHING_SAID) -> None:
        if settings.add_prefix_space is not None:
            model += DUMMY_PREFIX[settings.add_prefix_space]
        self._model = model
        with faults_named("the sentencepiece library refuses this model", path):
            check_texts(model)
            self._library = library = _loaded(model)
            names = library.id_to_piece(list(range(library.get_piece_size())))
            pieces = {piece: n for n, piece in enumerate(names)}
            tokens = self._bytes_by_id(pieces)
            # A model either keeps the spaces at the start of a text, removes one, or removes all of them.
            self._takes_all_spaces = SPACE in pieces and library.decode([pieces[SPACE]] * 2) == ""
        if not tokens:
            raise TokenizerError("the model has no pieces", where=path, fix=FRESH_COPY)
        self.added_tokens = _added(settings, pieces, path)
        self._n_pieces = library.get_piece_size()
        tokens |= {
            entry["id"]: text.encode() for text, entry in self.added_tokens.items() if entry["id"] >= self._n_pieces
        }
        self._finder = self._plain_finder = None
        if self.added_tokens:
            from refgpt.tokenizers.added import AddedTokens  # imports the tokenizers library; few models need it

            with faults_named("the added tokens cannot be looked for", path):
                self._finder = AddedTokens(self.added_tokens)
                plain = {text: entry for text, entry in self.added_tokens.items() if not entry["special"]}
                self._plain_finder = AddedTokens(plain) if plain else None
                self._middle = _loaded(model + DUMMY_PREFIX[False] + KEEP_WHITE_SPACE)
        own_eos = [library.eos_id()] if library.eos_id() >= 0 else []
        self.vocab = pieces | {text: entry["id"] for text, entry in self.added_tokens.items()}
        eos_ids = [self.vocab[name] for name in settings.eos if name in self.vocab] + own_eos
        super().__init__(tokens, eos_ids[0] if eos_ids else None, source)

    def files(self) -> dict[str, bytes]:
        """The model itself, the name of the end-of-text token, and the added tokens."""
        found = {"tokenizer.model": self._model}
        settings: dict[str, Any] = {}
        if self.eos_id is not None:
            settings["eos_token"] = self._name(self.eos_id)
            found["special_tokens_map.json"] = json.dumps(settings, ensure_ascii=False).encode()
        if self.added_tokens:
            settings["added_tokens_decoder"] = {
                str(entry["id"]): {"content": text} | {flag: entry[flag] for flag in FLAGS}
                for text, entry in self.added_tokens.items()
            }
            found["tokenizer_config.json"] = json.dumps(settings, ensure_ascii=False).encode()
        return found

    def pieces(self) -> Iterator[tuple[str, float, int]]:
        """Each id's piece or added token with its score and its type: see ``NORMAL`` and others."""
        library = self._library
        kinds = (
            (library.is_unknown, UNKNOWN),
            (library.is_control, CONTROL),
            (library.is_unused, UNUSED),
            (library.is_byte, BYTE),
        )
        for n in range(self._n_pieces):
            kind = next((kind for has, kind in kinds if has(n)), NORMAL)
            yield library.id_to_piece(n), library.get_score(n), kind
        for n in range(self._n_pieces, self.n_vocab):
            if not self.has(n):
                yield f"[PAD{n}]", 0.0, UNUSED
            else:
                yield self._name(n), 0.0, CONTROL if self.added_tokens[self._name(n)]["special"] else USER_DEFINED

    def _name(self, token_id: int) -> str:
        """The text of a piece or an added token."""
        if token_id < self._n_pieces:
            return str(self._library.id_to_piece(token_id))
        return self.token_bytes(token_id).decode()

    def _bytes_by_id(self, pieces: Mapping[str, int]) -> dict[int, bytes]:
        """The bytes of each piece, by id, anywhere except at the start of a text."""
        library, ids = self._library, list(pieces.values())  # the library answers lists faster than single ids
        kinds = zip(library.is_byte(ids), library.is_control(ids), library.is_unknown(ids), strict=True)
        found = {}
        for (piece, n), (is_byte, is_control, is_unknown) in zip(pieces.items(), kinds, strict=True):
            if is_byte:
                found[n] = bytes([int(piece[1:-1], 16)])  # "<0x0A>"
            elif is_control or is_unknown:
                found[n] = self._first_bytes(n)
            else:
                found[n] = piece.replace(SPACE, " ").encode()
        return found

    def _first_bytes(self, token_id: int) -> bytes:
        """The bytes of a piece at the start of a text."""
        text: str = self._library.decode([token_id])
        return text.encode()

    def _encode(self, text: str, special: bool) -> list[int]:
        with faults_named("the sentencepiece library cannot encode this text", "the text"):
            ids: list[int] = []
            for library, token_id, start, stop in self._parts(text, special):
                ids += library.encode(text[start:stop], out_type=int) if token_id is None else [token_id]
        return ids

    def _encode_spans(self, text: str, special: bool) -> tuple[list[int], list[Span]]:
        with faults_named("the sentencepiece library cannot encode this text", "the text"):
            ids: list[int] = []
            spans: list[Span] = []
            for library, token_id, start, stop in self._parts(text, special):
                if token_id is not None:
                    ids.append(token_id)
                    spans.append((start, stop))
                    continue
                pieces = pieces_of(library.encode(text[start:stop], out_type="serialized_proto"))
                ids += [piece for piece, _, _ in pieces]
                found = spans_of_bytes(text[start:stop], self._spans_of_pieces(pieces))
                spans += [(start + first, start + last) for first, last in found]
        return ids, spans

    def _parts(self, text: str, special: bool) -> Iterator[tuple[Any, int | None, int, int]]:
        """The parts of a text, with the library that encodes it or the id of the added token that it is."""
        finder = self._finder if special else self._plain_finder
        library = self._library
        for token_id, start, stop in [(None, 0, len(text))] if finder is None else finder.split(text):
            yield library, token_id, start, stop
            if finder is not None:
                library = self._middle

    def _spans_of_pieces(self, pieces: list[tuple[int, int, int]]) -> list[Span]:
        """The bytes of each piece. Of a character spelt in bytes, the library gives all to the last of them."""
        spans: list[Span] = []
        for piece, start, stop in reversed(pieces):
            if start == stop and spans and spans[-1][0] == start and self._library.is_byte(piece):
                stop = spans[-1][1]
            spans.append((start, stop))
        return spans[::-1]

    def stream_decoder(self) -> StreamDecoder:
        """A decoder that takes one id at a time and treats spaces at the start of a text as the model does."""
        at_start = True

        def to_bytes(token_id: int) -> bytes:
            nonlocal at_start
            plain = self.token_bytes(token_id)
            if not at_start or token_id >= self._n_pieces or self._library.is_byte(int(token_id)):
                at_start = False
                return plain
            first = self._first_bytes(int(token_id))
            took_the_one_space = plain == b" " and not self._takes_all_spaces
            at_start = not first and not took_the_one_space
            return first

        return StreamDecoder(to_bytes)


def _loaded(model: bytes) -> Any:
    library = sentencepiece.SentencePieceProcessor()
    library.LoadFromSerializedProto(model)
    return library


def _added(settings: Settings, pieces: Mapping[str, int], path: Path) -> dict[str, dict[str, Any]]:
    """The added tokens of a model. A token that is also a piece keeps the piece's id."""
    ids = dict(pieces)
    owners = {n: piece for piece, n in pieces.items()}
    added = dict(settings.added)
    for text, entry in added.items():
        if ids.setdefault(text, entry["id"]) != entry["id"]:
            got = f"{entry['id']} and {ids[text]} for {shown(text)}"
            raise TokenizerError("an added token has two ids", where=path, got=got, fix=FRESH_COPY)
        if owners.get(entry["id"], text) != text:
            got = f"{entry['id']} for {shown(owners[entry['id']])} and {shown(text)}"
            raise TokenizerError("an added token has the id of a piece", where=path, got=got, fix=FRESH_COPY)
    give_ids(ids, settings.further)
    for text in settings.further:
        added.setdefault(text, {"id": ids[text], **settings.special[text]})
    return added
