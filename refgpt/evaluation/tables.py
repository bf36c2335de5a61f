"""Tables of texts and labels: CSV files with a header, read strictly."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from refgpt._common.arguments import path_of
from refgpt._common.errors import DataError
from refgpt._common.small_files import read_bytes
from refgpt._common.wording import listed, shown

LARGEST_CSV = 1 << 30


@dataclass(frozen=True)
class Table:
    """A table with named columns.

    Attributes
    ----------
    path : Path
        Its file.
    columns : tuple of str
    rows : tuple of dict from str to str
        Each with every column.
    lines : tuple of int
        The line of the file where each row begins, for errors.
    """

    path: Path
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    lines: tuple[int, ...]

    def column(self, name: str) -> list[str]:
        """The values of a column; a DataError if there is no such column."""
        if name not in self.columns:
            raise DataError(
                "there is no such column", where=self.path, got=shown(name), wanted=f"one of {listed(self.columns)}"
            )
        return [row[name] for row in self.rows]

    def labels(self, name: str, labels: Sequence[str]) -> list[str]:
        """The values of a column of labels; a DataError if one is none of ``labels``."""
        values = self.column(name)
        for row, value in enumerate(values):
            if value not in labels:
                raise DataError(
                    "has a label that is not among the labels",
                    where=self.place(row),
                    got=shown(value),
                    wanted=f"one of {listed(labels)}",
                )
        return values

    def place(self, row: int) -> str:
        """A row's place in the file, for errors."""
        return f"{self.path}, line {self.lines[row]}"


def read_csv(path: str | os.PathLike[str]) -> Table:
    """Read a CSV file: comma-separated, in UTF-8, its first line the names of the columns.

    Raises
    ------
    DataError
        If the file is missing, unreadable, empty, not UTF-8 or not CSV; if it has no rows, two columns of one name,
        or a row with another number of fields than the header.
    """
    path = path_of("path", path, DataError)
    raw = read_bytes(path, DataError, LARGEST_CSV)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            "is not UTF-8 text", where=path, got=f"byte {error.start}", fix="save it as CSV in UTF-8"
        ) from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows, lines, line = [], [], 1
    limit = csv.field_size_limit(LARGEST_CSV)  # of one field, for the whole process
    try:
        for fields in reader:
            if fields:  # not a blank line
                rows.append(fields)
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"is not CSV ({error})",
            where=f"{path}, line {line}",
            fix='put texts with commas, line breaks or quotes between quotes, and write a quote as ""',
        ) from None
    finally:
        csv.field_size_limit(limit)
    if len(rows) < 2:
        raise DataError("has no rows", where=path, wanted="a line of column names, and rows below it")
    columns = tuple(rows[0])
    if len(set(columns)) < len(columns):
        raise DataError("has two columns of one name", where=path, got=listed(columns), fix="rename one")
    for fields, line in zip(rows, lines, strict=True):
        if len(fields) != len(columns):
            raise DataError(
                "has another number of fields than the first line",
                where=f"{path}, line {line}",
                got=len(fields),
                wanted=len(columns),
                fix="put texts with commas between quotes",
            )
    return Table(path, columns, tuple(dict(zip(columns, fields, strict=True)) for fields in rows[1:]), tuple(lines[1:]))
