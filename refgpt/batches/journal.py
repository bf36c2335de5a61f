"""The records of an unfinished batch, stored so that a run can resume after an interruption at any byte.

Beside the output, under its name plus ".partial", lies a journal. Its first line identifies the requests, model and
settings. Each further line is the number of a request, a tab, and its record. A line counts when it is complete,
so a killed process loses at most the line that it was writing. At the end the records are written to the
output in one piece, under another name first, and the journal is removed: whenever a run is killed, the next one
finds either the journal or the complete output.
"""

from __future__ import annotations

import csv
import json
import os
import stat
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from errno import EACCES, EISDIR
from pathlib import Path
from time import monotonic
from typing import Any, TextIO

from refgpt._common.errors import DataError
from refgpt._common.partial_files import lock_partial, partial_name, sync, writing
from refgpt._common.wording import listed
from refgpt.batches.running import Record

VERSION = 1
MAGIC = b'{"refgpt_batch": '
#: Formats of the output: JSON lines, or a table.
SUFFIXES = (".jsonl", ".csv")
#: Seconds between calls of fsync.
SYNCED_EVERY = 2.0
#: Columns of a table, before those that a request has brought along.
COLUMNS = ("id", "text", "finish_reason", "n_prompt", "n_new", "error")


class Journal:
    """The records of a batch on disk. Use it as a context manager: it keeps the output locked.

    Parameters
    ----------
    output : str or path
        The file that is written at the end. Its suffix, .jsonl or .csv, says how.
    n_requests : int
        How many there are.

    Attributes
    ----------
    n_done, n_errors : int
        How many requests have a record, and how many of these records are errors.
    earlier : dict or None
        What an earlier run gave to ``begin``, if there was one.

    Raises
    ------
    DataError
        If the file cannot be written, another run is writing it, or the file at the journal's path is not a journal.
    """

    def __init__(self, output: str | os.PathLike[str], n_requests: int) -> None:
        self.output = Path(os.path.realpath(output))
        self.path = partial_name(self.output)
        self._starts = array("q", [-1]) * n_requests  # the offset of each request's line
        self._sizes = array("q", [0]) * n_requests
        self.n_done = self.n_errors = 0
        self._end, self._last_sync = 0, 0.0
        with writing(output):
            if self.output.is_dir():
                raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
            if self.output.exists() and not os.access(self.output, os.W_OK):
                raise PermissionError(EACCES, os.strerror(EACCES))
            self._descriptor = lock_partial(self.path)
        try:
            if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
                raise DataError("is in the way", where=self.path, fix="remove it, or name another file")
            self.earlier = self._read_header()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        """Release the lock. A journal without records is removed; records of an earlier run are kept."""
        try:
            with writing(self.output):
                if not self.n_done and self.earlier is None:
                    self.path.unlink(missing_ok=True)
                elif self._end:
                    os.ftruncate(self._descriptor, self._end)
                    os.fsync(self._descriptor)
        finally:
            os.close(self._descriptor)

    def begin(self, identity: Mapping[str, Any], restart: bool = False) -> None:
        """Resume from the records of an earlier run, or start a new journal if there are none.

        Parameters
        ----------
        identity : mapping
            What the records depend on, as JSON.
        restart : bool
            Begin anew in any case.

        Raises
        ------
        DataError
            If the earlier run had another identity, and ``restart`` is False.
        """
        header = json.loads(json.dumps({"refgpt_batch": VERSION, **identity}))
        if self.earlier is not None and not restart:
            differing = [name for name in {**self.earlier, **header} if self.earlier.get(name) != header.get(name)]
            if differing:
                raise DataError(
                    "has the answers of an earlier run with other prompts, options or another model",
                    where=self.path,
                    got=f"another {listed(differing)}",
                    fix="run with the former file and options, or give restart=True (--restart) to begin anew",
                )
            self._read_records()
            return
        self.earlier = None
        os.ftruncate(self._descriptor, 0)
        self._end = 0
        self._append(json.dumps(header).encode() + b"\n")

    def is_done(self, index: int) -> bool:
        """Whether a request has a record."""
        return self._starts[index] >= 0

    def write(self, record: Record) -> None:
        """Write a record. The operating system has it when this returns; it is on the disk within some seconds."""
        line = _line_of(record)
        self._append(line)
        self._note(record.index, len(line), record.is_error)
        if monotonic() > self._last_sync + SYNCED_EVERY:
            os.fsync(self._descriptor)
            self._last_sync = monotonic()

    def finish(self, in_order: bool = True) -> None:
        """Write the output, now that there are all records, and remove the journal.

        Parameters
        ----------
        in_order : bool
            Whether to write records in the order of the requests, or in order of completion.
        """
        assert self.n_done == len(self._starts)
        order = range(self.n_done) if in_order else sorted(range(self.n_done), key=self._starts.__getitem__)
        whole = partial_name(self.output, hidden=True)
        with writing(self.output):
            os.fsync(self._descriptor)
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            try:
                with open(os.open(whole, flags, 0o666), "w", encoding="utf-8", newline="") as file:
                    if self.output.exists():
                        os.fchmod(file.fileno(), stat.S_IMODE(self.output.stat().st_mode))
                    if self.output.suffix == ".csv":
                        write_table(file, lambda: map(self._line_of, order))
                    else:
                        file.writelines(map(self._line_of, order))
                    file.flush()
                    os.fsync(file.fileno())
                whole.replace(self.output)
            except BaseException:
                whole.unlink(missing_ok=True)
                raise
            sync(self.output.parent)
            self.path.unlink()

    def _line_of(self, index: int) -> str:
        """The record of a request, as a line of JSON."""
        return os.pread(self._descriptor, self._sizes[index], self._starts[index]).partition(b"\t")[2].decode()

    def _note(self, index: int, n_bytes: int, is_error: bool) -> None:
        """Note that the last line, of this many bytes, belongs to this request."""
        self._starts[index], self._sizes[index] = self._end - n_bytes, n_bytes
        self.n_done += 1
        self.n_errors += is_error

    def _append(self, raw: bytes) -> None:
        """Write a whole line at the end."""
        n_written = 0
        with writing(self.output):
            while n_written < len(raw):
                n_written += os.pwrite(self._descriptor, raw[n_written:], self._end + n_written)
        self._end += len(raw)

    def _lines(self, start: int) -> Iterator[tuple[int, bytes]]:
        """The whole lines from some byte on, each with where it begins."""
        rest, at = b"", start
        while piece := os.pread(self._descriptor, 1 << 16, at + len(rest)):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield at, line + b"\n"
                at += len(line) + 1

    def _read_header(self) -> dict[str, Any] | None:
        """The identity of the earlier run; None if there is none, or it wrote no record."""
        begun = os.pread(self._descriptor, len(MAGIC), 0)
        if begun != MAGIC[: len(begun)]:
            raise DataError(
                "is in the way: it is not of an earlier run of this command",
                where=self.path,
                fix="remove it, or name another file",
            )
        _, line = next(self._lines(0), (0, b""))
        try:
            found = json.loads(line)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None

    def _read_records(self) -> None:
        """Find the records of the earlier run. Everything from the first incomplete line on is ignored."""
        lines = self._lines(0)
        start, header = next(lines)
        self._end = start + len(header)
        for start, line in lines:
            number, tab, raw = line.partition(b"\t")
            try:
                index, record = int(number), json.loads(raw)
            except ValueError:
                break
            if not tab or not 0 <= index < len(self._starts) or self.is_done(index) or not isinstance(record, dict):
                break
            self._end = start + len(line)
            self._note(index, len(line), is_error_record(record))
        os.ftruncate(self._descriptor, self._end)


