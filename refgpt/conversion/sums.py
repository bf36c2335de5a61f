"""SHA256SUMS: one line per file with its SHA-256 and name, the format that ``sha256sum --check`` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

MANIFEST = "SHA256SUMS"


class Sums:
    """Checksums of a directory's files: large files are summed while they are written, the others at the end."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._found: dict[str, str] = {}

    @contextmanager
    def writing(self, name: str) -> Iterator[SummedFile]:
        """Create a file that is summed while it is written."""
        with (self.directory / name).open("wb") as file:
            summed = SummedFile(file)
            yield summed
        self._found[name] = summed.sum.hexdigest()

    def write(self) -> None:
        """Write the manifest of all files in the directory."""
        for path in self.directory.iterdir():
            if path.name not in self._found:
                self._found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        lines = [f"{found}  {name}\n" for name, found in sorted(self._found.items())]
        (self.directory / MANIFEST).write_text("".join(lines), encoding="utf-8")


class SummedFile:
    """A file that is written once from beginning to end."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sum = file, hashlib.sha256()

    def write(self, piece: bytes | np.ndarray) -> int:
        """Write bytes, or a contiguous array; returns how many bytes that was."""
        raw = piece.reshape(-1).view(np.uint8).data if isinstance(piece, np.ndarray) else piece
        self.sum.update(raw)
        return self._file.write(raw)
