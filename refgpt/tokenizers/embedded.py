"""Tokenizers for files of weights that contain a vocabulary, with or without merges."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from refgpt._common.errors import TokenizerError
from refgpt._common.file_names import TOKENIZER_CONFIG
from refgpt._common.small_files import is_there, parse_json, reading
from refgpt._common.wording import FRESH_COPY, shown
from refgpt.tokenizers.base import Tokenizer
from refgpt.tokenizers.byte_level_bpe import BYTE_LEVEL, ByteLevelBPE, bytes_of_token, letters_of_bytes, read_merges
from refgpt.tokenizers.files import MOST_BYTES
from refgpt.tokenizers.greedy import SPECIAL, GreedyTokenizer
from refgpt.tokenizers.settings import Settings, added_token, settings_of
from refgpt.tokenizers.vocabulary import Vocabulary

log = logging.getLogger("refgpt")

MERGES = "merges.txt"


def embedded_tokenizer(
    vocabulary: Vocabulary, directory: Path, find_beside: Callable[[Path], Tokenizer | None]
) -> Tokenizer:
    """A tokenizer from a file's vocabulary and, if that has no merges, from the files beside it.

    A complete tokenizer file inside is used first. Otherwise merges come from the vocabulary itself, then from a
    merges.txt. Otherwise a complete tokenizer in the directory is used, if it gives every token the same id. Otherwise
    texts are split greedily into the longest tokens, with a warning.

    Parameters
    ----------
    directory : Path
        Where the file is.
    find_beside : callable
        Finds a whole tokenizer in a directory.

    Raises
    ------
    TokenizerError
        If the vocabulary or the merges make no sense.
    """
    if vocabulary.files:
        return _of_files(vocabulary)
    merges, source = vocabulary.merges, f"the vocabulary and merges in {vocabulary.path.name}"
    with reading(directory, TokenizerError):
        has_merges = merges is None and is_there(directory / MERGES)
    if has_merges:
        merges = tuple(read_merges(directory / MERGES))
        source = f"the vocabulary in {vocabulary.path.name} and {MERGES}"
    tokens = _tokens(vocabulary)
    if merges is not None:
        return _with_merges(vocabulary, tokens, merges, source)
    beside = find_beside(directory)
    if beside is not None and _agrees(beside, tokens):
        return beside
    log.warning(
        "%s has a vocabulary but no merges, so texts are cut greedily into the longest tokens, not as in training%s; "
        "put the model's merges.txt beside it",
        vocabulary.path,
        "" if beside is None else " (the tokenizer beside it is another model's)",
    )
    return GreedyTokenizer(tokens, vocabulary.eos_id, vocabulary.path)


def _of_files(vocabulary: Vocabulary) -> Tokenizer:
    """A tokenizer from an embedded tokenizer.json or tokenizer.model, with the vocabulary's end-of-text token."""
    path, eos = vocabulary.path, ""
    if vocabulary.eos_id is not None and vocabulary.eos_id < len(vocabulary.tokens):
        eos = (vocabulary.tokens[vocabulary.eos_id] or b"").decode("utf-8", "replace")
    for name, content in vocabulary.files.items():
        if len(content) > MOST_BYTES:
            raise TokenizerError(
                "the file is far too large for its purpose",
                where=f"{path}, {name}",
                got=f"{len(content)} bytes",
                wanted=f"at most {MOST_BYTES} bytes",
                fix=FRESH_COPY,
            )
    settings = Settings(eos=(eos,))
    if (config := vocabulary.files.get(TOKENIZER_CONFIG)) is not None:
        said = settings_of(parse_json(config, f"{path}, {TOKENIZER_CONFIG}", TokenizerError), path)
        settings = Settings(added=said.added, eos=(*said.eos, eos))
    if "tokenizer.json" in vocabulary.files:
        description = parse_json(vocabulary.files["tokenizer.json"], f"{path}, tokenizer.json", TokenizerError)
        return ByteLevelBPE(description, path, f"tokenizer.json in {path.name}", settings)
    from refgpt.tokenizers.sentencepiece_model import SentencePieceTokenizer

    return SentencePieceTokenizer(
        vocabulary.files["tokenizer.model"], path, f"tokenizer.model in {path.name}", settings
    )


def _tokens(vocabulary: Vocabulary) -> dict[int, bytes]:
    """The bytes of each id that has a text. An id that repeats another's text is left out."""
    found: dict[bytes, int] = {}
    special = vocabulary.special or frozenset()
    for token_id, token in enumerate(vocabulary.tokens):
        if not token:
            continue
        if vocabulary.in_letters:
            try:
                text = token.decode()
            except UnicodeDecodeError:
                raise TokenizerError(
                    "a token is not UTF-8", where=vocabulary.path, got=shown(token), fix=FRESH_COPY
                ) from None
            token = token if token_id in special else bytes_of_token(text)
        found.setdefault(token, token_id)
    return {token_id: token for token, token_id in found.items()}


def _agrees(beside: Tokenizer, tokens: dict[int, bytes]) -> bool:
    """Whether a tokenizer has the same token for every common id, and has most of the ids."""
    shared = [token_id for token_id in tokens if beside.has(token_id)]
    return 2 * len(shared) > len(tokens) and all(beside.token_bytes(n) == tokens[n] for n in shared)


def _with_merges(
    vocabulary: Vocabulary, tokens: dict[int, bytes], merges: tuple[str, ...], source: str
) -> ByteLevelBPE:
    special = vocabulary.special
    if special is None:
        special = frozenset(token_id for token_id, token in tokens.items() if SPECIAL.fullmatch(token))
    added: dict[str, int] = {}
    for token_id in sorted(special & tokens.keys()):
        try:
            added[tokens[token_id].decode()] = token_id
        except UnicodeDecodeError:  # no text contains it
            continue
    spelt = {letters_of_bytes(tokens[n]): n for n in tokens.keys() - added.values()}
    description = {"pre_tokenizer": BYTE_LEVEL, "model": {"type": "BPE", "vocab": spelt, "merges": list(merges)}}
    eos = tokens.get(vocabulary.eos_id if vocabulary.eos_id is not None else -1, b"")
    settings = Settings(
        added={text: added_token(text, token_id) for text, token_id in added.items()},
        eos=(eos.decode("utf-8", "replace"),) if eos else (),
    )
    return ByteLevelBPE(description, vocabulary.path, source, settings)
