"""Where results go: the one way in which commands write files.

A file keeps what it holds until there is something whole to put in its place. Results are written beside it, under its
name with ".partial" added, and take the name when all are there and on the disk. When a run is interrupted, the lines
that it has written are kept: under the name if nothing else has it, otherwise as the partial file. A run that is killed
outright leaves its partial file. The next run with the same output writes over it, once it has something to write.

Devices, pipes and the file that standard output already is are written into.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import EACCES, EISDIR
from pathlib import Path
from typing import Any, Protocol, TextIO

from refgpt._common.arguments import path_of
from refgpt._common.errors import DataError
from refgpt._common.partial_files import lock_partial, partial_name, sync
from refgpt._common.wording import displayable

log = logging.getLogger("refgpt")


class Output(Protocol):
    """What results are written to, a whole line or more at once."""

    @property
    def path(self) -> Path | None:
        """The file that it becomes; None for a stream."""

    def write(self, text: str, /) -> object:
        """Hand it to the system at once."""


def check_suffix(path: str | None, *suffixes: str) -> str | None:
    """The kind of a file by its name, None for none; a DataError if it is none of ``suffixes``.

    A device or a pipe may have any name; it is given what the first of them means.
    """
    if path is None:
        return None
    suffix = path_of("output", path, DataError).suffix
    if suffix in suffixes:
        return suffix
    if _stream_of(path) is not None or _is_special(path):
        return suffixes[0]
    raise DataError("cannot be written", where="--output", got=path, wanted=f"a name in {' or '.join(suffixes)}")


@contextmanager
def open_output(path: str | None, inputs: Iterable[str | os.PathLike[str]] = (), keep: bool = True) -> Iterator[Output]:
    """Standard output, or a file to write to that takes its name when the block ends without an error.

    Parameters
    ----------
    path : str or None
        None is standard output.
    inputs : iterable of path
        Files that the run reads, which it must not write over.
    keep : bool
        Whether what was written before an error is of use.

    Raises
    ------
    DataError
        If it cannot be written, before anything is computed; if it is an input, or another run is writing it.
    """
    if path is None:
        yield Stream(sys.stdout)
        return
    with _errors_of(path):
        stream = _stream_of(path)
        special = os.open(path, os.O_WRONLY) if stream is None and _is_special(path) else None
    if stream is not None:
        yield Stream(stream)
    elif special is not None:
        with open(special, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield Stream(file)
    else:
        refuse_inputs(path, inputs)
        with _replacing(path, keep) as partial:
            yield partial


def refuse_inputs(path: str, inputs: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse to write over a file that is read, whatever name it is given by, or over it as a partial file."""
    whole = Path(os.path.realpath(path))
    for own in (whole, partial_name(whole)):
        for read in inputs if own.exists() else ():
            if os.path.exists(read) and os.path.samefile(own, read):
                raise DataError("is the file that is read", where="--output", got=path, fix="write to another")


def files_read(place: str | os.PathLike[str], output: str | None) -> list[Path]:
    """What a run may read of a directory, or of a file and those beside it, but for results of earlier runs.

    Results are told by their names, which end as that of ``output``.
    """
    if output is None or not os.path.exists(place):  # nothing is written, or the place is on the hub
        return []
    place = Path(place)
    patterns, top = (("*", "*/*"), place) if place.is_dir() else (("*",), place.parent)
    found = [file for pattern in patterns for file in top.glob(pattern) if file.suffix != Path(output).suffix]
    return [place, *found]


def json_line(output: Output) -> Callable[[dict[str, Any]], None]:
    """Writes records, at once: one JSON object a line."""

    def write(record: dict[str, Any]) -> None:
        output.write(json.dumps(record, ensure_ascii=False) + "\n")

    return write


class Stream:
    """Standard output, a device or a pipe. A terminal gets nothing that it would obey."""

    path: Path | None = None

    def __init__(self, file: TextIO) -> None:
        self.file, self.is_terminal = file, file.isatty()

    def write(self, text: str, /) -> None:
        """Hand it on at once."""
        self.file.write(displayable(text) if self.is_terminal else text)
        self.file.flush()


class PartialFile:
    """A file that is not whole yet. What was there under its own name stays until the first text is written."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path: Path | None = path
        self._descriptor, self.n_bytes, self.n_texts = descriptor, 0, 0

    def write(self, text: str, /) -> None:
        """Write all of a text, or as good as nothing of it: ``end`` cuts off what has no end."""
        raw = memoryview(text.encode("utf-8", "backslashreplace"))
        if not self.n_texts:
            self.end()
        n_done = 0
        with _errors_of(self.path or ""):
            while n_done < len(raw):
                n_done += os.write(self._descriptor, raw[n_done:])
        self.n_bytes += len(raw)
        self.n_texts += 1

    def end(self) -> None:
        """Leave nothing but whole texts, on the disk."""
        os.ftruncate(self._descriptor, self.n_bytes)
        os.lseek(self._descriptor, self.n_bytes, os.SEEK_SET)
        os.fsync(self._descriptor)


@contextmanager
def _replacing(path: str, keep: bool) -> Iterator[PartialFile]:
    """A file beside another, which takes its name at the end."""
    whole = Path(os.path.realpath(path))
    partial = partial_name(whole)
    with _errors_of(path):
        if whole.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        if whole.exists() and not os.access(whole, os.W_OK):
            raise PermissionError(EACCES, os.strerror(EACCES))
        lock = lock_partial(partial)
    output = PartialFile(whole, lock)
    try:
        status = os.fstat(lock)
        if not stat.S_ISREG(status.st_mode):
            raise DataError("is in the way", where=partial, fix="remove it, or name another file")
        if whole.exists():
            os.fchmod(lock, stat.S_IMODE(whole.stat().st_mode))
        try:
            yield output
            with _errors_of(path):
                output.end()
                partial.replace(whole)
                sync(whole.parent)
        except BaseException:
            if keep and output.n_texts:
                output.end()
                kept = partial if whole.exists() else partial.rename(whole)
                log.warning("%s has the %d lines that were written before this ended", kept, output.n_texts)
            elif output.n_texts or status.st_size == 0:  # what a killed run left is not thrown away for nothing
                partial.unlink(missing_ok=True)
            raise
    finally:
        os.close(lock)


@contextmanager
def _errors_of(path: str | Path) -> Iterator[None]:
    """What the system says of a file becomes an error that names it."""
    try:
        yield
    except BlockingIOError:
        raise DataError("another run is writing it", where=path, fix="wait for it, or name another file") from None
    except OSError as error:
        if error.errno is None:  # raised by a signal's handler: none of ours
            raise
        raise DataError(f"cannot be written ({error.strerror})", where=path) from None


def _is_special(path: str) -> bool:
    """Whether something is there that is neither a plain file nor a directory."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _stream_of(path: str) -> TextIO | None:
    """The standard stream that has this very file, if one has."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and os.path.samestat(os.stat(path), os.fstat(stream.fileno())):
                return stream
        except (OSError, ValueError):  # nothing is there; or a stream that is no file, as in a notebook
            pass
    return None
