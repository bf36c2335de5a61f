"""Files of prompts, a request a line: JSON lines, CSV with a header, or plain text.

A line that cannot be read does not stop the others: it is returned with an error in place of its content.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from refgpt._common.arguments import one_of
from refgpt._common.errors import DataError, RefgptError
from refgpt._common.small_files import open_file, parse_json, reading
from refgpt._common.wording import listed, shown
from refgpt.generation.openai import FIELDS, RENAMED

#: The formats of files of prompts, and their suffixes.
SUFFIXES = {"jsonl": (".jsonl", ".ndjson"), "csv": (".csv",), "text": (".txt",)}
#: Parameters whose cells in a table are texts, not JSON.
TEXTS = ("stop", "regex", "grammar", "adapter")
#: Most bytes of a line: hundreds of times more than the longest context needs.
LONGEST_LINE = 1 << 24
PIECE = 1 << 20


@dataclass(frozen=True)
class Line:
    """A request as a file has it.

    Attributes
    ----------
    number : int
        The line of the file on which it begins, from 1.
    content : dict
        Its fields; empty where it cannot be read.
    error : RefgptError or None
        Why it cannot be read.
    """

    number: int
    content: dict[str, Any]
    error: RefgptError | None = None


class Lines:
    """The requests of a file, read one by one as often as wanted.

    Parameters
    ----------
    path : Path
    kind : "jsonl", "csv", "text" or None
        None: as the suffix of its name says.
    prompt_column : str
        The column of a CSV file that has the prompts.

    Attributes
    ----------
    kind, prompt_column : str
    sha256 : str
        Of the whole file.
    n_lines : int
        The number of requests, including those that cannot be read.

    Raises
    ------
    DataError
        If the file is missing, is no plain file, has no request, or is CSV without the column.
    """

    def __init__(self, path: Path, kind: str | None = None, prompt_column: str = "prompt") -> None:
        self.path, self.prompt_column = path, prompt_column
        self.kind = kind_of(path) if kind is None else kind
        one_of("format", self.kind, tuple(SUFFIXES), DataError)
        with self._open() as file:
            self._found = os.fstat(file.fileno())
            hashed = hashlib.sha256()
            while piece := file.read(PIECE):
                hashed.update(piece)
        self.sha256 = hashed.hexdigest()
        self.n_lines = sum(1 for _ in self)
        if not self.n_lines:
            raise DataError("there are no requests", where=path, wanted="one a line")

    def __iter__(self) -> Iterator[Line]:
        """Read the requests, in the order of the file."""
        with self._open() as file:
            if self.kind == "csv":
                yield from self._rows(file)
            else:
                for number, raw in raw_lines(file):
                    line = self._line(number, raw)
                    if line is not None:
                        yield line
            self.check_unchanged(file)

    def check_unchanged(self, file: BinaryIO) -> None:
        """Refuse a file that has been written to since it was opened first."""
        now = os.fstat(file.fileno())
        if (now.st_size, now.st_mtime_ns) != (self._found.st_size, self._found.st_mtime_ns):
            raise DataError("the file was changed while it was read", where=self.path, fix="run it again")

    def _open(self) -> BinaryIO:
        return open_file(self.path, DataError)

    def _line(self, number: int, raw: bytes | None) -> Line | None:
        """A line of JSON or text; None if it is blank."""
        where = f"line {number}"
        if raw is None:
            return Line(number, {}, _too_long(where))
        if number == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if not raw.strip():
            return None
        if self.kind == "text":
            try:
                return Line(number, {"prompt": raw.rstrip(b"\r\n").decode()})
            except UnicodeDecodeError as fault:
                return Line(number, {}, _no_utf8(where, fault.start))
        try:
            return Line(number, parse_json(raw, where, DataError))
        except DataError as fault:  # without the advice to fetch the file again
            return Line(number, {}, DataError(fault.what, where=where, got=fault.got, wanted=fault.wanted))

    def _rows(self, file: BinaryIO) -> Iterator[Line]:
        """The rows of a CSV file."""
        # A line that is too long comes as a NUL, which no row may have; bytes that are no UTF-8 as lone surrogates.
        decoded = ("\0\n" if raw is None else _text(number, raw) for number, raw in raw_lines(file))
        rows = _csv_rows(decoded)
        _, header, error = next(rows, (1, [], None))
        if error is not None:
            raise DataError(error.what, where=f"{self.path}, line 1", got=error.got, fix=error.fix)
        if len(set(header)) < len(header):
            raise DataError("has two columns of one name", where=self.path, got=listed(header), fix="rename one")
        if self.prompt_column not in header:
            raise DataError(
                "there is no such column",
                where=self.path,
                got=shown(self.prompt_column),
                wanted=f"one of {listed(header)}" if header else "a line of column names",
                fix="name the one that has the prompts: prompt_column (--prompt-column)",
            )
        for number, fields, error in rows:
            if error is not None:
                yield Line(number, {}, error)
            elif len(fields) != len(header):
                what = "has another number of fields than the first line"
                yield Line(number, {}, DataError(what, where=f"line {number}", got=len(fields), wanted=len(header)))
            else:
                yield Line(number, self._content(dict(zip(header, fields, strict=True))))

    def _content(self, row: dict[str, str]) -> dict[str, Any]:
        """A row as a request. Columns other than the prompt, the id and parameters are copied to the record."""
        content: dict[str, Any] = {"prompt": row.pop(self.prompt_column)}
        others = {}
        for name, text in row.items():
            if name == "id":
                content["id"] = text
            elif name in FIELDS or name in RENAMED:
                content[name] = None if not text else text if name in TEXTS else _value(text)
            else:
                others[name] = text
        return content | ({"metadata": others} if others else {})


def kind_of(path: Path) -> str:
    """The format of a file of prompts, from its suffix.

    Raises
    ------
    DataError
        If the suffix does not say.
    """
    for kind, suffixes in SUFFIXES.items():
        if path.suffix.lower() in suffixes:
            return kind
    raise DataError(
        "the name does not say what the file is",
        where=path,
        wanted=f"a name in {listed(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)}",
        fix="give kind='jsonl' (--format jsonl), or csv or text",
    )


def raw_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """The lines of a file with their numbers, from 1; None in place of one that is too long, which is not kept."""
    number = 0
    with reading(getattr(file, "name", "the file"), DataError):
        while raw := file.readline(LONGEST_LINE + 1):
            number += 1
            if len(raw) <= LONGEST_LINE:
                yield number, raw
                continue
            while raw and not raw.endswith(b"\n"):
                raw = file.readline(PIECE)
            yield number, None


def _text(number: int, raw: bytes) -> str:
    """A line of CSV; bytes that are no UTF-8 become lone surrogates."""
    return (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).decode("utf-8", "surrogateescape")


def _csv_rows(lines: Iterable[str]) -> Iterator[tuple[int, list[str], RefgptError | None]]:
    """Line, fields and error of each row that is not blank."""
    reader = csv.reader(lines, strict=True)
    while True:
        number = reader.line_num + 1
        where = f"line {number}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            fix = 'put texts with commas, line breaks or quotes between quotes, and write a quote as ""'
            yield number, [], DataError(f"is not CSV ({fault})", where=where, fix=fix)
            continue
        if not fields:
            continue
        error: RefgptError | None = None
        if any("\0" in field for field in fields):
            error = _too_long(where)
        elif any("\udc80" <= character <= "\udcff" for field in fields for character in field):
            error = _no_utf8(where)
        yield number, [] if error else fields, error


def _value(text: str) -> Any:
    """A cell of a parameter's column: a number, a list and so on as in JSON, and otherwise the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _too_long(where: str) -> DataError:
    return DataError("is too long, or holds a NUL", where=where, wanted=f"at most {LONGEST_LINE} bytes")


def _no_utf8(where: str, byte: int | None = None) -> DataError:
    return DataError("is not UTF-8 text", where=where, got=None if byte is None else f"byte {byte}")
