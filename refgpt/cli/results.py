"""Files of results: opened before anything is computed, written a line at a time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EISDIR
from pathlib import Path
from typing import IO, Any

from refgpt._common.errors import DataError


def check_suffix(path: str | None, *suffixes: str) -> str | None:
    """The kind of a file by its name, None for none; a DataError if it is none of ``suffixes``."""
    if path is not None and Path(path).suffix not in suffixes:
        raise DataError("cannot be written", where="--output", got=path, wanted=f"a name in {' or '.join(suffixes)}")
    return None if path is None else Path(path).suffix


@contextmanager
def opened(path: str | None) -> Iterator[IO[str]]:
    """A file to write to, or standard output."""
    if path is None:
        yield sys.stdout
        return
    try:
        file = open(path, "w", encoding="utf-8", newline="")  # noqa: SIM115 - closed below
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror})", where=path) from None
    with file:
        yield file


@contextmanager
def replaced(path: str) -> Iterator[IO[str]]:
    """A file to write to that takes its name when it is whole and on the disk; until then what was there stays."""
    whole = Path(os.path.realpath(path))
    beside = whole.with_name(f".{whole.name}.{os.getpid()}.partial")
    try:
        if whole.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        file = open(beside, "w", encoding="utf-8", newline="")  # noqa: SIM115 - closed below
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror})", where=path) from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(whole)
    except OSError as error:
        raise DataError(f"cannot be written ({error.strerror})", where=path) from None
    finally:
        beside.unlink(missing_ok=True)


def json_line(file: IO[str]) -> Callable[[dict[str, Any]], None]:
    """Writes records to a file, at once: one JSON object a line."""

    def write(record: dict[str, Any]) -> None:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")
        file.flush()

    return write
