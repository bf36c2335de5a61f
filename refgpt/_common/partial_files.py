"""Files and directories that take their names when they are whole.

What is written has a name of its own beside its destination, ending in ".partial", and is renamed at the end. A
destination has one such name, so that what killed processes leave does not accumulate: the next one with the same
destination takes it over. A lock, which the system drops with the process that holds it, tells that from a process
that is still at work.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

#: Bytes of the longest name that most file systems have, less what is added.
LONGEST_NAME = 255 - len("..partial")


def partial_name(destination: Path, hidden: bool = False) -> Path:
    """What is written under until it is whole, beside the destination."""
    name = os.fsdecode(os.fsencode(destination.name)[:LONGEST_NAME])
    return destination.with_name(f"{'.' if hidden else ''}{name}.partial")


def lock_partial(partial: Path, directory: bool = False) -> int:
    """Make a file or a directory if it is not there, and lock it.

    Returns
    -------
    int
        The descriptor that holds the lock, to be closed after the renaming; of a file it can be written to.

    Raises
    ------
    BlockingIOError
        If another process holds the lock.
    OSError
        If it cannot be made, or something else has its name.
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
        os.close(lock)  # the other process has just finished: that was its own


def sync(path: Path) -> None:
    """Wait until a file or a directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