def is_error_record(record: Mapping[str, Any]) -> bool:
    """Whether a record is an error."""
    response = record.get("response")
    refused = isinstance(response, dict) and response.get("status_code") != 200
    return refused or record.get("error") is not None


def _line_of(record: Record) -> bytes:
    text = json.dumps(record.content, ensure_ascii=False)
    return f"{record.index}\t{text}\n".encode("utf-8", "backslashreplace")


def write_table(file: TextIO, lines: Callable[[], Iterable[str]]) -> None:
    """Write records as CSV, a row for each text; what requests have brought along has columns of its own."""
    brought: dict[str, None] = {}
    for line in lines():
        brought |= dict.fromkeys(_metadata(json.loads(line)))
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow([*COLUMNS, *(f"metadata.{name}" if name in COLUMNS else name for name in brought)])
    for line in lines():
        record = json.loads(line)
        for cells in _cells(record):
            rows.writerow([*(cells.get(name) for name in COLUMNS), *(_metadata(record).get(name) for name in brought)])


def _metadata(record: Mapping[str, Any]) -> Mapping[str, Any]:
    found = record.get("metadata")
    return found if isinstance(found, dict) else {}


def _cells(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The rows of a record: one for each of its texts, or for its error."""
    if "custom_id" not in record:
        for choice in record.get("choices", [{}]):
            yield record | choice
        return
    body = (record["response"] or {}).get("body") or {}
    error = body.get("error") or record["error"]
    for choice in body.get("choices", [{}]):
        text = choice.get("message", {}).get("content", choice.get("text"))
        yield {"id": record["custom_id"], "error": error and error["message"], **choice, "text": text}
