"""Reading the files of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refgpt._common import small_files
from refgpt._common.errors import TokenizerError, is_foreign
from refgpt._common.wording import FRESH_COPY

#: Size limit for a vocabulary, merges or model. The largest known, GPT-JT's tokenizer.json, has 2.1 MB.
MOST_BYTES = 8 << 20
#: Size limit for files that only name or add some tokens.
MOST_BYTES_OF_SETTINGS = small_files.LARGEST_JSON


#: Whose code may raise what is a fault of a file or a text; the json module is what hands files on.
LIBRARIES = ("tokenizers", "sentencepiece", "json")


class OtherKind(TokenizerError):
    """The file is a tokenizer of an unsupported kind; another file beside it may be usable."""


def read_bytes(path: Path) -> bytes:
    """Read a whole file. Raises a ``TokenizerError``; see ``refgpt._common.small_files``."""
    return small_files.read_bytes(path, TokenizerError, MOST_BYTES)


def read_text(path: Path) -> str:
    """Read a whole UTF-8 file without its byte-order mark. Raises a ``TokenizerError``."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError("is not UTF-8", where=path, got=str(error), fix=FRESH_COPY) from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises a ``TokenizerError``; see ``refgpt._common.small_files``."""
    return small_files.read_json(path, TokenizerError, MOST_BYTES)


def read_settings(path: Path) -> dict[str, Any]:
    """Like ``read_json_object``, for files that are much smaller than a vocabulary."""
    return small_files.read_json(path, TokenizerError, MOST_BYTES_OF_SETTINGS)


def expect(value: Any, kind: type[dict] | type[list] | type[str], what: str, where: Path) -> Any:
    """Return ``value`` if it has the wanted JSON type, otherwise raise a ``TokenizerError``."""
    if not isinstance(value, kind):
        got, wanted = type(value).__name__, kind.__name__
        raise TokenizerError(f"{what} is of the wrong JSON type", where=where, got=got, wanted=wanted, fix=FRESH_COPY)
    return value


@contextmanager
def faults_named(what: str, where: object) -> Iterator[None]:
    """Turn a library's exceptions into a ``TokenizerError``.

    A panic in Rust code arrives as a subclass of ``BaseException``, so ``except Exception`` would not catch it.
    Exceptions from elsewhere, such as a signal handler's TimeoutError, pass unchanged.
    """
    try:
        yield
    except (TokenizerError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        if not _is_the_librarys(error):
            raise
        raise TokenizerError(what, where=where, got=str(error)[:200], fix=FRESH_COPY) from error


def _is_the_librarys(error: BaseException) -> bool:
    """Whether a library has raised this: a panic, or one of Python's own kinds while nobody else's code ran.

    An exception that another thread raises in this one has no frame of that thread, but is rarely a built-in kind.
    """
    if type(error).__name__.startswith("Panic"):
        return True
    return type(error).__module__ == "builtins" and not is_foreign(error, *LIBRARIES)
