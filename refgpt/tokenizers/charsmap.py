"""Checks of the texts that a sentencepiece model inserts, made before the library reads the model.

A normalizer's table can replace one letter by megabytes, and so can the mark of unknown pieces. A model is a serialised
protocol buffer; only the few fields with such texts are read here.
"""

from __future__ import annotations

from collections.abc import Iterator

#: Longest allowed text, in bytes. Unicode's longest normal form has 33 (for U+FDFA); the usual unknown mark has 5.
LONGEST = 256
#: Field numbers of ``sentencepiece_model.proto``: of the model, and of its parts.
TRAINER, NORMALIZER, DENORMALIZER = 2, 3, 5
CHARSMAP, UNKNOWN_SURFACE = 2, 44


def check_texts(model: bytes) -> None:
    """Refuse a model whose tables hold absurdly long texts.

    Raises
    ------
    ValueError
        If a text is too long, or a field has a form that no real model uses.
    """
    for number, content in _fields(model):
        for inner, raw in _fields(content) if number in (TRAINER, NORMALIZER, DENORMALIZER) else ():
            if number == TRAINER and inner == UNKNOWN_SURFACE:
                longest = len(raw)
            elif number != TRAINER and inner == CHARSMAP:
                longest = max(map(len, raw[4 + int.from_bytes(raw[:4], "little") :].split(b"\0")))
            else:
                continue
            if longest > LONGEST:
                raise ValueError(f"it would put {longest} bytes into a text for one letter; at most {LONGEST} are read")


def _fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the fields that have a length. Stops at damage, which the library will report."""
    at = 0
    while at < len(raw):
        tag, at = read_number(raw, at)
        kind = tag & 7
        if kind == 0:
            _, at = read_number(raw, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            n, at = read_number(raw, at)
            yield tag >> 3, raw[at : at + n]
            at += n
        else:
            raise ValueError("a field of its description has a form that no model has")


def read_number(raw: bytes, at: int) -> tuple[int, int]:
    """Decode a number of a few bytes, seven bits each. Also returns where it ends."""
    value = shift = 0
    while at < len(raw) and shift < 70:
        value |= (raw[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if raw[at - 1] < 128:
            break
    return value & (1 << 64) - 1, at
