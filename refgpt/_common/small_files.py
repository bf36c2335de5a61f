"""Opening files for reading, and reading the small files beside the weights: size limits and strict JSON.

JSON that two parsers could read differently is refused, because damage in these files would otherwise only show as odd
numbers or odd text.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from refgpt._common.errors import RefgptError, missing
from refgpt._common.wording import FRESH_COPY, shown

#: Size limit for configurations, indices of shards and similar files: twenty-five times what a 6B model needs.
LARGEST_JSON = 1 << 20
MOST_DIGITS = 40
#: Limit on the number of values in one file. They are counted before parsing, by the marks before and between values,
#: because an empty list or a number takes far more memory than bytes in the file. A vocabulary of 200,000 tokens with
#: as many merges, each of them a list, has a million of these marks; GPT-2's has 200,000.
MOST_ITEMS = 1 << 20
MARKS = b"[{,:"

#: Kinds of files that are not plain files.
KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda _: True, "a device"),
)


@contextmanager
def reading(where: object, error: type[RefgptError]) -> Iterator[None]:
    """Turn the operating system's errors within the block into one of our errors.

    Only errors of system calls have an ``errno``. Exceptions from a signal handler (a ``TimeoutError`` is an
    ``OSError``) and our own errors for missing files have none and pass unchanged.

    Raises
    ------
    RefgptError
        Of the type asked for; also a ``FileNotFoundError`` if the file is missing.
    """
    try:
        yield
    except OSError as fault:
        if fault.errno is None:
            raise
        if fault.errno == errno.ENOENT:
            raise missing(error)("there is no such file", where=where, fix="check the path") from fault
        raise error(
            f"the file cannot be read ({fault.strerror})", where=where, fix="check the path and its permissions"
        ) from fault


def is_there(path: Path) -> bool:
    """Whether a directory has an entry of this name. A dangling link counts: opening it raises a clear error.

    Call it within ``reading``: it raises if the directory is not readable.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def open_file(path: Path, error: type[RefgptError]) -> BinaryIO:
    """Open a plain file for reading. Pipes and devices are refused, because reading them could block for ever.

    Raises
    ------
    RefgptError
        Of the type asked for, if the file does not exist (then also a ``FileNotFoundError``), is not a plain file, is a
        dangling link, or cannot be opened.
    """
    with reading(path, error):
        check_plain(path, error)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # in case it has become a pipe
        try:
            _check_mode(os.fstat(descriptor).st_mode, path, error)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise


def check_plain(path: Path, error: type[RefgptError], directory: bool = False) -> None:
    """Refuse a path that is not a plain file (or, with ``directory``, a directory). Raises like ``open_file``."""
    with reading(path, error):
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            if not path.is_symlink():
                raise
            raise missing(error)(
                "this is a link that leads nowhere",
                where=path,
                got=f"a link to {path.readlink()}",
                fix="put the file where the link leads, or in its place",
            ) from None
        if not (directory and stat.S_ISDIR(mode)):
            _check_mode(mode, path, error)


def _check_mode(mode: int, path: Path, error: type[RefgptError]) -> None:
    if not stat.S_ISREG(mode):
        kind = next(name for test, name in KINDS if test(mode))
        raise error("is not a file", where=path, got=kind, wanted="a plain file", fix="check the path")


def read_bytes(path: Path, error: type[RefgptError], most_bytes: int) -> bytes:
    """A whole file.

    Parameters
    ----------
    path : Path
    error : type of RefgptError
        What to raise.
    most_bytes : int
        Size limit, far above what such a file needs.

    Raises
    ------
    RefgptError
        Of the type asked for, if the file is missing, not a plain file, unreadable, empty or larger than
        ``most_bytes``.
    """
    with reading(path, error), open_file(path, error) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        raw = file.read(most_bytes + 1) if n_bytes <= most_bytes else b""
    if max(n_bytes, len(raw)) > most_bytes:
        raise error(
            "the file is far too large for its purpose",
            where=path,
            got=f"{n_bytes} bytes",
            wanted=f"at most {most_bytes}",
            fix="check that this is the right file",
        )
    if not raw:
        raise error("the file is empty", where=path, fix=FRESH_COPY)
    return raw


def read_json(path: Path, error: type[RefgptError], most_bytes: int = LARGEST_JSON) -> dict[str, Any]:
    """Read a JSON file that holds one object. Combines ``read_bytes`` and ``parse_json``."""
    return parse_json(read_bytes(path, error, most_bytes), path, error)


def parse_json(raw: bytes, where: object, error: type[RefgptError]) -> dict[str, Any]:
    """Parse one JSON object.

    Parameters
    ----------
    raw : bytes
        UTF-8 text.
    where : object
        Named in errors.
    error : type of RefgptError
        What to raise.

    Raises
    ------
    RefgptError
        Of the type asked for, if there are bytes that are not UTF-8, a byte-order mark, a duplicate key, NaN or
        infinity, an absurdly long number, too deep nesting, far too many values, or anything but one object.
    """

    def refuse(what: str, got: str | None = None) -> NoReturn:
        raise error(what, where=where, got=got, wanted="one JSON object in UTF-8", fix=FRESH_COPY)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            refuse("a key is given twice", shown(Counter(key for key, _ in pairs).most_common(1)[0][0]))
        return found

    def whole(digits: str) -> int:
        return int(digits) if len(digits) <= MOST_DIGITS else refuse("a number is absurdly long", shown(digits))

    def decimal(digits: str) -> float:
        value = float(digits)
        return value if isfinite(value) else refuse("a number is too large", shown(digits))

    def constant(word: str) -> NoReturn:
        refuse("a number is not finite", word)

    if (n_items := sum(map(raw.count, MARKS))) > MOST_ITEMS:
        refuse("there are absurdly many values", f"up to {n_items}")
    try:
        text = raw.decode("utf-8")
        found = json.loads(
            text, object_pairs_hook=unique, parse_int=whole, parse_float=decimal, parse_constant=constant
        )
    except UnicodeDecodeError as fault:
        refuse("the text is not UTF-8", fault.reason)
    except json.JSONDecodeError as fault:
        refuse(f"the text is not JSON: {fault.msg} at character {fault.pos}")
    except RecursionError:
        refuse("the nesting is absurdly deep")
    if not isinstance(found, dict):
        refuse("the text is JSON, but not an object", shown(found))
    return found
