"""The state of a calibration on disk, from which an interrupted run resumes.

A hidden directory beside the destination holds each matrix that is done, in a file of its own that appears when it is
complete, and the residual stream of the texts after the last complete block. ``run.json`` says which run they belong
to.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.partial_files import LONGEST_NAME, lock_partial, replace_text, replacing
from refgpt._common.small_files import read_json
from refgpt._common.wording import difference
from refgpt.kernels import digests
from refgpt.numbers.checksums import checksum
from refgpt.numbers.mapped import map_file, view
from refgpt.numbers.panels import Panels, panel_dtype, panel_shape

log = logging.getLogger("refgpt")

RUN, STATES = "run.json", "states"
N_CHECKSUM = len(checksum(np.zeros(0, np.uint64)))
SUFFIX = ".calibration"


class CalibrationState:
    """The matrices and states of a run that are done. ``open_state`` opens it.

    Attributes
    ----------
    directory : Path
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def matrix(self, name: str, shape: tuple[int, int], kind: str) -> Panels | None:
        """A matrix that is done, mapped; None if it is not."""
        found = self._read(name, panel_dtype(kind), panel_shape(kind, *shape))
        return None if found is None else Panels(found, *shape, kind, name)

    def keep_matrix(self, name: str, panels: Panels) -> None:
        """Write a matrix that is done."""
        self._write(name, panels.data)

    def states(self, n_blocks: int, shape: tuple[int, ...]) -> tuple[int, np.ndarray | None]:
        """The latest kept residual stream, after at most ``n_blocks`` blocks.

        Returns
        -------
        int
            The number of blocks that it has gone through; 0 if none is kept.
        ndarray or None
        """
        for n in range(n_blocks, 0, -1):
            found = self._read(f"{STATES}.{n}", np.dtype(np.float32), shape)
            if found is not None:
                return n, found
        return 0, None

    def keep_states(self, n_blocks: int, states: np.ndarray) -> None:
        """Write the residual stream after ``n_blocks`` blocks, in place of the one before."""
        self._write(f"{STATES}.{n_blocks}", states)
        (self.directory / f"{STATES}.{n_blocks - 1}").unlink(missing_ok=True)

    def _read(self, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray | None:
        path = self.directory / name
        n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not path.is_file() or path.stat().st_size != n_bytes + N_CHECKSUM:
            return None
        mapped = map_file(path)
        data = view(mapped, name, dtype, 0, n_bytes, shape)
        if mapped[n_bytes:] != _checksum(data):
            log.warning("%s is damaged and computed again", path)
            return None
        return data

    def _write(self, name: str, data: np.ndarray) -> None:
        with _writing(self.directory), replacing(self.directory / name) as file:
            file.write(data.reshape(-1).view(np.uint8).data)
            file.write(_checksum(data))


def _checksum(data: np.ndarray) -> bytes:
    return checksum(digests(data.reshape(-1).view(np.uint32))).encode()


@contextmanager
def open_state(destination: Path, n_bytes: int, about: Mapping[str, Any]) -> Iterator[CalibrationState]:
    """Open the state of a run towards a destination, with what an interrupted run has left.

    The state is removed when the ``with`` block ends without an error, or when no matrix is done yet.

    Parameters
    ----------
    destination : Path
    n_bytes : int
        Bytes that the run needs on the disk.
    about : mapping
        What distinguishes the run from others, as JSON.

    Raises
    ------
    CheckpointError
        If the interrupted run was another, another process works on it, or the disk has too little room.
    """
    destination = Path(os.path.abspath(destination))
    name = os.fsdecode(os.fsencode(destination.name)[: LONGEST_NAME - len(SUFFIX)])
    directory = destination.with_name(f".{name}{SUFFIX}")
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise CheckpointError(
            "the calibration keeps its state under this name, and something else has it",
            where=directory,
            wanted="a directory, or nothing",
            fix="move it away, or name another destination",
        )
    try:
        with _writing(directory):
            lock = lock_partial(directory, directory=True)
    except BlockingIOError:
        raise CheckpointError("another process is calibrating it", where=destination, fix="wait for it") from None
    begun = done = False
    try:
        known = json.loads(json.dumps(about))
        if (directory / RUN).exists():
            _check_same(directory, known)
        else:
            with _writing(directory):
                for path in directory.iterdir():  # of which run nobody knows: the rest has been removed
                    path.unlink()
                replace_text(directory / RUN, json.dumps(known) + "\n")
        _check_room(directory, n_bytes)
        begun = True
        yield CalibrationState(directory)
        done = True
    finally:
        if done or not _matrices(directory):
            shutil.rmtree(directory, ignore_errors=True)
        elif begun:
            log.warning("%s holds what is done: the same command goes on there", directory)
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def _matrices(directory: Path) -> list[Path]:
    """The files of matrices that are done."""
    return [path for path in directory.iterdir() if path.name != RUN and not path.name.startswith(STATES)]


def _check_same(directory: Path, known: Mapping[str, Any]) -> None:
    fix = "remove that directory, or name another destination"
    try:
        found = read_json(directory / RUN, CheckpointError)
    except CheckpointError:
        raise CheckpointError("its record of an interrupted calibration is damaged", where=directory, fix=fix) from None
    if found == known:
        return
    key, got, wanted = difference(found, known)
    raise CheckpointError(
        f"holds the interrupted calibration of another {key}",
        where=directory,
        got=got,
        wanted=wanted,
        fix=fix,
    )


def _check_room(directory: Path, n_bytes: int) -> None:
    there = sum(path.stat().st_size for path in directory.iterdir())
    if (free := shutil.disk_usage(directory).free + there) < n_bytes:
        raise CheckpointError(
            "there is no room on the disk",
            where=directory.parent,
            got=f"{free} bytes",
            wanted=f"{n_bytes} bytes",
            fix="name a destination on another disk",
        )


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turn the system's errors into ours, except that of a lock that another process holds."""
    try:
        yield
    except BlockingIOError:
        raise
    except OSError as fault:
        if fault.errno is None:  # a signal handler's
            raise
        raise CheckpointError(
            f"cannot be written ({fault.strerror})", where=directory, fix="name a destination on another disk"
        ) from fault
