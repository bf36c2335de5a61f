"""Directories that appear complete or not at all.

Files are written into a hidden directory beside the destination, synced to the disk, and the directory is renamed at
the end. An error removes it at once; the remains of a killed process are removed by the next process with the same
destination (see ``refgpt._common.partial_files``).
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
        Must not exist, or must be an empty directory.
    n_bytes : int
        Approximate size of the output.

    Raises
    ------
    CheckpointError
        If the destination exists, another process is writing it, or the disk is too full.
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
            for left in staging.iterdir():  # left by a killed process
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
    """Turn the system's errors into ours. Exceptions from a signal handler have no errno and pass unchanged."""
    try:
        yield
    except BlockingIOError:
        raise CheckpointError("another process is writing it", where=destination, fix="wait for it") from None
    except OSError as fault:
        if fault.errno is None:
            raise
        raise CheckpointError(f"{what} ({fault.strerror})", where=destination, fix=ELSEWHERE) from fault


def check_free(destination: Path) -> None:
    """Refuse a destination that exists, or whose parent directory does not.

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
