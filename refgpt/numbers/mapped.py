"""Files as read-only memory maps, tensors as views into them.

A view costs nothing until it is read; then the operating system brings its pages in, and ``release`` lets them go
again. So a checkpoint of 24 GB can be walked, leaf by leaf, in the memory of its largest leaf.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refgpt._common.errors import CheckpointError, is_foreign
from refgpt._common.small_files import open_file, reading
from refgpt._common.wording import FRESH_COPY, shown, tensor_at
from refgpt.numbers.encoded import Encoded
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.panels import aligned_zeros

# NumPy stops at 64; a weight has two.
MOST_DIMENSIONS = 32
LARGEST_ARRAY = 2**59  # items; with any item size still within 64 bits

#: A map would keep a file descriptor of its own, of which a process has few: a checkpoint of many files needs none.
UNTRACKED: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}

GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class MappedFile(mmap.mmap):
    """A whole file, mapped read-only; arrays that view it keep it open."""

    path: Path
    names: dict[int, str]  # of its tensors, by where they begin
    at: str  # the path, whatever directory is the current one later
    found: os.stat_result  # when it was mapped

    def check_unchanged(self) -> None:
        """Refuse a file that has been written to since it was mapped: reading past a new end would end the process.

        A file that was replaced or removed, as programs do that write whole files, is no harm: the map keeps the old.

        Raises
        ------
        CheckpointError
        """
        try:
            now = os.stat(self.at)
        except OSError as fault:
            if fault.errno is None:  # a signal handler's
                raise
            return
        if os.path.samestat(now, self.found) and (now.st_size, now.st_mtime_ns) != (
            self.found.st_size,
            self.found.st_mtime_ns,
        ):
            raise CheckpointError(
                "the file was changed while the model is in use",
                where=self.path,
                got=f"{now.st_size} bytes",
                wanted=f"the {self.found.st_size} bytes that were opened",
                fix="load the model again; replace its files by renaming new ones, or load it with copy=True",
            )


def map_file(path: Path) -> MappedFile:
    """Map a file of weights.

    Raises
    ------
    CheckpointError
        If it is missing, unreadable, empty, or only the pointer that Git LFS leaves in place of a file.
    """
    with reading(path, CheckpointError), open_file(path, CheckpointError) as file:
        mapped = map_open(file, path)
    if mapped[: len(GIT_LFS_POINTER)] == GIT_LFS_POINTER:
        raise CheckpointError(
            "this is a Git LFS pointer, not the weights", where=path, fix="fetch the real file with `git lfs pull`"
        )
    return mapped


def map_open(file: BinaryIO, path: Path) -> MappedFile:
    """Map an open file, which may be closed afterwards; ``path`` is what errors call it."""
    try:
        mapped = MappedFile(file.fileno(), 0, access=mmap.ACCESS_READ, **UNTRACKED)
    except ValueError as error:  # an empty file cannot be mapped
        if is_foreign(error):
            raise
        raise CheckpointError("the file is empty", where=path, fix=FRESH_COPY) from error
    mapped.path, mapped.names = path, {}
    mapped.found, mapped.at = os.fstat(file.fileno()), os.path.abspath(path)
    return mapped


@contextmanager
def here_and_there(mapped: MappedFile) -> Iterator[None]:
    """While headers between the numbers are read: without reading ahead, which would bring in the numbers too."""
    if hasattr(mmap, "MADV_RANDOM"):
        mapped.madvise(mmap.MADV_RANDOM)
    yield
    if hasattr(mmap, "MADV_NORMAL"):
        mapped.madvise(mmap.MADV_NORMAL)


def view(
    mapped: MappedFile,
    name: str,
    dtype: np.dtype,
    start: int,
    n_bytes: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...] | None = None,
) -> np.ndarray:
    """A tensor as a read-only array over the bytes ``start`` to ``start + n_bytes``, which must lie in the mapped file.

    Nothing is copied. ``start`` need not be a multiple of the item size: NumPy reads unaligned arrays (their
    ``flags.aligned`` is False); C code that wants aligned rows has to copy them.

    Parameters
    ----------
    shape, strides : tuple of int
        As the file states them, but not negative; strides count elements, None means densely packed in C order.

    Raises
    ------
    CheckpointError
        If the shape makes no sense, an element would lie outside the bytes, or more elements are claimed than the bytes
        can hold (a zero stride could otherwise turn four bytes into terabytes).
    """
    where = tensor_at(mapped.path, name)
    if len(shape) > MOST_DIMENSIONS or prod(max(n, 1) for n in shape) > LARGEST_ARRAY:
        raise CheckpointError(
            "the shape makes no sense",
            where=where,
            got=shown(shape),
            wanted=f"at most {MOST_DIMENSIONS} whole numbers",
            fix=FRESH_COPY,
        )
    if strides is None:
        strides = tuple(prod(shape[i + 1 :]) for i in range(len(shape)))
    elif len(strides) != len(shape):
        raise CheckpointError(
            "the strides make no sense",
            where=where,
            got=f"{shown(strides)} for shape {shown(shape)}",
            fix=FRESH_COPY,
        )
    n_items = prod(shape)
    # The stride of a dimension that is never stepped along may be anything in a file.
    strides = tuple(step if n > 1 and n_items else 0 for n, step in zip(shape, strides, strict=True))
    last = sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    n_needed = max(n_items, last + 1 if n_items else 0) * dtype.itemsize
    if n_needed > n_bytes:
        raise CheckpointError(
            "the tensor is larger than its bytes in the file",
            where=where,
            got=f"{n_bytes} bytes",
            wanted=f"{n_needed} bytes for shape {shown(shape)}",
            fix="the file is damaged or holds an expanded view: save a contiguous copy",
        )
    mapped.names.setdefault(start, name)
    array: np.ndarray = np.ndarray(shape, dtype, mapped, start, tuple(step * dtype.itemsize for step in strides))
    return array


def file_of(array: np.ndarray) -> MappedFile | None:
    """The mapped file that an array views; None for an array in ordinary memory."""
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, MappedFile) else None


def _arrays_of(leaf: Leaf) -> list[np.ndarray]:
    """The arrays that a leaf consists of."""
    if isinstance(leaf, np.ndarray):
        return [leaf]
    held = [value if isinstance(value, Sequence) else (value,) for value in vars(leaf).values()]
    parts = [part for parts in held for part in parts]
    return [array for part in parts if isinstance(part, np.ndarray | Encoded) for array in _arrays_of(part)]


def files_of(leaves: Iterable[Leaf]) -> tuple[MappedFile, ...]:
    """The mapped files that leaves view, each once."""
    found = (file_of(array) for leaf in leaves for array in _arrays_of(leaf))
    return tuple({id(file): file for file in found if file is not None}.values())


def check_unchanged(*leaves: Leaf) -> None:
    """Refuse, before leaves are read, files that have been written to: see ``MappedFile.check_unchanged``."""
    for file in files_of(leaves):
        file.check_unchanged()


def in_memory(leaf: Leaf) -> Leaf:
    """The same leaf in ordinary memory, whatever becomes of its file: itself, or a copy of what views a file."""
    if not files_of([leaf]):
        return leaf
    check_unchanged(leaf)
    if isinstance(leaf, np.ndarray):
        copied = aligned_zeros(leaf.shape, leaf.dtype)
        copied[...] = leaf
        return copied
    twin = copy(leaf)
    for name, value in vars(leaf).items():
        if isinstance(value, np.ndarray):
            object.__setattr__(twin, name, in_memory(value))  # some are frozen
        elif isinstance(value, list | tuple) and isinstance(value[0], np.ndarray):
            object.__setattr__(twin, name, [in_memory(part) for part in value])
    return twin


def place_of(array: Leaf, name: str) -> str:
    """Where an array is stored, for errors: its file and what it is called there; ``name`` if it is in no file."""
    if isinstance(array, Encoded):
        return array.place
    mapped = file_of(array)
    return name if mapped is None else tensor_at(mapped.path, mapped.names.get(_offset(array, mapped), name))


def _offset(array: np.ndarray, mapped: MappedFile) -> int:
    """How many bytes of the file are before an array's first element."""
    first_byte = np.frombuffer(mapped, np.uint8).__array_interface__["data"][0]
    return int(array.__array_interface__["data"][0] - first_byte)


def release(array: Leaf) -> None:
    """Give the memory of a mapped array back to the operating system; reading the array again brings it back.

    Does nothing to an array that is not a view into a checkpoint's file, nor on systems without ``madvise``.

    Parameters
    ----------
    array : ndarray or Encoded
        Any leaf. Pages that it shares with its neighbours in the file are released as well, which costs them a read.
    """
    if isinstance(array, Encoded):
        array.release()
        return
    mapped = file_of(array)
    if mapped is None or not array.size or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = _offset(array, mapped)
    steps = [(n - 1) * step for n, step in zip(array.shape, array.strides, strict=True)]
    stop = start + sum(step for step in steps if step > 0) + array.itemsize
    start += sum(step for step in steps if step < 0)
    start -= start % mmap.PAGESIZE
    mapped.madvise(mmap.MADV_DONTNEED, start, stop - start)
