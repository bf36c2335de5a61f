"""JSON that is parsed in pieces, so that other threads run between them.

``json.loads`` holds the interpreter's lock until it has parsed everything: 0.1 s for 4 MiB, in which all streams wait.
Here Python code finds pieces of a container's members, and each piece is parsed by ``json`` itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

#: Characters of a piece. A single text is parsed at once, however long it is.
PIECE = 1 << 14
#: Most lists and objects in a large body. Python's garbage collector visits them all again and again, without a break.
MOST_CONTAINERS = 1 << 16
#: Most lists and objects inside each other, in bodies of every size. A level of a large body takes four nested Python
#: calls, and Python allows about 1000.
MOST_DEEP = 128

_SPACE = re.compile(r"[ \t\n\r]*")
_STRING = r'"[^"\\]*"'
_PLAIN = r'[^"\[\]{},]*'
_CONTAINER = rf'[\[{{][^"\[\]{{}}]*(?:{_STRING}[^"\[\]{{}}]*)*[\]}}]'
#: Whole members with the comma after each: texts, numbers, and containers of these. Only ``json`` finds out whether
#: they are well-formed. No two parts of the pattern match the same character in one place, so its time is linear.
_MEMBER = rf"{_PLAIN}(?:{_STRING}{_PLAIN})*(?:{_CONTAINER}{_PLAIN})?,"
_MEMBERS = re.compile(rf'(?!,)(?:[^"\[\]{{}}]*,|(?:{_MEMBER})+)')


def loads(text: str, parse_constant: Callable[[str], Any]) -> Any:
    """``json.loads`` in pieces; the same values, and ValueErrors where that has some.

    Raises
    ------
    ValueError
        If it is not JSON, if it is nested deeper than ``MOST_DEEP``, or if a large text has more than
        ``MOST_CONTAINERS`` lists and objects.
    """
    if len(text) <= PIECE:
        try:
            value = json.loads(text, parse_constant=parse_constant)
        except RecursionError:
            raise _too_deep() from None
        _check_depth(value)
        return value
    decoder = json.JSONDecoder(parse_constant=parse_constant)
    value, end = _Pieces(text, decoder).value(_SPACE.match(text).end())  # type: ignore[union-attr]
    if (end := _SPACE.match(text, end).end()) != len(text):  # type: ignore[union-attr]
        raise json.JSONDecodeError("Extra data", text, end)
    return value


def _check_depth(value: Any) -> None:
    """Refuse a value that is nested too deeply."""
    level = [value]
    for _ in range(MOST_DEEP):
        level = [
            inner
            for outer in level
            if isinstance(outer, list | dict)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, list | dict)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"more than {MOST_DEEP} lists and objects inside each other")


class _Pieces:
    """One text, while it is parsed. Methods take a place in it, and return a value and the place after it."""

    def __init__(self, text: str, decoder: json.JSONDecoder) -> None:
        self._text, self._decoder = text, decoder
        self._n_containers = self._depth = 0  # of those that have begun, and of those that have not ended

    def value(self, at: int) -> tuple[Any, int]:
        """The value that begins here."""
        begin = self._text[at : at + 1]
        if begin == "[":
            items: list[Any] = []
            return items, self._members(at, "]", items.extend, lambda at: self._item(at, items))
        if begin == "{":
            fields: dict[str, Any] = {}
            return fields, self._members(at, "}", fields.update, lambda at: self._field(at, fields))
        return self._decoder.raw_decode(self._text, at)

    def _members(self, at: int, close: str, add: Callable[[Any], None], one: Callable[[int], int]) -> int:
        """Add the members of the container that begins here, pieces of them where that is possible."""
        begin = self._text[at]
        self._count(1)
        self._depth += 1
        at = self._after_space(at + 1)
        if self._text.startswith(close, at):
            self._depth -= 1
            return at + 1
        while True:
            if found := _MEMBERS.match(self._text, at, at + PIECE):
                piece = begin + found[0][:-1] + close
                add(self._whole(piece, at))
                at = self._after_space(found.end())
            at = self._after_space(one(at))
            if self._text.startswith(close, at):
                self._depth -= 1
                return at + 1
            if not self._text.startswith(",", at):
                raise json.JSONDecodeError("Expecting ',' delimiter", self._text, at)
            at = self._after_space(at + 1)

    def _whole(self, piece: str, at: int) -> Any:
        """The value of a piece, which is all of it. ``at`` is where its members begin in the text."""
        try:
            value, end = self._decoder.raw_decode(piece)
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, self._text, at + error.pos - 1) from None
        if end != len(piece):
            raise json.JSONDecodeError("Extra data", self._text, at + end - 1)
        if "[" in piece[1:] or "{" in piece[1:]:  # perhaps only in its texts
            members = value if isinstance(value, list) else value.values()
            self._count(sum(isinstance(one, list | dict) for one in members))
        return value

    def _count(self, n: int) -> None:
        """``n`` containers begin, all in the one that has begun last."""
        if n and self._depth == MOST_DEEP:
            raise _too_deep()
        self._n_containers += n
        if self._n_containers > MOST_CONTAINERS:
            raise ValueError(f"more than {MOST_CONTAINERS} lists and objects")

    def _item(self, at: int, items: list[Any]) -> int:
        value, at = self.value(at)
        items.append(value)
        return at

    def _field(self, at: int, fields: dict[str, Any]) -> int:
        if not self._text.startswith('"', at):
            raise json.JSONDecodeError("Expecting property name enclosed in double quotes", self._text, at)
        name, at = self._decoder.raw_decode(self._text, at)
        at = self._after_space(at)
        if not self._text.startswith(":", at):
            raise json.JSONDecodeError("Expecting ':' delimiter", self._text, at)
        fields[name], at = self.value(self._after_space(at + 1))
        return at

    def _after_space(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        assert found is not None  # it matches nothing too
        return found.end()
