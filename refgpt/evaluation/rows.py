"""Rows of a data set as its authors publish it: JSON lines, a JSON array, CSV, Parquet or plain text."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refgpt._common.arguments import path_of
from refgpt._common.errors import DataError
from refgpt._common.small_files import is_there, open_file, parse_json, read_bytes, reading
from refgpt._common.wording import listed, shown
from refgpt.evaluation.tables import LARGEST_CSV, read_csv

#: Limit on the decompressed size of a Parquet file.
LARGEST_PARQUET = 1 << 33
SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", ".txt")


@dataclass(frozen=True)
class Row:
    """One row of a data set.

    Attributes
    ----------
    place : str
        Its place in the file, for errors.
    values : mapping
        Its values by column.
    """

    place: str
    values: Mapping[str, Any]

    def text(self, *names: str) -> str:
        """The text in the first of these columns that exists; a DataError if there is none, or it is no text."""
        value = self.value(*names)
        if not isinstance(value, str):
            raise self.error(f"{shown(names[0])} is no text", value, "a text")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts in a column; in CSV it may be written as JSON."""
        value = self.value(name)
        if isinstance(value, str) and value.startswith("["):
            with suppress(ValueError):
                value = json.loads(value)
        if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
            raise self.error(f"{shown(name)} is no list of texts", value, 'a list such as ["one", "two"]')
        return value

    def number(self, name: str, least: int, most: int) -> int:
        """A whole number in a column, also where it is written as text."""
        value = self.value(name)
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 20:
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(f"{shown(name)} cannot be used", value, f"a whole number from {least} to {most}")
        return value

    def value(self, *names: str) -> Any:
        """The value in the first of these columns that exists."""
        for name in names:
            if name in self.values:
                return self.values[name]
        wanted = " or ".join(map(shown, names))
        raise self.error("lacks a column", listed(map(str, self.values)), wanted)

    def error(self, what: str, got: object, wanted: object) -> DataError:
        """An error that names the row."""
        return DataError(what, where=self.place, got=got if isinstance(got, str) else shown(got), wanted=wanted)


@dataclass(frozen=True)
class Rows:
    """A data set.

    Attributes
    ----------
    path : Path
    rows : tuple of Row
    sha256 : str
        Of the file.
    """

    path: Path
    rows: tuple[Row, ...]
    sha256: str


def read_rows(path: str | os.PathLike[str], text_column: str = "text", whole: bool = False) -> Rows:
    """Read a data set.

    Parameters
    ----------
    path : path
        The suffix says what it is: ``.jsonl`` has an object in each line, ``.json`` an array of objects, ``.csv`` the
        column names first, ``.txt`` a text in each line; ``.parquet`` needs ``pip install "refgpt[eval]"``.
    text_column : str
        The name for the column of a ``.txt`` file.
    whole : bool
        Whether a ``.txt`` file is one text instead.

    Raises
    ------
    DataError
        If the file is missing, damaged, too large or empty.
    """
    place = path_of("data", path, DataError)
    readers = {
        ".jsonl": _json_lines,
        ".ndjson": _json_lines,
        ".json": _json_array,
        ".csv": _csv,
        ".parquet": _parquet,
        ".txt": _one_text if whole else _text_lines,
    }
    reader = readers.get(place.suffix.lower())
    if reader is None:
        with open_file(place, DataError):  # that it is missing is the better message
            pass
        raise DataError("has a suffix that says nothing", where=place, wanted=f"a name in {listed(SUFFIXES)}")
    rows = reader(place, text_column)
    if not rows:
        raise DataError("has no rows", where=place)
    labels = place.with_name(f"{place.stem}-labels.lst")
    with reading(place, DataError):
        if not is_there(labels):
            return Rows(place, tuple(rows), _digest(place))
    return Rows(place, tuple(_with_labels(rows, labels)), _digest(place) + _digest(labels))


def _with_labels(rows: list[Row], path: Path) -> list[Row]:
    """Rows with a column "label" from a file beside theirs, in which PIQA was first published."""
    labels = _utf8(path).split()
    if len(labels) != len(rows):
        raise DataError(
            "has another number of labels than there are rows", where=path, got=len(labels), wanted=len(rows)
        )
    return [Row(row.place, {"label": label, **row.values}) for row, label in zip(rows, labels, strict=True)]


def _digest(path: Path) -> str:
    with reading(path, DataError), open_file(path, DataError) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _json_lines(path: Path, _: str) -> list[Row]:
    rows = []
    for number, line in enumerate(read_bytes(path, DataError, LARGEST_CSV).split(b"\n"), 1):
        if line.strip():
            place = f"{path}, line {number}"
            rows.append(Row(place, parse_json(line, place, DataError)))
    return rows


def _json_array(path: Path, _: str) -> list[Row]:
    """The objects of an array, each parsed as strictly as a line of JSON."""
    text, decoder = _utf8(path).strip(), json.JSONDecoder()
    rows: list[Row] = []
    if text[:1] != "[" or text[-1:] != "]":
        raise DataError("is no JSON array", where=path, fix="name a file of JSON lines .jsonl")
    at = _after_blanks(text, 1)
    while at < len(text) - 1:
        place = f"{path}, object {len(rows) + 1}"
        try:
            _, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            raise DataError("is not JSON", where=place) from None
        rows.append(Row(place, parse_json(text[at:end].encode(), place, DataError)))
        at = _after_blanks(text, end)
        if at < len(text) - 1 and text[at] != ",":
            raise DataError("is not JSON", where=f"{path}, after object {len(rows)}", wanted="a comma or the end")
        at = _after_blanks(text, at + 1) if at < len(text) - 1 else at
    return rows


def _after_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n":
        at += 1
    return at


def _csv(path: Path, _: str) -> list[Row]:
    table = read_csv(path)
    return [Row(table.place(i), row) for i, row in enumerate(table.rows)]


def _text_lines(path: Path, column: str) -> list[Row]:
    lines = _utf8(path).split("\n")
    return [Row(f"{path}, line {i}", {column: line.rstrip("\r")}) for i, line in enumerate(lines, 1) if line.strip()]


def _one_text(path: Path, column: str) -> list[Row]:
    return [Row(str(path), {column: _utf8(path)})]


def _utf8(path: Path) -> str:
    try:
        return read_bytes(path, DataError, LARGEST_CSV).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError("is not UTF-8 text", where=path, got=f"byte {error.start}", fix="save it in UTF-8") from None


def _parquet(path: Path, _: str) -> list[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError(
            "reading Parquet needs a package that is not installed",
            where=path,
            fix='pip install "refgpt[eval]", or give the data as JSON lines',
        ) from None
    with open_file(path, DataError) as file:
        try:
            stored = pq.ParquetFile(file)
            n_bytes = sum(stored.metadata.row_group(i).total_byte_size for i in range(stored.metadata.num_row_groups))
            if n_bytes > LARGEST_PARQUET:
                raise DataError("is too large", where=path, got=f"{n_bytes} bytes", wanted=f"at most {LARGEST_PARQUET}")
            found: Sequence[Mapping[str, Any]] = stored.read().to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError("is not a Parquet file that can be read", where=path, got=str(error)) from None
    return [Row(f"{path}, row {i}", row) for i, row in enumerate(found, 1)]
