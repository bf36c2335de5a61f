"""A prompt's keys and values on disk, which later runs reuse for prompts with the same beginning."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from refgpt._common.arguments import path_of
from refgpt._common.errors import GenerationError
from refgpt.runtime.engine import Session
from refgpt.runtime.saved import read_header


def prompt_file_of(path: str | os.PathLike[str] | None, mask: str) -> PromptFile | None:
    """The prompt file at a path, for prompts under this mask; None if there is no path.

    Raises
    ------
    GenerationError
        If the mask is "prefix", or the path is another kind of file.
    """
    if path is not None and mask == "prefix":
        raise GenerationError(
            "prompts with the prefix mask cannot share their beginnings",
            where="prompt_cache",
            fix="leave it out, or load the model with mask='causal' (--mask causal)",
        )
    return None if path is None else PromptFile(path)


class PromptFile:
    """A file that holds one prompt's keys and values, in place of a ``PrefixCache``. It changes no text.

    A prompt reuses the leading positions that it shares with the file, and replaces the file's prompt if it has more.
    Prompts with the prefix mask cannot use such a file.

    Parameters
    ----------
    path : path
        It need not exist. An existing file that is not a saved prompt is refused, not overwritten.

    Raises
    ------
    GenerationError
        If there is such a file. One that was saved with another model is refused when it is used.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path: Path = path_of("prompt_cache", path, GenerationError)
        self._n_known = 0
        if os.path.lexists(self._path):
            read_header(self._path)

    def fill(self, session: Session, slot: int, ids: Sequence[int]) -> int:
        """Fill an empty slot with as many leading positions of a text as the file has. Returns their number."""
        if not os.path.lexists(self._path):
            return 0
        self._n_known = len(session.load(self._path, slot, ids))
        return self._n_known

    def keep(self, session: Session, slot: int, ids: Sequence[int]) -> None:
        """Save the prompt in a slot, if the file does not already contain its reusable part."""
        if len(ids) - 1 > self._n_known:
            session.save(self._path, slot)
