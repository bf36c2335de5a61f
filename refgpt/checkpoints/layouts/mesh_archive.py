"""A checkpoint of Mesh Transformer JAX as it is published: a tar archive, compressed with Zstandard.

Such an archive can only be read from its beginning to its end. It holds the model shard by shard, and every matrix
needs all the shards; so it is unpacked once, into temporary files that are mapped. Meanwhile only a buffer is held in
memory. The files have no name: the operating system frees them with the last map of them, also when the process
is killed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np

from refgpt._common.errors import CheckpointError, ConfigError, RefgptError, is_foreign
from refgpt._common.progress import Progress
from refgpt._common.small_files import LARGEST_JSON, open_file, parse_json
from refgpt._common.wording import FRESH_COPY, listed, shown
from refgpt.checkpoints.files import npz_file
from refgpt.numbers.mapped import MappedFile, map_open
from refgpt.spec.config import AnyConfig

if TYPE_CHECKING:
    import tarfile

SUFFIXES = (".tar.zst", ".tar.zstd")
PARAMS_JSON = "params.json"

#: The files of a shard by number, each with its arrays; empty for a file that holds only the optimiser's.
Pieces = dict[int, list[np.ndarray]]

MEMBER = re.compile(r"(?:[\w./-]*/)?shard_([0-9]{1,6})/([0-9]{1,6})\.npz")
CONFIG = re.compile(rf"(?:[\w./-]*/)?{re.escape(PARAMS_JSON)}")
BUFFER = 1 << 20
#: Most bytes of headers between two members, which tarfile holds in memory: a thousand times what they need.
MOST_HEADER_BYTES = 4 << 20
MOST_MEMBERS = 1 << 13
#: Most bytes of all shards, dropped ones included: seven times GPT-J-6B with the optimiser's state.
MOST_ARRAYS = 1 << 16
#: Largest ratio of the contents' size to the archive's. Trained weights compress far less than this.
MOST_RATIO = 64
#: Modules whose errors mean a damaged archive.
LIBRARIES = ("tarfile", "zstandard", "compression", "shutil", "tempfile", "encodings", "codecs")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def unpack(
    path: Path, config: AnyConfig | None, names: Any, progress: Progress | None = None
) -> tuple[AnyConfig | None, dict[int, Pieces]]:
    """Unpack the shards of an archive.

    The temporary files go where TMPDIR says, else beside the archive, else, if that directory cannot be written, where
    temporary files usually go. They are as large as the parameters and, while a checkpoint with the optimiser's state
    is unpacked, by up to a shard larger.

    Parameters
    ----------
    path : Path
        The archive.
    config : ModelConfig, optional
        The model's, if it is known already.
    names : module
        The family's ``MESH``.
    progress : callable, optional
        Called as ``progress(bytes done, bytes in all)``, counting bytes of the archive.

    Returns
    -------
    config : ModelConfig or None
        The one given, or that of a params.json in the archive.
    shards : dict of int to Pieces
        Views into the temporary files.

    Raises
    ------
    CheckpointError
        If the archive is damaged, holds anything but files and directories, or absurdly much; or if there is no room to
        unpack it, or no library to read it.
    ConfigError
        If the params.json in it makes no sense.
    """
    shards: dict[int, Pieces] = {}
    directories: dict[int, PurePosixPath] = {}
    n_arrays = 0
    directory = _temporary_directory(path)
    with _members(path, progress) as members:
        for name, content in members:
            place = Path(f"{path}/{name}")
            if found := MEMBER.fullmatch(name):
                k, j = int(found[1]), int(found[2])
                pieces = shards.setdefault(k, {})
                _check_directory(path, PurePosixPath(name).parent, k, directories)
                if j in pieces:
                    _refuse(path, f"the archive has two files {shown(name)}")
                pieces[j] = npz_file.read_mapped(_spool(content, directory, place))
                n_arrays += len(pieces[j])
                if n_arrays > MOST_ARRAYS:
                    _refuse(path, f"the archive has more than {MOST_ARRAYS} arrays")
                if config is not None:
                    _check_room(directory, path, config, shards)
            elif CONFIG.fullmatch(name) and config is None:
                config = names.read_config(parse_json(content.read(LARGEST_JSON), place, ConfigError), place)
            if config is not None:
                for pieces in shards.values():
                    _drop_optimiser(pieces, len(names.leaf_names(config.n_layer)) + 1)
    return config, shards


def _check_directory(path: Path, directory: PurePosixPath, k: int, directories: dict[int, PurePosixPath]) -> None:
    """All shards are beside the first one, and no number is spelt in two ways."""
    first = next(iter(directories.values()), directory)
    known = directories.setdefault(k, directory)
    if directory != known or directory.parent != first.parent:
        other = known if directory != known else first
        _refuse(path, f"the archive has several checkpoints, or a shard twice: {listed(map(str, (other, directory)))}")


def _temporary_directory(path: Path) -> Path:
    beside = path.resolve().parent
    return beside if "TMPDIR" not in os.environ and os.access(beside, os.W_OK) else Path(tempfile.gettempdir())


def _check_room(directory: Path, path: Path, config: AnyConfig, shards: dict[int, Pieces]) -> None:
    """Refuse an archive that will not fit, as soon as the width of its numbers is known."""
    arrays = [array for pieces in shards.values() for part in pieces.values() for array in part]
    width = max((array.itemsize for array in arrays if array.ndim == 2), default=2)
    n_bytes = width * config.n_params - sum(array.nbytes for array in arrays)
    if n_bytes > (n_free := shutil.disk_usage(directory).free):
        _no_room(directory, path, f"{n_free:,} bytes free", f"{n_bytes:,} more")


def _no_room(directory: Path, path: Path, got: str, wanted: str | None = None) -> NoReturn:
    raise CheckpointError(
        "there is no room to unpack the archive",
        where=directory,
        got=got,
        wanted=wanted,
        fix="set TMPDIR to a directory on a larger disk",
    )


def _spool(content: IO[bytes], directory: Path, place: Path) -> MappedFile:
    """Copy a file of the archive to a temporary file, and map that."""
    with tempfile.TemporaryFile(dir=directory) as file:
        try:
            shutil.copyfileobj(content, file, BUFFER)
            file.flush()
        except OSError as fault:
            if fault.errno not in NO_ROOM:
                raise
            _no_room(directory, place, str(fault.strerror))
        return map_open(file, place)


def _drop_optimiser(pieces: Pieces, n_leaves: int) -> None:
    """Drop files before the last ``n_leaves`` arrays: they hold optimiser state, wherever the archive ends."""
    n_behind = 0
    for j in sorted(pieces, reverse=True):
        n_behind += len(pieces[j])
        if n_behind - len(pieces[j]) >= n_leaves:
            pieces[j] = []


@contextmanager
def _members(path: Path, progress: Progress | None) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Iterate over an archive's files and names; each must be read before the next. Faults raise CheckpointErrors."""
    import tarfile  # only such archives need it

    decompressed, ZstdError = _zstandard(path)
    try:
        with open_file(path, CheckpointError) as file:
            stream = _Stream(decompressed(file), file, path, progress)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=BUFFER) as archive:  # type: ignore[call-overload]
                yield _each_file(archive, stream, path)
    except (tarfile.TarError, ZstdError, EOFError, ValueError, OverflowError) as fault:
        if isinstance(fault, RefgptError) or is_foreign(fault, *LIBRARIES):
            raise
        _refuse(path, f"the archive is damaged ({shown(str(fault))})")


