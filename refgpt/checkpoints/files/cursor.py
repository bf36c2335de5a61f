"""Reading a mapped file from its beginning on: every step is held against what is left before anything is built."""

from __future__ import annotations

import struct
from typing import Any

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import FRESH_COPY
from refgpt.numbers.mapped import MappedFile


class Cursor:
    """A place in a mapped file that moves on as fields are read.

    Attributes
    ----------
    at : int
        How many bytes are before it.
    """

    def __init__(self, mapped: MappedFile, at: int = 0) -> None:
        self.mapped, self.at = mapped, at

    @property
    def left(self) -> int:
        """How many bytes come after it."""
        return len(self.mapped) - self.at

    def unpack(self, fields: struct.Struct, what: str) -> tuple[Any, ...]:
        """The next numbers; ``what`` they are is for the error."""
        start = self.skip(fields.size, what)
        return fields.unpack_from(self.mapped, start)

    def take(self, n_bytes: int, what: str) -> bytes:
        """The next bytes."""
        start = self.skip(n_bytes, what)
        return self.mapped[start : self.at]

    def skip(self, n_bytes: int, what: str) -> int:
        """Move on without reading; returns where the skipped bytes begin.

        Raises
        ------
        CheckpointError
            If fewer are left.
        """
        if not 0 <= n_bytes <= self.left:
            raise CheckpointError(
                f"the file ends within {what}",
                where=self.mapped.path,
                got=f"{n_bytes} bytes at {self.at}",
                wanted=f"at most {self.left}",
                fix=FRESH_COPY,
            )
        start = self.at
        self.at += n_bytes
        return start
