"""Tokenizers: text to ids and back.

A model's directory may hold its tokenizer in several forms; the first of these that exists is used:

1. ``tokenizer.json``: a byte-level BPE, with its added tokens and their exact rules;
2. ``vocab.json`` and ``merges.txt``: the same in two files, with ``added_tokens.json`` for the added tokens;
3. ``encoder.json`` and ``vocab.bpe``: the same under GPT-2's first names;
4. ``tokenizer.model``: a sentencepiece model. It is also used if ``tokenizer.json`` is of another kind, because
   converters write a sentencepiece model a second time as ``tokenizer.json``.

``tokenizer_config.json``, ``special_tokens_map.json`` and ``added_tokens.json`` beside any form add tokens, and say how
these are found in a text, whether a text begins with a space, and which token ends it. The precedence is that of
transformers; see ``refgpt.tokenizers.settings``. ``model_max_length`` is not read: it is 1024 in GPT-J's although the
model has 2048 positions.

A file of weights may also bring its own vocabulary: see ``tokenizer_of``.
"""

from __future__ import annotations

import os
from pathlib import Path

from refgpt._common.arguments import path_of
from refgpt._common.errors import TokenizerError
from refgpt._common.file_names import SENTENCEPIECE
from refgpt._common.file_names import TOKENIZER_FORMS as FORMS
from refgpt._common.small_files import check_plain, is_there, reading
from refgpt.tokenizers.base import StreamDecoder, Tokenizer
from refgpt.tokenizers.files import OtherKind
from refgpt.tokenizers.vocabulary import Vocabulary

__all__ = ["StreamDecoder", "Tokenizer", "find_tokenizer", "load_tokenizer", "tokenizer_of"]

ACCEPTED = ", ".join(" with ".join(form) for form in FORMS[:-1]) + f", or {SENTENCEPIECE}"


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Load a tokenizer.

    Parameters
    ----------
    path : path
        A directory, or a file: one of the names above, any other ``.json`` with the contents of a tokenizer.json, or
        any other ``.model`` of sentencepiece.

    Returns
    -------
    Tokenizer

    Raises
    ------
    TokenizerError
        If there is none, or its files are damaged or of another kind.
    """
    path = path_of("path", path, TokenizerError)
    with reading(path, TokenizerError):
        is_directory = path.is_dir()
    if not is_directory:
        return _load_file(path)
    tokenizer = find_tokenizer(path)
    if tokenizer is None:
        raise TokenizerError("no tokenizer in this directory", where=path, wanted=ACCEPTED)
    return tokenizer


def find_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer | None:
    """The tokenizer in a model's directory.

    Returns
    -------
    Tokenizer or None
        None if the directory has no tokenizer file.

    Raises
    ------
    TokenizerError
        If the files are damaged or of another kind, or only one of two files is there.
    """
    directory = path_of("directory", directory, TokenizerError)
    with reading(directory, TokenizerError):  # a link that leads nowhere is there, and an error
        there = [[name for name in form if is_there(directory / name)] for form in FORMS]
    whole = [names for names, form in zip(there, FORMS, strict=True) if len(names) == len(form)]
    # half a pair is used only if nothing is complete; its error then names the missing half
    best = next(filter(None, whole + there), None)
    if best is None:
        return None
    try:
        return _load_file(directory / best[0])
    except OtherKind:
        if not is_there(directory / SENTENCEPIECE):
            raise
        return _load_file(directory / SENTENCEPIECE)


def tokenizer_of(vocabulary: Vocabulary, directory: Path) -> Tokenizer:
    """The tokenizer of a file of weights in ``directory`` that brings a vocabulary.

    Raises
    ------
    TokenizerError
        If the vocabulary is damaged, or files in the directory that complete it are.
    """
    from refgpt.tokenizers.embedded import embedded_tokenizer

    return embedded_tokenizer(vocabulary, directory, find_tokenizer)


def _load_file(path: Path) -> Tokenizer:
    """Load a file by its name. Of two files that belong together, either may be given. Libraries are imported when
    needed."""
    form = next((form for form in FORMS if path.name in form), ())
    if len(form) == 2:
        from refgpt.tokenizers.byte_level_bpe import load_vocab_and_merges

        return load_vocab_and_merges(path.parent / form[0], path.parent / form[1])
    if path.suffix == ".json":
        from refgpt.tokenizers.byte_level_bpe import load_tokenizer_json

        return load_tokenizer_json(path)
    if path.suffix == ".model":
        from refgpt.tokenizers.sentencepiece_model import load_model

        return load_model(path)
    check_plain(path, TokenizerError)
    raise TokenizerError("not a tokenizer's file", where=path, wanted=ACCEPTED)
