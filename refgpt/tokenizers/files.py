"""Reading the files of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refgpt._common import small_files
from refgpt._common.errors import TokenizerError, is_foreign
from refgpt._common.wording import FRESH_COPY

#: Of a vocabulary, merges or model: GPT-JT's tokenizer.json, the largest of the family, has 2.1 MB.
MOST_BYTES = 8 << 20
#: Of what only names or adds some tokens.
MOST_BYTES_OF_SETTINGS = small_files.LARGEST_JSON


#: Whose code may raise what is a fault of a file or a text; the json module is what hands files on.
LIBRARIES = ("tokenizers", "sentencepiece", "json")


class OtherKind(TokenizerError):
    """The file is a tokenizer's, but of a kind that is not read; another file beside it may do."""


def read_bytes(path: Path) -> bytes:
    """A whole file; ``TokenizerError`` if that cannot be, see ``refgpt._common.small_files``."""
    return small_files.read_bytes(path, TokenizerError, MOST_BYTES)


def read_text(path: Path) -> str:
    """A whole file of UTF-8, without a byte-order mark; ``TokenizerError`` if it is anything else."""
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TokenizerError("is not UTF-8", where=path, got=str(error), fix=FRESH_COPY) from None


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object; ``TokenizerError`` if the file is anything else, see ``refgpt._common.small_files``."""
    return small_files.read_json(path, TokenizerError, MOST_BYTES)


def read_settings(path: Path) -> dict[str, Any]:
    """The same of a file that is small beside a vocabulary."""
    return small_files.read_json(path, TokenizerError, MOST_BYTES_OF_SETTINGS)


def expect(value: Any, kind: type[dict] | type[list] | type[str], what: str, where: Path) -> Any:
    """``value``, if it is of the JSON type wanted; ``TokenizerError`` if not."""
    if not isinstance(value, kind):
        got, wanted = type(value).__name__, kind.__name__
        raise TokenizerError(f"{what} is of the wrong JSON type", where=where, got=got, wanted=wanted, fix=FRESH_COPY)
    return value


@contextmanager
def faults_named(what: str, where: object) -> Iterator[None]:
    """Turn whatever a library raises into a ``TokenizerError``.

    A panic in Rust code arrives as a child of ``BaseException``, so ``except Exception`` would let it through. What
    comes from elsewhere while the library works, such as a signal handler's TimeoutError, stays what it is.
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

    What another thread throws into this one leaves no frame of its own, but is seldom of Python's own kinds.
    """
    if type(error).__name__.startswith("Panic"):
        return True
    return type(error).__module__ == "builtins" and not is_foreign(error, *LIBRARIES)
