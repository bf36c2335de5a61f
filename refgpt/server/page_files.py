"""Serves the files of the page, and no other file."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from refgpt.server.exchange import Exchange
from refgpt.server.security import CONTENT_SECURITY_POLICY

#: Headers of every file.
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}
KINDS = {".js": "text/javascript", ".html": "text/html", ".css": "text/css", ".json": "application/json"}


@dataclass(frozen=True)
class PageFile:
    """One file, read when the server starts."""

    content: bytes
    kind: str

    async def send(self, exchange: Exchange) -> None:
        """Answer with it."""
        await exchange.send_bytes(self.content, self.kind, 200, HEADERS)


class PageFiles:
    """All files of some directories, by their paths. They are read once, so no path of a request ever reaches the disk.

    Parameters
    ----------
    directories : mapping from str to Path
        By the beginnings of their paths.
    """

    def __init__(self, directories: Mapping[str, Path]) -> None:
        self._files: dict[str, PageFile] = {}
        for start, directory in directories.items():
            for path in sorted(directory.rglob("*")):
                if path.is_file() and path.suffix not in (".py", ".pyc"):
                    kind = KINDS.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
                    text = kind.startswith("text/") or kind == "application/json"
                    name = start + path.relative_to(directory).as_posix()
                    self._files[name] = PageFile(path.read_bytes(), f"{kind}; charset=utf-8" if text else kind)
        if "/index.html" in self._files:
            self._files["/"] = self._files["/index.html"]

    def get(self, path: str) -> PageFile | None:
        """The file at a path."""
        return self._files.get(path)