def _each_file(archive: tarfile.TarFile, stream: _Stream, path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    for _ in range(MOST_MEMBERS):
        stream.allowed = MOST_HEADER_BYTES
        member = archive.next()
        if member is None:
            return
        if member.isdir():
            continue
        plain = member.isfile() and not member.issparse() and member.size >= 0
        content = archive.extractfile(member) if plain else None
        if content is None:
            _refuse(path, f"the archive holds {shown(member.name)}, which is no plain file")
        stream.allowed = member.size + MOST_HEADER_BYTES
        yield member.name, content
        while content.read(BUFFER):  # an unused rest of the member
            pass
    _refuse(path, f"the archive has more than {MOST_MEMBERS} files")


class _Stream:
    """An archive's contents for tarfile, which trusts sizes in headers: limits the bytes of one read."""

    def __init__(self, decompressed: BinaryIO, file: BinaryIO, path: Path, progress: Progress | None) -> None:
        self.decompressed, self.file, self.path, self.progress = decompressed, file, path, progress
        self.n_packed = path.stat().st_size
        self.left = MOST_RATIO * self.n_packed + MOST_HEADER_BYTES
        self.allowed = MOST_HEADER_BYTES

    def read(self, n: int) -> bytes:
        data = self.decompressed.read(n)
        self.left -= len(data)
        self.allowed -= len(data)
        if self.left < 0 or self.allowed < 0:
            _refuse(self.path, "the archive unpacks to absurdly much")
        if self.progress is not None:
            self.progress(self.file.tell(), self.n_packed)
        return data


def _zstandard(path: Path) -> tuple[Callable[[BinaryIO], BinaryIO], type[Exception]]:
    """A function that opens a compressed file, and the errors it raises: the standard library's if it has one."""
    try:
        from compression import zstd  # Python 3.14

        return zstd.ZstdFile, zstd.ZstdError
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        raise CheckpointError(
            "reading this archive takes a library that is not installed",
            where=path,
            wanted="zstandard",
            fix="python -m pip install 'refgpt[mesh]'",
        ) from None
    reader: Any = zstandard.ZstdDecompressor()
    return lambda file: reader.stream_reader(file, read_across_frames=True, closefd=False), zstandard.ZstdError


def _refuse(path: Path, what: str) -> NoReturn:
    raise CheckpointError(what, where=path, fix=FRESH_COPY)
