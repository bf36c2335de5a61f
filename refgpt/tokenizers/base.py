"""The base class of all tokenizers, with the decoding of bytes to text.

A token is a string of bytes, not of characters: "é" is two bytes and may be two tokens. So a tokenizer only gives the
bytes of each token, and the bytes of a text are joined before they are decoded as UTF-8.
"""

from __future__ import annotations

import codecs
import logging
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from refgpt._common.arguments import collected, flag, one_of, whole_number
from refgpt._common.errors import TokenizerError
from refgpt._common.wording import shown
from refgpt.tokenizers.spans import Span, spans_of_bytes, spans_of_lengths

log = logging.getLogger("refgpt")


class Tokenizer(ABC):
    """Text to ids and back.

    Parameters
    ----------
    tokens : mapping of int to bytes
        The bytes of every id that exists.
    eos_id : int or None
        The id that ends a text.
    source : str
        The files it was loaded from, for display.

    Attributes
    ----------
    kind : str
        The kind of tokenizer, for display.
    n_vocab : int
        The largest id that exists, plus one. A model's head may have more rows (GPT-2's vocabulary has 50257 tokens,
        GPT-J's head 50400 rows), and those ids mean no text.
    exists : ndarray [n_vocab] of bool
        Which ids below ``n_vocab`` exist, since a vocabulary may have gaps. The others are never sampled.
    eos_id : int or None
        The id that ends a text, if there is one.
    n_rows : int or None
        Number of rows of the model's head (see ``fit``); None if no model is known.
    """

    kind = "a vocabulary"

    def __init__(self, tokens: Mapping[int, bytes], eos_id: int | None, source: str = "") -> None:
        self._tokens = tokens
        self._source = source
        self.n_vocab = max(tokens, default=-1) + 1
        self.exists = np.zeros(self.n_vocab, bool)
        self.exists[list(tokens)] = True
        self.eos_id = eos_id
        self.n_rows: int | None = None

    def fit(self, n_rows: int) -> None:
        """Store the number of rows of the model's head.

        From then on, texts with a token that has no row are refused.

        Raises
        ------
        TokenizerError
            If no token has a row: it is the tokenizer of another model.
        """
        n_rows = whole_number("n_rows", n_rows, 0, None, TokenizerError)
        without = len(self._tokens) - int(self.exists[:n_rows].sum())
        fix = "use the tokenizer that came with the model"
        if without and without == len(self._tokens):
            got, wanted = f"ids up to {self.n_vocab - 1}", f"ids below {n_rows}"
            where = self._source or "tokenizer"
            raise TokenizerError("the model has no row for any token", where=where, got=got, wanted=wanted, fix=fix)
        if without:
            log.warning(
                "%s: %d of the tokens have an id beyond the model's %d rows: they are never generated, and a "
                "text that holds one is refused",
                self._source or "tokenizer",
                without,
                n_rows,
            )
        self.n_rows = n_rows

    def encode(self, text: str, special: bool = True) -> list[int]:
        """The ids of the whole text; nothing is truncated, padded or added.

        Parameters
        ----------
        text : str
        special : bool
            Whether the strings of special tokens, such as ``"<|endoftext|>"``, become their ids. If not, they are text
            like any other, which is right where somebody else has written the text.

        Returns
        -------
        list of int

        Raises
        ------
        TokenizerError
            If ``text`` is not a ``str``, or contains a lone surrogate, a character that the vocabulary cannot
            represent, or a token for which the model has no row.
        """
        check_text(text)
        ids = self._encode(text, special)
        self._check_rows(ids)
        return ids

    def __call__(
        self,
        texts: str | Iterable[str],
        *,
        truncation: bool = False,
        max_length: int | None = None,
        truncation_side: str = "right",
        return_offsets: bool = False,
        special: bool = True,
    ) -> dict[str, Any]:
        """The ids of one text or of several, and where in the text each token lies.

        Names and result are those of transformers, as far as they go; nothing is padded or added.

        Parameters
        ----------
        texts : str or iterable of str
        truncation : bool
            Whether to cut texts to ``max_length`` tokens.
        max_length : int, optional
        truncation_side : "right" or "left"
            Which end of a text goes.
        return_offsets : bool
        special : bool
            See ``encode``.

        Returns
        -------
        dict
            "input_ids": a list of ids, or a list of such lists for several texts. With ``return_offsets`` also
            "offset_mapping", which gives each token the place (start, stop) of its characters in the text:
            ``text[start:stop]``. Of a character that several tokens spell each has all of it; what a tokenizer puts
            before a text has an empty place. A blank that belongs to a token belongs to its place.

        Raises
        ------
        TokenizerError
            If a text or an argument cannot be used; of several texts the error names the first.
        """
        one = isinstance(texts, str)
        flag("truncation", truncation, TokenizerError)
        one_of("truncation_side", truncation_side, ("right", "left"), TokenizerError)
        flag("return_offsets", return_offsets, TokenizerError)
        if max_length is not None:
            max_length = whole_number("max_length", max_length, 1, None, TokenizerError)
        if truncation != (max_length is not None):
            raise TokenizerError("go together", where="truncation, max_length", fix="give both, or neither")
        many = [texts] if one else collected("texts", texts, "a text or a list of texts", TokenizerError)
        found: dict[str, list[Any]] = {"input_ids": []} | ({"offset_mapping": []} if return_offsets else {})
        for i, text in enumerate(many):
            try:
                check_text(text)
                ids, spans = self._encode_spans(text, special) if return_offsets else (self._encode(text, special), [])
                self._check_rows(ids)
            except TokenizerError as error:
                raise error if one else error.within(f"texts[{i}]") from None
            kept = slice(None) if max_length is None else slice(0, max_length)
            if max_length is not None and truncation_side == "left":
                kept = slice(max(0, len(ids) - max_length), None)
            found["input_ids"].append(ids[kept])
            if return_offsets:
                found["offset_mapping"].append(spans[kept])
        return {name: values[0] for name, values in found.items()} if one else found

    def _check_rows(self, ids: list[int]) -> None:
        """Refuse ids for which the model has no row."""
        if self.n_rows is not None and max(ids, default=-1) >= self.n_rows:
            token_id = next(n for n in ids if n >= self.n_rows)
            token = self.token_bytes(token_id).decode("utf-8", "replace")
            got, wanted = f"{shown(token)}, which has the id {token_id}", f"ids below {self.n_rows}"
            fix = "leave it out: the tokenizer's files name more tokens than the model has"
            what = "the model has no row for one of its tokens"
            raise TokenizerError(what, where="the text", got=got, wanted=wanted, fix=fix)

    @abstractmethod
    def _encode(self, text: str, special: bool) -> list[int]:
        """The ids of a valid text."""

    def _encode_spans(self, text: str, special: bool) -> tuple[list[int], list[Span]]:
        """The ids of a valid text, and the characters of each. Here for tokens whose bytes, joined, are the text's."""
        ids = self._encode(text, special)
        return ids, spans_of_bytes(text, spans_of_lengths([len(self.token_bytes(token_id)) for token_id in ids]))

    def describe(self) -> str:
        """Its kind and source, for display: "byte-level BPE, 50257 ids, from tokenizer.json"."""
        return f"{self.kind}, {self.n_vocab} ids" + (f", from {self._source}" if self._source else "")

    def files(self) -> dict[str, bytes]:
        """Names and contents of files that recreate this tokenizer in a model's directory; {} if that is impossible."""
        return {}

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids; bytes that are not valid UTF-8 become U+FFFD.

        Parameters
        ----------
        ids : iterable of int
            NumPy integers will do.

        Returns
        -------
        str

        Raises
        ------
        TokenizerError
            If an id does not exist.
        """
        decoder = self.stream_decoder()
        try:
            pieces = [decoder.push(token_id) for token_id in ids]
        except TypeError:
            raise TokenizerError("these are no ids", where="decode", got=shown(ids), wanted="a list") from None
        return "".join(pieces) + decoder.finish()

    def stream_decoder(self) -> StreamDecoder:
        """A decoder that takes one id at a time."""
        return StreamDecoder(self.token_bytes)

    def has(self, token_id: int) -> bool:
        """Whether an id has a token. A vocabulary may have gaps, and a head may have more rows than the vocabulary has
        ids."""
        try:
            return operator.index(token_id) in self._tokens
        except TypeError:  # not a whole number
            return False

    def first_difference(self, other: Tokenizer, n_ids: int) -> int | None:
        """The first id below ``n_ids`` whose token is not the same in another tokenizer; None if there is none."""
        if self._tokens == other._tokens:
            return None
        return next((i for i in range(n_ids) if self._tokens.get(i) != other._tokens.get(i)), None)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of an id's token.

        Raises
        ------
        TokenizerError
            If the id does not exist: negative, beyond the vocabulary, in a gap, or not a whole number.
        """
        try:
            if isinstance(token_id, bool):
                raise TypeError("True is no id, though Python counts it as 1")
            return self._tokens[operator.index(token_id)]
        except (KeyError, TypeError):
            wanted = f"a whole number from 0 to {self.n_vocab - 1} that the vocabulary gives to a token"
            raise TokenizerError("no such id", where="decode", got=shown(token_id), wanted=wanted) from None


def check_text(text: object) -> None:
    """Refuse what is no text that can be written in UTF-8."""
    if not isinstance(text, str):
        raise TokenizerError("only text can be encoded", where="encode", got=type(text).__name__, wanted="str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        got = f"{text[error.start]!r} at position {error.start}"
        fix = "it was no UTF-8 where it came from: write it as UTF-8 there, or leave the character out"
        raise TokenizerError("holds a lone surrogate", where="the text", got=got, fix=fix) from None


class StreamDecoder:
    """Decodes ids one at a time. Text is returned as soon as it is certain, and only whole characters.

    The results of ``push`` and ``finish``, joined, equal ``decode`` of the same ids.

    Parameters
    ----------
    to_bytes : callable
        Returns the bytes of an id; called once for each id, in order.
    """

    def __init__(self, to_bytes: Callable[[int], bytes]) -> None:
        self._to_bytes = to_bytes
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that becomes certain with this id; it may be empty.

        Raises
        ------
        TokenizerError
            If the id does not exist; the decoder is then unchanged.
        """
        return self._utf8.decode(self._to_bytes(token_id))

    def finish(self) -> str:
        """The end of the text: U+FFFD if it ends within a character, otherwise empty."""
        return self._utf8.decode(b"", final=True)
