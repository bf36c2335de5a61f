"""The texts that a sentencepiece model puts into others, checked before the library sees the model.

A normalizer's table may write megabytes for one letter, and so may the mark of an unknown piece. A model is a
serialised protocol buffer; only the few fields that hold such texts are read here.
"""

from __future__ import annotations

from collections.abc import Iterator

#: In bytes. The longest of Unicode's normal forms has 33 (of U+FDFA); the usual mark of the unknown has 5.
LONGEST = 256
#: Fields of ``sentencepiece_model.proto``: of a model, and within.
TRAINER, NORMALIZER, DENORMALIZER = 2, 3, 5
CHARSMAP, UNKNOWN_SURFACE = 2, 44


def check_texts(model: bytes) -> None:
    """Refuse a model whose tables hold absurdly long texts.

    Raises
    ------
    ValueError
        If one is too long, or the model has a form of field that no model has.
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
    """Numbers and contents of the fields that have a length; it ends where the library will find damage."""
    at = 0
    while at < len(raw):
        tag, at = _number(raw, at)
        kind = tag & 7
        if kind == 0:
            _, at = _number(raw, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            n, at = _number(raw, at)
            yield tag >> 3, raw[at : at + n]
            at += n
        else:
            raise ValueError("a field of its description has a form that no model has")


def _number(raw: bytes, at: int) -> tuple[int, int]:
    """A number of a few bytes, seven bits each, and where it ends."""
    value = shift = 0
    while at < len(raw) and shift < 70:
        value |= (raw[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if raw[at - 1] < 128:
            break
    return value & (1 << 64) - 1, at
