"""Files and directories that get their final names when they are complete.

Output is first written beside its destination under a name that ends in ".partial", and renamed at the end. Each
destination has one such name, so that the remains of killed processes do not accumulate: the next process with the same
destination takes over the name. A lock shows whether a process is still writing; the system releases it when that
process ends.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from refgpt._common.errors import DataError

#: Longest name on most file systems in bytes, less the suffix.
LONGEST_NAME = 255 - len("..partial")


def partial_name(destination: Path, hidden: bool = False) -> Path:
    """The name beside the destination that is used until the output is complete."""
    name = os.fsdecode(os.fsencode(destination.name)[:LONGEST_NAME])
    return destination.with_name(f"{'.' if hidden else ''}{name}.partial")


def lock_partial(partial: Path, directory: bool = False) -> int:
    """Create a file or a directory if it does not exist, and lock it.

    Returns
    -------
    int
        The descriptor that holds the lock. Close it after renaming. A file's descriptor is open for writing.

    Raises
    ------
    BlockingIOError
        If another process holds the lock.
    OSError
        If it cannot be created, or something else has its name.
    """
    while True:
        if directory:
            partial.mkdir(exist_ok=True)
            lock = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        else:
            lock = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if partial.exists() and os.path.samestat(os.stat(partial), os.fstat(lock)):
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)  # the other process has just finished and renamed its file


def sync(path: Path) -> None:
    """Wait until a file or a directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Write a file that gets its name when the block ends without an error; an earlier one is replaced.

    Raises
    ------
    BlockingIOError
        If another process is writing it.
    OSError
        If it cannot be written.
    """
    partial = partial_name(path)
    lock = lock_partial(partial)
    try:
        os.ftruncate(lock, 0)
        with os.fdopen(os.dup(lock), "wb") as file:
            yield file
        os.fsync(lock)
        partial.replace(path)
        sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(lock)


def replace_text(path: Path, text: str) -> None:
    """Write a small file that is there whole or not at all: see ``replacing``."""
    with replacing(path) as file:
        file.write(text.encode())


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn the system's errors within the block into a DataError that names the file.

    Raises
    ------
    DataError
    """
    try:
        yield
    except BlockingIOError:
        raise DataError("another run is writing it", where=path, fix="wait for it, or name another file") from None
    except OSError as error:
        if error.errno is None:  # raised by a signal handler, so not ours
            raise
        raise DataError(f"cannot be written ({error.strerror})", where=path) from None
