"""Reading the files of a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refgpt._common import small_files
from refgpt._common.errors import TokenizerError
from refgpt._common.file_names import TOKENIZER_SETTINGS
from refgpt._common.wording import FRESH_COPY

#: Of a vocabulary, merges or model: GPT-JT's tokenizer.json, the largest of the family, has 2.1 MB.
MOST_BYTES = 8 << 20
#: Of what only names or adds some tokens.
MOST_BYTES_OF_SETTINGS = small_files.LARGEST_JSON


class OtherKind(TokenizerError):
    """The file is a tokenizer's, but of a kind that is not read; another file beside it may do."""


def read_bytes(path: Path) -> bytes:
    """A whole file; ``TokenizerError`` if that cannot be, see ``refgpt._common.small_files``."""
    return small_files.read_bytes(path, TokenizerError, MOST_BYTES)


def read_text(path: Path) -> str:
    """A whole file of UTF-8; ``TokenizerError`` if it is anything else."""
    try:
        return read_bytes(path).decode("utf-8")
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


def named_eos(directory: Path) -> list[str]:
    """The tokens that a model directory's settings name as the end of a text, the first choice first."""
    names = []
    for path in (directory / name for name in TOKENIZER_SETTINGS):
        token = read_settings(path).get("eos_token") if path.is_file() else None
        if token is not None:
            content = token.get("content") if isinstance(token, dict) else token
            names.append(expect(content, str, "eos_token", path))
    return names


@contextmanager
def faults_named(what: str, where: object) -> Iterator[None]:
    """Turn whatever a library raises into a ``TokenizerError``.

    A panic in Rust code arrives as a child of ``BaseException``, so ``except Exception`` would let it through.
    """
    try:
        yield
    except (TokenizerError, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        raise TokenizerError(what, where=where, got=str(error)[:200], fix=FRESH_COPY) from error
