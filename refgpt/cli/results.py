"""Writing results: all commands write their files through this module.

An existing file keeps its contents until the new results are complete. Results are written beside it, under its name
plus ".partial", and renamed when all of them are on the disk. If a run is interrupted, the finished lines are kept:
under the final name if no file has it, otherwise in the partial file. A run that is killed leaves its partial file. The
next run with the same output overwrites it, once it has results to write. Devices, pipes and the file that standard
output is redirected to are written to directly.
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
from refgpt._common.partial_files import lock_partial, partial_name, sync, writing
from refgpt._common.wording import displayable

log = logging.getLogger("refgpt")


class Output(Protocol):
    """A destination for results. Each write is one or more whole lines."""

    @property
    def path(self) -> Path | None:
        """The path of the finished file; None for a stream."""

    def write(self, text: str, /) -> object:
        """Write the text without buffering it."""


def check_suffix(path: str | None, *suffixes: str) -> str | None:
    """The suffix of a file's name, None without a path. Raises a DataError if it is not in ``suffixes``.

    A device or a pipe may have any name; the first suffix then decides the format.
    """
    if path is None:
        return None
    suffix = path_of("output", path, DataError).suffix
    if suffix in suffixes:
        return suffix
    if is_stream(path):
        return suffixes[0]
    raise DataError("cannot be written", where="--output", got=path, wanted=f"a name in {' or '.join(suffixes)}")


@contextmanager
def open_output(path: str | None, inputs: Iterable[str | os.PathLike[str]] = (), keep: bool = True) -> Iterator[Output]:
    """Open standard output, or a file that gets its name when the block ends without an error.

    Parameters
    ----------
    path : str or None
        None is standard output.
    inputs : iterable of path
        Files that the run reads; it must not overwrite them.
    keep : bool
        Whether to keep the lines written before an error.

    Raises
    ------
    DataError
        If the file cannot be written, is an input, or is being written by another run. Raised before anything is
        computed.
    """
    if path is None:
        yield Stream(sys.stdout)
        return
    with writing(path):
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
    """Refuse an output that is also an input, under any name, or whose partial file is an input."""
    whole = Path(os.path.realpath(path))
    for own in (whole, partial_name(whole)):
        for read in inputs if own.exists() else ():
            if os.path.exists(read) and os.path.samefile(own, read):
                raise DataError("is also an input of this run", where="--output", got=path, fix="write to another")


def files_read(place: str | os.PathLike[str], output: str | None) -> list[Path]:
    """The files that a run may read: those in a directory, or a file and those beside it, except earlier results.

    Earlier results are recognised by the suffix of ``output``.
    """
    if output is None or not os.path.exists(place):  # no output, or the model is on the hub
        return []
    place = Path(place)
    patterns, top = (("*", "*/*"), place) if place.is_dir() else (("*",), place.parent)
    found = [file for pattern in patterns for file in top.glob(pattern) if file.suffix != Path(output).suffix]
    return [place, *found]


def json_line(output: Output) -> Callable[[dict[str, Any]], None]:
    """Return a function that writes each record as one line of JSON."""

    def write(record: dict[str, Any]) -> None:
        output.write(json.dumps(record, ensure_ascii=False) + "\n")

    return write


class Stream:
    """Standard output, a device or a pipe. Control characters are escaped on a terminal."""

    path: Path | None = None

    def __init__(self, file: TextIO) -> None:
        self.file, self.is_terminal = file, file.isatty()

    def write(self, text: str, /) -> None:
        """Write and flush the text."""
        self.file.write(displayable(text) if self.is_terminal else text)
        self.file.flush()


class PartialFile:
    """An unfinished file. An earlier partial file is kept until the first text is written."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path: Path | None = path
        self._descriptor, self.n_bytes, self.n_texts = descriptor, 0, 0

    def write(self, text: str, /) -> None:
        """Write a whole text. If that fails halfway, ``end`` cuts off the incomplete part."""
        raw = memoryview(text.encode("utf-8", "backslashreplace"))
        if not self.n_texts:
            self.end()
        n_done = 0
        with writing(self.path or ""):
            while n_done < len(raw):
                n_done += os.write(self._descriptor, raw[n_done:])
        self.n_bytes += len(raw)
        self.n_texts += 1

    def end(self) -> None:
        """Cut off an incomplete text, and wait until the rest is on the disk."""
        os.ftruncate(self._descriptor, self.n_bytes)
        os.lseek(self._descriptor, self.n_bytes, os.SEEK_SET)
        os.fsync(self._descriptor)


@contextmanager
def _replacing(path: str, keep: bool) -> Iterator[PartialFile]:
    """Write a partial file, and rename it to ``path`` at the end."""
    whole = Path(os.path.realpath(path))
    partial = partial_name(whole)
    with writing(path):
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
            with writing(path):
                output.end()
                partial.replace(whole)
                sync(whole.parent)
        except BaseException:
            if keep and output.n_texts:
                output.end()
                kept = partial if whole.exists() else partial.rename(whole)
                log.warning("%s has the %d lines that were written before this ended", kept, output.n_texts)
            elif (
                output.n_texts or status.st_size == 0
            ):  # keep the partial file of a killed run if this run wrote nothing
                partial.unlink(missing_ok=True)
            raise
    finally:
        os.close(lock)


def is_stream(path: str) -> bool:
    """Whether a path is written to directly: a device, a pipe, or the file that standard output is redirected to."""
    return _stream_of(path) is not None or _is_special(path)


def _is_special(path: str) -> bool:
    """Whether the path exists and is neither a plain file nor a directory."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def _stream_of(path: str) -> TextIO | None:
    """The standard stream that is open on this same file, if any."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None and os.path.samestat(os.stat(path), os.fstat(stream.fileno())):
                return stream
        except (OSError, ValueError):  # the path does not exist, or the stream is not a file, as in a notebook
            pass
    return None
