"""Sentencepiece models (tokenizer.model): the library encodes; decoding is its own rules, made to work id by id."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece

from refgpt._common.errors import TokenizerError
from refgpt._common.wording import FRESH_COPY
from refgpt.tokenizers.base import StreamDecoder, Tokenizer
from refgpt.tokenizers.files import faults_named, named_eos, read_bytes

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how pieces spell a space: U+2581


def load_model(path: Path) -> SentencePieceTokenizer:
    """A tokenizer.model; special_tokens_map.json and tokenizer_config.json beside it may name the end of a text."""
    return SentencePieceTokenizer(read_bytes(path), path, path.name, named_eos(path.parent))


class SentencePieceTokenizer(Tokenizer):
    """A sentencepiece model from a file.

    Control tokens such as "</s>" decode to nothing, the unknown token to the model's own mark, " ⁇ " by default. What a
    model drops or changes in normalising stays so; and U+2581 in a text comes back as a space from any model, because
    that is how pieces spell spaces. Decoding what was encoded gives what the library gives. On other ids it differs in
    two points, to be like every tokenizer here: broken UTF-8 from byte pieces becomes one U+FFFD a sequence, not one a
    byte, and a control token between two bytes of a character does not break it.

    Parameters
    ----------
    model : bytes
        The contents of a tokenizer.model.
    path : Path
        Where it came from, for errors.
    source : str
        The same for the reader.
    eos : sequence of str
        Which piece ends a text: the first of these that is there, else the model's own.
    """

    kind = "sentencepiece"

    def __init__(self, model: bytes, path: Path, source: str, eos: Sequence[str] = ()) -> None:
        self._model = model
        with faults_named("the sentencepiece library refuses this model", path):
            self._library = library = sentencepiece.SentencePieceProcessor()
            library.LoadFromSerializedProto(model)
            pieces = {library.id_to_piece(n): n for n in range(library.get_piece_size())}
            tokens = {n: self._plain_bytes(n, piece) for piece, n in pieces.items()}
            # A model either keeps the spaces at the start of a text, takes one away, or all of them.
            self._takes_all_spaces = SPACE in pieces and library.decode([pieces[SPACE]] * 2) == ""
        if not tokens:
            raise TokenizerError("the model has no pieces", where=path, fix=FRESH_COPY)
        own_eos = [library.eos_id()] if library.eos_id() >= 0 else []
        eos_ids = [pieces[name] for name in eos if name in pieces] + own_eos
        super().__init__(tokens, eos_ids[0] if eos_ids else None, source)

    def files(self) -> dict[str, bytes]:
        """The model itself, and the name of the piece that ends a text."""
        found = {"tokenizer.model": self._model}
        if self.eos_id is not None:
            settings = {"eos_token": self._library.id_to_piece(self.eos_id)}
            found["special_tokens_map.json"] = json.dumps(settings, ensure_ascii=False).encode()
        return found

    def pieces(self) -> Iterator[tuple[str, float, int]]:
        """Each piece with its score and its type, by id: 1 normal, 2 unknown, 3 control, 5 unused, 6 a byte."""
        library = self._library
        kinds = ((library.is_unknown, 2), (library.is_control, 3), (library.is_unused, 5), (library.is_byte, 6))
        for n in range(library.get_piece_size()):
            yield library.id_to_piece(n), library.get_score(n), next((kind for has, kind in kinds if has(n)), 1)

    def _plain_bytes(self, token_id: int, piece: str) -> bytes:
        """What a piece stands for anywhere but at the start of a text."""
        if self._library.is_byte(token_id):
            return bytes([int(piece[1:-1], 16)])  # "<0x0A>"
        if self._library.is_control(token_id) or self._library.is_unknown(token_id):
            return self._first_bytes(token_id)
        return piece.replace(SPACE, " ").encode()

    def _first_bytes(self, token_id: int) -> bytes:
        """What a piece stands for at the start of a text."""
        text: str = self._library.decode([token_id])
        return text.encode()

    def _encode(self, text: str) -> list[int]:
        with faults_named("the sentencepiece library cannot encode this text", "encode"):
            ids: list[int] = self._library.encode(text, out_type=int)
        return ids

    def stream_decoder(self) -> StreamDecoder:
        """A decoder that takes one id at a time and treats spaces at the start of a text as the model does."""
        at_start = True

        def to_bytes(token_id: int) -> bytes:
            nonlocal at_start
            plain = self.token_bytes(token_id)
            if not at_start or self._library.is_byte(int(token_id)):
                at_start = False
                return plain
            first = self._first_bytes(int(token_id))
            took_the_one_space = plain == b" " and not self._takes_all_spaces
            at_start = not first and not took_the_one_space
            return first

        return StreamDecoder(to_bytes)
