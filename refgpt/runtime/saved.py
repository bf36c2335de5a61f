"""A sequence on disk: its ids with their keys and values, to go on with later in every bit as if nothing had been.

==========  ===========================================================================================================
bytes       what they hold
==========  ===========================================================================================================
16          ``refgpt prompt 1`` and a new line
8           length of the header
32          SHA-256 of the header
header      JSON: the engine's identity, ``n_tokens``, ``prefix_len``, and a checksum of each part that follows;
            then spaces, so that the parts begin at a multiple of 64
parts       the ids, int64; of each layer the keys, then the values, as ``KVCache.layer`` gives them, whole panels
==========  ===========================================================================================================

A file is read only by an engine of the same identity: the same configuration, weights and dtype of the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from refgpt._common.arguments import path_of
from refgpt._common.errors import GenerationError
from refgpt._common.partial_files import replacing
from refgpt._common.small_files import open_file, parse_json, reading
from refgpt._common.wording import listed
from refgpt.numbers.checksums import checksum
from refgpt.runtime.cache import KVCache

MAGIC = b"refgpt prompt 1\n"
BEFORE_HEADER = len(MAGIC) + 8 + 32
LARGEST_HEADER = 1 << 20
ALIGNED = 64
FIELDS = "identity", "n_tokens", "prefix_len", "checksums"
AGAIN = "remove it and save the prompt again"

Digests = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Saved:
    """The header of a file.

    Attributes
    ----------
    path : Path
    n_tokens, prefix_len : int
    checksums : list of str
        Of the ids, and of the keys and values of each layer.
    start : int
        Where the parts begin.
    """

    path: Path
    n_tokens: int
    prefix_len: int
    checksums: list[str]
    start: int


def save(
    path: str | os.PathLike[str],
    identity: Mapping[str, Any],
    ids: np.ndarray,
    prefix_len: int,
    cache: KVCache | None,
    slot: int,
    digests: Digests,
) -> None:
    """Write a sequence.

    Parameters
    ----------
    path : path
        A file there is replaced when the new one is whole.
    identity : mapping
        See ``Engine.identity``.
    ids : ndarray [t], int64
    cache : KVCache or None
        None for an engine that has none; the file then has the ids alone.

    Raises
    ------
    GenerationError
        If there are no ids, or the file cannot be written.
    """
    if not len(ids):
        raise GenerationError("there is nothing to save", where="seq", got=slot, fix="prefill the slot first")
    target = path_of("path", path, GenerationError)
    n_layer = 0 if cache is None else len(cache.k)
    sums = ["0" * len(checksum(np.zeros(0, np.uint64)))] * (1 + 2 * n_layer)
    try:
        with replacing(Path(os.path.realpath(target))) as file:
            file.write(_header(identity, len(ids), prefix_len, sums))
            sums[0] = _write(file, np.ascontiguousarray(ids, "<i8"), digests)
            for i in range(n_layer):
                assert cache is not None
                for j, numbers in enumerate(cache.layer(i, slot, len(ids))):
                    sums[1 + 2 * i + j] = _write(file, numbers, digests)
            file.seek(0)
            file.write(_header(identity, len(ids), prefix_len, sums))
    except BlockingIOError:
        raise GenerationError("another process is writing it", where=target, fix="wait for it") from None
    except OSError as fault:
        if fault.errno is None:  # raised by a signal handler
            raise
        raise GenerationError(f"cannot be written ({fault.strerror})", where=target) from None


def read_header(path: str | os.PathLike[str], identity: Mapping[str, Any] | None = None) -> Saved:
    """The header of a file, checked.

    Parameters
    ----------
    identity : mapping, optional
        What it must have been saved with.

    Raises
    ------
    GenerationError
        If the file is missing, is none of these or damaged, or was saved with another model.
    """
    target = path_of("path", path, GenerationError)
    with reading(target, GenerationError), open_file(target, GenerationError) as file:
        begun = file.read(BEFORE_HEADER)
        n_header = int.from_bytes(begun[len(MAGIC) : len(MAGIC) + 8], "little")
        if begun[: len(MAGIC)] != MAGIC or len(begun) < BEFORE_HEADER:
            raise GenerationError("this is no saved prompt", where=target, fix="name another file")
        if n_header > LARGEST_HEADER:
            raise GenerationError("the header is far too long", where=target, got=f"{n_header} bytes", fix=AGAIN)
        raw = file.read(n_header)
    if hashlib.sha256(raw).digest() != begun[len(MAGIC) + 8 :]:
        raise GenerationError("the header is not the one that was written", where=target, fix=AGAIN)
    header = parse_json(raw, f"{target}, header", GenerationError)
    found, n_tokens, prefix_len, sums = (header.get(name) for name in FIELDS)
    if not (
        isinstance(found, dict)
        and type(n_tokens) is int
        and type(prefix_len) is int
        and 0 <= prefix_len <= n_tokens
        and n_tokens > 0
        and isinstance(sums, list)
        and all(isinstance(one, str) for one in sums)
    ):
        raise GenerationError("the header makes no sense", where=target, fix=AGAIN)
    if identity is not None and (differing := _differing(found, json.loads(json.dumps(identity)))):
        raise GenerationError(
            "the prompt was saved with another model",
            where=target,
            got=f"another {listed(differing)}",
            fix="load the model as it was then, or save the prompt again",
        )
    return Saved(target, n_tokens, prefix_len, sums, BEFORE_HEADER + n_header)


def load(
    saved: Saved,
    cache: KVCache | None,
    slot: int,
    digests: Digests,
    *,
    n_vocab: int,
    capacity: int,
    wanted: np.ndarray | None = None,
) -> np.ndarray:
    """Read a sequence into an empty slot.

    Parameters
    ----------
    saved : Saved
        Its header, compared with the engine's identity.
    n_vocab, capacity : int
        Which ids exist, and how many of them fit into the slot.
    wanted : ndarray [t], int64, optional
        Read only as many leading positions as have these ids. A prefix cannot be cut.

    Returns
    -------
    ndarray [n], int64
        The ids that the slot has now.

    Raises
    ------
    GenerationError
        If the file is damaged, or its sequence too long. The slot is empty then.
    """
    n_layer = 0 if cache is None else len(cache.k)
    sizes = [8 * saved.n_tokens]
    if cache is not None:
        sizes += n_layer * list(cache.layer_bytes(saved.n_tokens))
    with reading(saved.path, GenerationError), open_file(saved.path, GenerationError) as file:
        n_bytes, n_wanted = os.fstat(file.fileno()).st_size, saved.start + sum(sizes)
        if len(saved.checksums) != len(sizes) or n_bytes != n_wanted:
            got, size = f"{n_bytes} bytes", f"{n_wanted} bytes"
            raise GenerationError("the file has another size", where=saved.path, got=got, wanted=size, fix=AGAIN)
        file.seek(saved.start)
        parts = zip(sizes, saved.checksums, strict=True)
        ids = _read(file, saved, *next(parts), digests).view("<i8").astype(np.int64)
        if not 0 <= ids.min() <= ids.max() < n_vocab:
            raise GenerationError("holds ids that the model does not have", where=saved.path, fix=AGAIN)
        n = saved.n_tokens if wanted is None else _n_common(ids, wanted, saved.prefix_len)
        if n > capacity:
            raise GenerationError(
                "the saved prompt does not fit into a slot",
                where=saved.path,
                got=f"{n} positions",
                wanted=f"at most {capacity}",
                fix="ask for a session of more capacity",
            )
        for i in range(n_layer if n else 0):
            assert cache is not None
            keys, values = (_read(file, saved, *next(parts), digests) for _ in range(2))
            cache.set_layer(i, slot, saved.n_tokens, n, keys, values)
    return ids[:n]


def _n_common(ids: np.ndarray, wanted: np.ndarray, prefix_len: int) -> int:
    """How many leading ids agree; none if that would cut the prefix."""
    n = min(len(ids), len(wanted))
    differing = np.flatnonzero(ids[:n] != wanted[:n])
    n = int(differing[0]) if differing.size else n
    return n if n >= prefix_len else 0


def _header(identity: Mapping[str, Any], n_tokens: int, prefix_len: int, sums: list[str]) -> bytes:
    raw = json.dumps(dict(zip(FIELDS, (identity, n_tokens, prefix_len, sums), strict=True))).encode()
    raw += b" " * (-(BEFORE_HEADER + len(raw)) % ALIGNED)
    return MAGIC + len(raw).to_bytes(8, "little") + hashlib.sha256(raw).digest() + raw


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    return [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]


def _write(file: BinaryIO, numbers: np.ndarray, digests: Digests) -> str:
    """Write an array. -> its checksum"""
    raw = numbers.reshape(-1).view(np.uint8)
    file.write(raw.data)
    return checksum(digests(raw.view(np.uint32)))


def _read(file: BinaryIO, saved: Saved, n_bytes: int, wanted: str, digests: Digests) -> np.ndarray:
    """Read an array of bytes that has this checksum."""
    raw = np.empty(n_bytes, np.uint8)
    n_read = file.readinto(raw.data)  # type: ignore[attr-defined]
    if n_read != n_bytes or checksum(digests(raw.view(np.uint32))) != wanted:
        raise GenerationError("the file is damaged: a checksum differs", where=saved.path, fix=AGAIN)
    return raw
