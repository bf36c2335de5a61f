"""Read the texts of a calibrated conversion, encode them, and cut them into windows."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from refgpt._common.arguments import path_of, whole_number
from refgpt._common.errors import CheckpointError, DataError
from refgpt._common.small_files import read_bytes
from refgpt._common.wording import shown
from refgpt.checkpoints import Checkpoint
from refgpt.tokenizers import Tokenizer

#: Largest text file, in bytes: far more than is needed, since a token has about four bytes.
LARGEST_TEXT = 1 << 26
#: Most tokens of a window; a model with fewer positions has shorter windows.
LONGEST_WINDOW = 2048
#: Default number of tokens to calibrate with.
N_TOKENS = 32768


def calibration_ids(
    source: Checkpoint,
    tokenizer: Tokenizer | None,
    texts: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    n_tokens: int = N_TOKENS,
) -> np.ndarray:
    """Windows of tokens, spread evenly over the texts.

    Parameters
    ----------
    source : Checkpoint
    tokenizer : Tokenizer or None
        The tokenizer that was opened with the source.
    texts : path, or sequence of paths
        Plain text in UTF-8.
    n_tokens : int
        How many tokens to take, at least two; those past the last whole window are left out.

    Returns
    -------
    ndarray [n_windows, t], int64

    Raises
    ------
    CheckpointError
        If the model has no tokenizer, or an argument cannot be used.
    DataError
        If a file cannot be read, or the files together have fewer tokens.
    """
    paths = [texts] if isinstance(texts, str | os.PathLike) else texts
    if not isinstance(paths, Sequence) or not paths:
        raise CheckpointError("cannot be used", where="calibrate", got=shown(texts), wanted="paths of text files")
    places = [path_of("calibrate", path, CheckpointError) for path in paths]
    n_tokens = whole_number("calibrate_tokens", n_tokens, 2, None, CheckpointError)
    if tokenizer is None:
        raise CheckpointError(
            "calibrating reads texts, and this model has no tokenizer",
            where=source.path,
            got=source.tokenizer_fault or None,
            fix="give one: tokenizer='DIRECTORY' (--tokenizer DIRECTORY), or leave out calibrate (--calibrate)",
        )
    ids = np.concatenate([_ids(place, tokenizer, source) for place in places])
    if len(ids) < n_tokens:
        raise DataError(
            "too little text to calibrate with",
            where=", ".join(map(str, places)),
            got=f"{len(ids)} tokens",
            wanted=f"{n_tokens}",
            fix="give more text, or ask for fewer tokens: calibrate_tokens (--calibrate-tokens)",
        )
    length = min(n_tokens, source.config.n_ctx, LONGEST_WINDOW)
    n_windows = n_tokens // length
    starts = np.arange(n_windows) * (len(ids) // n_windows)
    return ids[starts[:, None] + np.arange(length)]


def _ids(path: Path, tokenizer: Tokenizer, source: Checkpoint) -> np.ndarray:
    ids, n_vocab = np.array(tokenizer.encode(_text(path)), np.int64), source.config.n_vocab
    if ids.max(initial=0) >= n_vocab:
        raise DataError(
            "the tokenizer gives ids that the model does not have",
            where=path,
            got=int(ids.max()),
            wanted=f"0 to {n_vocab - 1}",
            fix="name the model's own tokenizer",
        )
    return ids


def _text(path: Path) -> str:
    try:
        return read_bytes(path, DataError, LARGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise DataError("is not UTF-8 text", where=path, got=f"byte {fault.start}") from None
