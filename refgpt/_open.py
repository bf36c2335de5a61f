"""Opening: from a path or a name to a model's files, its tokenizer and its adapters. No weights are read."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from refgpt._common.arguments import function_of, path_of
from refgpt._common.errors import RefgptError, TokenizerError
from refgpt._common.float_state import default_float_state
from refgpt._common.progress import Progress
from refgpt._common.wording import shown
from refgpt.checkpoints import Checkpoint, hub, open_checkpoint
from refgpt.tokenizers import Tokenizer, find_tokenizer, load_tokenizer, tokenizer_of

if TYPE_CHECKING:
    from refgpt.checkpoints.adapters import Pair

    #: By adapter name, the adapter's pairs and the mask of its training, if recorded.
    Named = Mapping[str, tuple[Mapping[str, Pair], str | None]]

log = logging.getLogger("refgpt")


@default_float_state()
def open_model(
    path: str | os.PathLike[str] | None = None,
    mask: str = "auto",
    progress: Progress | None = None,
    revision: str | None = None,
    tokenizer: str | os.PathLike[str] | Tokenizer | bool | None = None,
) -> tuple[Checkpoint, Tokenizer | None]:
    """Open a model's files without reading the weights. This is the first half of ``load``; it takes well under a
    second, except for archives and models that must be downloaded.

    Parameters, and the errors that need no numbers, are those of ``load``.
    """
    check_progress(progress)
    given: Tokenizer | None = None
    if isinstance(tokenizer, Tokenizer):
        given = tokenizer
    elif tokenizer is True:
        raise RefgptError(
            "cannot be used",
            where="tokenizer",
            got="True",
            wanted="a path, a Tokenizer, False or None",
            fix="leave it out",
        )
    elif tokenizer is not None and tokenizer is not False:
        given = load_tokenizer(tokenizer)
    checkpoint = open_checkpoint(_files_of(path, revision), mask, progress)
    if tokenizer is None:
        checkpoint, found = _with_own_tokenizer(checkpoint)
    else:
        checkpoint, found = replace(checkpoint, own_tokenizer=False, tokenizer_fault=""), given
    if found is not None:
        found.fit(checkpoint.config.n_vocab)
    return checkpoint, found


def open_adapter(
    adapter: str | os.PathLike[str] | None, checkpoint: Checkpoint, asked_mask: str = "auto"
) -> tuple[Checkpoint, Mapping[str, Pair]]:
    """Read the adapter of an opened model, as ``start`` takes it; no adapter has no pairs.

    Parameters
    ----------
    adapter : path or None
    checkpoint : Checkpoint
    asked_mask : "auto", "causal" or "prefix"
        What ``open_model`` was given; "auto" leaves the adapter the say.

    Returns
    -------
    checkpoint : Checkpoint
        With the mask that the adapter was trained with, if it says so.
    pairs : mapping of str to Pair

    Raises
    ------
    CheckpointError
        See ``refgpt.checkpoints.adapters.read_adapter``.
    """
    if adapter is None:
        return checkpoint, {}
    from refgpt.checkpoints.adapters import adapter_mask, read_adapter

    pairs, mask = read_adapter(adapter, checkpoint.config), adapter_mask(adapter)
    if mask not in (None, checkpoint.mask) and asked_mask == "auto":
        checkpoint = replace(checkpoint, mask=mask, mask_source="the adapter was trained with it", mask_written=False)
    return checkpoint, pairs


def open_adapters(
    adapters: Mapping[str, str | os.PathLike[str]] | None,
    adapter: str | os.PathLike[str] | None,
    checkpoint: Checkpoint,
    asked_mask: str = "auto",
) -> Named:
    """Read the adapters of an opened model that requests choose by name, as ``start`` takes them.

    Parameters are those of ``load`` and ``open_adapter``.

    Raises
    ------
    RefgptError
        If one of them cannot be used, or there is one that is always applied.
    """
    if adapters is None or adapters == {}:
        return {}
    from refgpt.checkpoints.adapters import read_adapters

    named = read_adapters(adapters, checkpoint.config)
    if named and adapter is not None:
        raise RefgptError(
            "one adapter is always applied, and others are chosen by name",
            where="adapter",
            wanted="one of the two",
            fix="give it a name too",
        )
    return {name: (pairs, mask if asked_mask == "auto" else None) for name, (pairs, mask) in named.items()}


def _with_own_tokenizer(checkpoint: Checkpoint) -> tuple[Checkpoint, Tokenizer | None]:
    """The tokenizer that came with a checkpoint; if it is broken, none, and the checkpoint knows why."""
    vocabulary, directory, fault = checkpoint.vocabulary, checkpoint.directory, checkpoint.tokenizer_fault
    if not fault:
        try:
            return checkpoint, find_tokenizer(directory) if vocabulary is None else tokenizer_of(vocabulary, directory)
        except TokenizerError as error:
            fault = str(error)
    log.warning("the model's tokenizer cannot be used, so the model works with ids only: %s", fault)
    return replace(checkpoint, tokenizer_fault=fault), None


def check_progress(progress: Progress | None) -> None:
    """Refuse what cannot be called; None is no progress."""
    if progress is not None:
        function_of("progress", progress, RefgptError)


def _files_of(path: str | os.PathLike[str] | None, revision: str | None) -> Path:
    if path is not None and hub.is_name(path):
        if revision is not None and not (isinstance(revision, str) and revision):
            raise RefgptError(
                "cannot be used", where="revision", got=shown(revision), wanted="a branch, a tag or a commit"
            )
        return hub.fetch(str(path), revision)
    if revision is not None:
        raise RefgptError(
            "only a model on the hub has revisions",
            where="revision",
            got=shown(revision),
            fix="leave it out, or give a name such as EleutherAI/gpt-j-6b",
        )
    if path is None:
        return default_model_path()
    found = path_of("path", path, RefgptError)
    if hub.is_nickname(path):
        raise RefgptError(
            "there is no such file or directory",
            where=shown(path),
            wanted="a path, or a name on the hub",
            fix=hub.WELL_KNOWN,
        )
    return found


def default_model_path() -> Path:
    """The path of the default model: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    packaged = package / "default_model"
    return packaged if packaged.is_dir() else package.parent / "weights" / "default"
