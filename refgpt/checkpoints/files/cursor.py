"""Reading a mapped file sequentially. Every length is checked against the remaining bytes before anything is
allocated."""

from __future__ import annotations

import struct
from typing import Any

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import FRESH_COPY
from refgpt.numbers.mapped import MappedFile


class Cursor:
    """A position in a mapped file that advances as fields are read.

    Attributes
    ----------
    at : int
        Offset in bytes.
    """

    def __init__(self, mapped: MappedFile, at: int = 0) -> None:
        self.mapped, self.at = mapped, at

    @property
    def left(self) -> int:
        """Number of remaining bytes."""
        return len(self.mapped) - self.at

    def unpack(self, fields: struct.Struct, what: str) -> tuple[Any, ...]:
        """Read the next numbers; ``what`` describes them in errors."""
        start = self.skip(fields.size, what)
        return fields.unpack_from(self.mapped, start)

    def take(self, n_bytes: int, what: str) -> bytes:
        """Read the next bytes."""
        start = self.skip(n_bytes, what)
        return self.mapped[start : self.at]

    def skip(self, n_bytes: int, what: str) -> int:
        """Skip bytes; returns the offset at which they begin.

        Raises
        ------
        CheckpointError
            If fewer bytes remain.
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
