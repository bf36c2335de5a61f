"""Where tokens lie in a text: spans of characters, from spans of bytes or from what sentencepiece says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np

from refgpt.tokenizers.charsmap import read_number

#: The characters of a token: from the first, to before the last.
Span = tuple[int, int]

#: Field numbers of ``sentencepiece.proto``: of the text, and of a piece.
PIECE, ID, BEGIN, END = 2, 2, 4, 5


def spans_of_bytes(text: str, spans: Iterable[Span]) -> list[Span]:
    """Spans of a text's bytes (UTF-8) as spans of its characters: the smallest that hold all of a token's bytes."""
    lengths = np.fromiter((len(character.encode()) for character in text), np.int64, len(text))
    owner = [*np.repeat(np.arange(len(text)), lengths).tolist(), len(text)]
    return [(owner[start], owner[stop - 1] + 1 if stop > start else owner[start]) for start, stop in spans]


def spans_of_lengths(lengths: Sequence[int]) -> list[Span]:
    """Spans that follow one another."""
    return list(pairwise(np.cumsum([0, *lengths]).tolist()))


def pieces_of(serialized: bytes) -> list[tuple[int, int, int]]:
    """Id, first byte and last byte of each piece of a text, from sentencepiece's serialised ``SentencePieceText``."""
    found, at = [], 0
    while at < len(serialized):
        tag, at = read_number(serialized, at)
        number, at = _value(serialized, at, tag)
        if tag >> 3 == PIECE:
            fields, inner, stop = dict.fromkeys((ID, BEGIN, END), 0), at - number, at
            while inner < stop:
                tag, inner = read_number(serialized, inner)
                value, inner = _value(serialized, inner, tag)
                if tag & 7 == 0 and tag >> 3 in fields:
                    fields[tag >> 3] = value
            found.append((fields[ID], fields[BEGIN], fields[END]))
    return found


def _value(raw: bytes, at: int, tag: int) -> tuple[int, int]:
    """The number that a field holds, or how many bytes of contents it has, and where it ends."""
    kind = tag & 7
    if kind == 0:
        return read_number(raw, at)
    if kind == 2:
        n, at = read_number(raw, at)
        return n, at + n
    return 0, at + (8 if kind == 1 else 4)
