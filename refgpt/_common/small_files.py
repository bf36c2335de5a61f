"""Files opened for reading; and the small ones beside the weights: bounded in size, and JSON read without charity.

What two parsers could read differently is refused, because damage in these files shows only as odd numbers or odd text.
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

#: Of configurations, indices of shards and the like: twenty-five times what a 6B model needs.
LARGEST_JSON = 1 << 20
MOST_DIGITS = 40
#: What one file may consist of, counted before parsing by the marks before and between values: an empty list is two
#: bytes there and many more in memory, and so is a number. A vocabulary of 200,000 tokens with as many merges, each of
#: them a list, has a million of these marks; GPT-2's has 200,000.
MOST_ITEMS = 1 << 20
MARKS = b"[{,:"

#: What is no plain file.
KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (lambda _: True, "a device"),
)


@contextmanager
def reading(where: object, error: type[RefgptError]) -> Iterator[None]:
    """Turn what the operating system refuses within the block into one of our errors.

    Only what a system call has refused has an ``errno``: what a signal handler raises (a ``TimeoutError`` is an
    ``OSError``) and our own errors of missing files have none, and pass as they are.

    Raises
    ------
    RefgptError
        Of the type asked for, and a ``FileNotFoundError`` too if that is what it was.
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
    """Whether a directory has an entry of this name, be it a link that leads nowhere: opening that says so.

    To be asked within ``reading``: where the directory may not be looked into, this raises.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def open_file(path: Path, error: type[RefgptError]) -> BinaryIO:
    """Open a plain file for reading, and nothing else: pipes and devices could keep the reader waiting for ever.

    Raises
    ------
    RefgptError
        Of the type asked for, if there is no such file (then also a ``FileNotFoundError``), it is no plain file or a
        link that leads nowhere, or the system refuses it.
    """
    with reading(path, error):
        check_plain(path, error)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # should it have become a pipe
        try:
            _check_mode(os.fstat(descriptor).st_mode, path, error)
            return os.fdopen(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise


def check_plain(path: Path, error: type[RefgptError], directory: bool = False) -> None:
    """Refuse a path at which there is no plain file (nor, if that will do, a directory). Raises as ``open_file``."""
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
        Far above what such a file can need.

    Raises
    ------
    RefgptError
        Of the type asked for, if the file is missing, no plain file, unreadable, empty or larger than ``most_bytes``.
    """
    with reading(path, error), open_file(path, error) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        raw = file.read(most_bytes + 1) if n_bytes <= most_bytes else b""
    if max(n_bytes, len(raw)) > most_bytes:
        raise error(
            "the file is far too large for what it should say",
            where=path,
            got=f"{n_bytes} bytes",
            wanted=f"at most {most_bytes}",
            fix="check that this is the right file",
        )
    if not raw:
        raise error("the file is empty", where=path, fix=FRESH_COPY)
    return raw


def read_json(path: Path, error: type[RefgptError], most_bytes: int = LARGEST_JSON) -> dict[str, Any]:
    """Read a JSON file that holds one object: ``read_bytes`` and ``parse_json``."""
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
        Of the type asked for: bytes that are not UTF-8, a byte-order mark, a duplicate key, NaN or infinity, a number
        of absurd length, nesting too deep, far too many values, anything but one object.
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
