"""Directories that are there whole or not at all.

What is written goes into a hidden directory beside its destination, reaches the disk, and is renamed at the end. An
error removes it at once; what a killed process left is removed by the next one with the same destination, as
``refgpt._common.partial_files`` has it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from refgpt._common.arguments import path_of
from refgpt._common.errors import CheckpointError, MissingCheckpoint
from refgpt._common.partial_files import lock_partial, partial_name, sync

ELSEWHERE = "name a destination on another disk"


@contextmanager
def staged(destination: Path, n_bytes: int) -> Iterator[Path]:
    """An empty directory to fill, which becomes ``destination`` when the block ends without an error.

    Parameters
    ----------
    destination : Path
        Not there yet, or an empty directory.
    n_bytes : int
        What will be written, about.

    Raises
    ------
    CheckpointError
        If the destination is taken or another process is writing it, or the disk has no room.
    """
    destination = Path(os.path.abspath(path_of("destination", destination, CheckpointError)))
    if not destination.name:
        raise CheckpointError("there is something of that name", where=destination, fix="name a new directory")
    parent, staging = destination.parent, partial_name(destination, hidden=True)
    check_free(destination)
    with _writing(destination, "nothing can be written there"):
        free = shutil.disk_usage(parent).free
        lock = lock_partial(staging, directory=True)
    whole = False
    try:
        with _writing(destination, "it cannot be written"):
            for left in staging.iterdir():  # by a process that was killed
                free += left.stat().st_size
                left.unlink()
            if free < n_bytes:
                raise CheckpointError(
                    "there is no room on the disk",
                    where=parent,
                    got=f"{free} bytes",
                    wanted=f"{n_bytes} bytes",
                    fix=ELSEWHERE,
                )
            yield staging
            for path in staging.iterdir():
                sync(path)
            sync(staging)
            check_free(destination)
            staging.rename(destination)
            whole = True
            sync(parent)
    finally:
        if not whole:
            shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


@contextmanager
def _writing(destination: Path, what: str) -> Iterator[None]:
    """Turn what the system refuses into one of our errors; what a signal handler raises has no errno, and passes."""
    try:
        yield
    except BlockingIOError:
        raise CheckpointError("another process is writing it", where=destination, fix="wait for it") from None
    except OSError as fault:
        if fault.errno is None:
            raise
        raise CheckpointError(f"{what} ({fault.strerror})", where=destination, fix=ELSEWHERE) from fault


def check_free(destination: Path) -> None:
    """Refuse a destination that is taken, or has nowhere to be.

    Raises
    ------
    CheckpointError
    """
    destination = path_of("destination", destination, CheckpointError)
    with _writing(destination, "nothing can be written there"):
        if not destination.parent.is_dir():
            raise MissingCheckpoint(
                "there is no such directory to put it in", where=destination.parent, fix="make it first"
            )
        if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
            raise CheckpointError("the destination is there, and no directory", where=destination, fix="name another")
        if destination.is_dir() and any(destination.iterdir()):
            raise CheckpointError(
                "the destination is there, and not empty", where=destination, fix="name another, or remove it first"
            )
