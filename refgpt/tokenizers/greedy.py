"""Segmentation without merges: the longest token first, from left to right.

ggml's programs do this for a file that has only a vocabulary (``gpt_tokenize``). The model was not trained with it:
"strawberries" may be split differently by BPE. Words are split by GPT-2's pattern with Unicode's letters; ggml uses the
locale's letters, usually ASCII.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel

from refgpt._common.errors import TokenizerError
from refgpt._common.wording import FRESH_COPY
from refgpt.tokenizers.base import Tokenizer
from refgpt.tokenizers.files import faults_named

#: The form of tokens without a text of their own, such as "<|endoftext|>".
SPECIAL = re.compile(rb"<\|\w+\|>")
#: The same form within a text. Matches never overlap.
SPECIAL_IN_TEXT = re.compile(SPECIAL.pattern.decode(), re.ASCII)
#: Longer tokens are ignored: searching for them would cost time at every letter.
LONGEST_TOKEN = 256


class GreedyTokenizer(Tokenizer):
    """A vocabulary of bytes, without merges.

    Tokens of the form "<|...|>" in a text become their ids, as in all tokenizers of this package.

    Parameters
    ----------
    tokens : mapping of int to bytes
        If a token occurs twice, encoding uses the first.
    eos_id : int or None
        The id that ends a text.
    path : Path
        Their file, for errors.
    """

    kind = "greedy"

    def __init__(self, tokens: Mapping[int, bytes], eos_id: int | None, path: Path) -> None:
        super().__init__(tokens, eos_id, f"the vocabulary in {path.name} (no merges)")
        self._ids: dict[bytes, int] = {}
        for token_id, token in sorted(tokens.items()):
            self._ids.setdefault(token, token_id)
        if not self._ids:
            raise TokenizerError("the vocabulary is empty", where=path, fix=FRESH_COPY)
        lengths: dict[bytes, set[int]] = {}
        for token in self._ids:
            if len(token) <= LONGEST_TOKEN:
                lengths.setdefault(token[:2], set()).add(len(token))
        #: How long tokens are that begin with these two bytes, or are this one, the longest first.
        self._lengths = {start: sorted(found, reverse=True) for start, found in lengths.items()}
        self._words = ByteLevel(add_prefix_space=False, use_regex=True)

    def _encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = []
        start = 0
        for found in SPECIAL_IN_TEXT.finditer(text) if special else ():
            token_id = self._ids.get(found[0].encode())
            if token_id is not None:
                ids += [*self._of_words(text[start : found.start()]), token_id]
                start = found.end()
        return ids + self._of_words(text[start:])

    def _of_words(self, text: str) -> list[int]:
        if not text:
            return []
        with faults_named("the tokenizers library cannot split this text", "the text"):
            words = self._words.pre_tokenize_str(text)
        return [token_id for _, (start, end) in words for token_id in self._of_word(text[start:end].encode())]

    def _of_word(self, word: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(word):
            two = word[at : at + 2]
            lengths = self._lengths.get(two, []) + (self._lengths.get(two[:1], []) if len(two) == 2 else [])
            token = next((token for n in lengths if (token := word[at : at + n]) in self._ids), None)
            if token is None:
                raise TokenizerError(
                    "no token spells this", where="the text", got=repr(word[at:][:16]), fix="leave it out"
                )
            ids.append(self._ids[token])
            at += len(token)
        return ids
