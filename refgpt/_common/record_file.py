"""Results that are written as they are made: a file of JSON lines that a later run continues.

The first line describes the run. Each later line is a whole record, written at once. If a run ends early, by Ctrl-C,
``kill -9`` or a full disk, the finished records are in the file, and the next run with the same description goes on
after them. An incomplete last line is removed.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from refgpt._common.arguments import path_of
from refgpt._common.errors import DataError
from refgpt._common.partial_files import writing
from refgpt._common.small_files import parse_json
from refgpt._common.wording import difference

log = logging.getLogger("refgpt")

#: Limit on a file of results: far more than the records of the largest data set.
LARGEST = 1 << 32


class RecordFile:
    """Records of a run, in a file or only in memory. ``open_record_file`` makes one.

    Attributes
    ----------
    records : list of dict
        All records, those of earlier runs first.
    n_earlier : int
        How many of them earlier runs have written.
    """

    def __init__(self, records: list[dict[str, Any]], path: Path | None = None, descriptor: int = -1) -> None:
        self.records, self.n_earlier = records, len(records)
        self._path, self._descriptor = path, descriptor

    def add(self, record: dict[str, Any]) -> None:
        """Keep a record, and write it as a line of its own before this returns."""
        if self._path is not None:
            with writing(self._path):
                _write(self._descriptor, record)
        self.records.append(record)


@contextmanager
def open_record_file(path: str | os.PathLike[str] | None, about: Mapping[str, Any]) -> Iterator[RecordFile]:
    """Open the records of a run, to go on after those that are in the file.

    Parameters
    ----------
    path : path or None
        A file that may exist already; None keeps the records in memory only.
    about : mapping
        What distinguishes this run, as JSON. A file with another first line is refused and left as it is.

    Raises
    ------
    DataError
        If the file cannot be written, holds something else or the results of another run, or is being written by
        another process. Raised before anything is computed.
    """
    if path is None:
        yield RecordFile([])
        return
    place = Path(os.path.realpath(path_of("output", path, DataError)))
    with writing(place):
        # O_NONBLOCK: opening a pipe would wait for its reader.
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    file = None
    try:
        with writing(place):
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise DataError("cannot hold results that a later run continues", where=place, wanted="a plain file")
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        known = json.loads(json.dumps(about))
        file = RecordFile(_earlier(place, descriptor, known), place, descriptor)
        yield file
    except BaseException:
        if file is not None and file.records:
            n = len(file.records)
            log.warning("%s holds %d record%s: the same command goes on there", place, n, "s" if n > 1 else "")
        raise
    finally:
        if file is not None and not file.records:  # a description alone is no result
            place.unlink(missing_ok=True)
        with suppress(OSError):  # the reason for leaving, if there is one, is the better message
            os.fsync(descriptor)
        os.close(descriptor)


def _earlier(path: Path, descriptor: int, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The records in the file, once it is known that they are of this run. The file then ends after the last one."""
    if os.fstat(descriptor).st_size > LARGEST:
        raise DataError("is too large for a file of results", where=path, wanted=f"at most {LARGEST} bytes")
    raw = b"".join(iter(lambda: os.read(descriptor, 1 << 20), b""))
    whole = raw.rfind(b"\n") + 1
    lines = raw[:whole].splitlines()
    foreign = DataError(
        "does not hold results of this command",
        where=path,
        fix="name another file, or remove this one",
    )
    if not lines and raw and not raw.startswith(b'{"run"'):
        raise foreign
    if lines:
        try:
            first = parse_json(lines[0], f"{path}, line 1", DataError)
        except DataError:
            raise foreign from None
        if "run" not in first:
            raise foreign
        if first["run"] != about:
            raise _other_run(path, first["run"], about)
    records = [parse_json(line, f"{path}, line {i}", DataError) for i, line in enumerate(lines[1:], 2)]
    with writing(path):
        os.ftruncate(descriptor, whole)
        os.lseek(descriptor, whole, os.SEEK_SET)
        if not lines:
            _write(descriptor, {"run": about})
    return records


def _other_run(path: Path, found: Any, about: dict[str, Any]) -> DataError:
    """The error of a file that belongs to a run with other settings: names the first that differs."""
    key, got, wanted = difference(found if isinstance(found, dict) else {}, about)
    return DataError(
        f"holds the results of a run with another {key}",
        where=path,
        got=got,
        wanted=wanted,
        fix="name another file, or remove this one",
    )


def _write(descriptor: int, record: Mapping[str, Any]) -> None:
    """Write a record as one line. If that fails halfway, the incomplete part is removed."""
    raw = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")
    start, n_done = os.lseek(descriptor, 0, os.SEEK_CUR), 0
    try:
        while n_done < len(raw):
            n_done += os.write(descriptor, raw[n_done:])
    except BaseException:
        os.ftruncate(descriptor, start)
        os.lseek(descriptor, start, os.SEEK_SET)
        raise
