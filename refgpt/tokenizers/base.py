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

import numpy as np

from refgpt._common.arguments import whole_number
from refgpt._common.errors import TokenizerError
from refgpt._common.wording import shown

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
            Whether the strings of special tokens, such as "<|endoftext|>", become their ids. If not, they are text like
            any other, as where somebody else has written the text.

        Returns
        -------
        list of int

        Raises
        ------
        TokenizerError
            If ``text`` is not a ``str``, or contains a lone surrogate, a character that the vocabulary cannot
            represent, or a token for which the model has no row.
        """
        if not isinstance(text, str):
            raise TokenizerError("only text can be encoded", where="encode", got=type(text).__name__, wanted="str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            got = f"{text[error.start]!r} at position {error.start}"
            fix = "it was no UTF-8 where it came from: write it as UTF-8 there, or leave the character out"
            raise TokenizerError("holds a lone surrogate", where="the text", got=got, fix=fix) from None
        ids = self._encode(text, special)
        if self.n_rows is not None and max(ids, default=-1) >= self.n_rows:
            token_id = next(n for n in ids if n >= self.n_rows)
            token = self.token_bytes(token_id).decode("utf-8", "replace")
            got, wanted = f"{shown(token)}, which has the id {token_id}", f"ids below {self.n_rows}"
            fix = "leave it out: the tokenizer's files name more tokens than the model has"
            what = "the model has no row for one of its tokens"
            raise TokenizerError(what, where="the text", got=got, wanted=wanted, fix=fix)
        return ids

    @abstractmethod
    def _encode(self, text: str, special: bool) -> list[int]:
        """The ids of a valid text."""

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
