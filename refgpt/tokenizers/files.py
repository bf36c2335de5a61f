"""Reading the files of a tokenizer: bounded in size, and strict, because damage in them shows only as odd text."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from refgpt.errors import TokenizerError

#: The largest known tokenizer.json have some 35 MB; GPT-J's has 1.4 MB.
MOST_BYTES = 64 << 20

FRESH_COPY = "take a fresh copy of the file from where the model came from"


def read_bytes(path: Path) -> bytes:
    """A whole file.

    Raises
    ------
    TokenizerError
        If it is missing, no file, unreadable, empty or larger than ``MOST_BYTES``.
    """
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "there is no such file"
            raise TokenizerError(what, where=path, fix="name a tokenizer's file or a directory that holds one")
        if (n_bytes := path.stat().st_size) > MOST_BYTES:
            raise TokenizerError("too large for a tokenizer", where=path, got=n_bytes, wanted=f"<= {MOST_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise TokenizerError("cannot be read", where=path, got=error.strerror, fix="check its permissions") from error
    if not data:
        raise TokenizerError("the file is empty", where=path, fix=FRESH_COPY)
    return data


def read_text(path: Path) -> str:
    """A whole file of UTF-8; ``TokenizerError`` if it is anything else."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError("is not UTF-8", where=path, got=str(error), fix=FRESH_COPY) from None


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object; ``TokenizerError`` if the file is anything else, or a key stands twice in an object of it."""
    text = read_text(path)
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise TokenizerError("is not valid JSON", where=path, got=str(error), fix=FRESH_COPY) from None
    table: dict[str, Any] = expect(value, dict, "the file", path)
    return table


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {reprlib.repr(twice)} stands twice in one object")
    return table


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def expect(value: Any, kind: type[dict] | type[list] | type[str], what: str, where: Path) -> Any:
    """``value``, if it is of the JSON type wanted; ``TokenizerError`` if not."""
    if not isinstance(value, kind):
        got, wanted = type(value).__name__, kind.__name__
        raise TokenizerError(f"{what} is of the wrong JSON type", where=where, got=got, wanted=wanted, fix=FRESH_COPY)
    return value


def named_eos(directory: Path) -> list[str]:
    """The tokens that a model directory's settings name as the end of a text, the first choice first."""
    names = []
    for path in (directory / "special_tokens_map.json", directory / "tokenizer_config.json"):
        token = read_json_object(path).get("eos_token") if path.is_file() else None
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
