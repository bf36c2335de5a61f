"""Writing a model's tokenizer beside the weights: the source's own files, or files made from its vocabulary."""

from __future__ import annotations

import logging
from pathlib import Path

from refgpt._common.file_names import TOKENIZER_FILES
from refgpt.checkpoints import Checkpoint
from refgpt.tokenizers import Tokenizer
from refgpt.tokenizers.files import read_bytes

log = logging.getLogger("refgpt")


def tokenizer_bytes(source: Checkpoint, tokenizer: Tokenizer | None) -> int:
    """Lower bound for the tokenizer's size in bytes."""
    if tokenizer is None:
        return 0
    if source.vocabulary is not None or not source.own_tokenizer:
        return sum(map(len, tokenizer.files().values()))
    there = (source.directory / name for name in TOKENIZER_FILES)
    return sum(path.stat().st_size for path in there if path.is_file())


def write_tokenizer(source: Checkpoint, tokenizer: Tokenizer | None, directory: Path) -> None:
    """Write the tokenizer, or log a warning if that is impossible.

    Raises
    ------
    TokenizerError
        If a tokenizer file of the source is too large or cannot be read.
    """
    if tokenizer is None:
        return
    if source.vocabulary is None and source.own_tokenizer:
        for name in TOKENIZER_FILES:
            if (source.directory / name).is_file():
                (directory / name).write_bytes(read_bytes(source.directory / name))
        return
    files = tokenizer.files()
    if not files:
        log.warning(
            "%s has no merges, so no tokenizer is written: put merges.txt beside it and convert again, or the "
            "original model's tokenizer beside what was written",
            source.path,
        )
    for name, contents in files.items():
        (directory / name).write_bytes(contents)
