"""Finding added tokens in a text, for tokenizers that cannot do this themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from refgpt.tokenizers.settings import FLAGS


class AddedTokens:
    """Finds tokens as the tokenizers library does, by their flags: see ``refgpt.tokenizers.settings.FLAGS``.

    Parameters
    ----------
    added : mapping of str to dict
        Each token's text, with its id and all flags.
    """

    def __init__(self, added: Mapping[str, Mapping[str, Any]]) -> None:
        # An empty model drops all text between added tokens; the offsets recover it.
        self._library = tokenizers.Tokenizer(tokenizers.models.BPE())
        flags = {text: {flag: entry[flag] for flag in FLAGS} for text, entry in added.items()}
        self._library.add_tokens([tokenizers.AddedToken(text, **flags[text]) for text in added])
        self._ids = {self._library.token_to_id(text): entry["id"] for text, entry in added.items()}

    def split(self, text: str) -> Iterator[tuple[int | None, int, int]]:
        """The parts of a text in order: where each begins and ends, with the id of an added token, or None for a text
        between them. The first part is a text."""
        encoding = self._library.encode(text, add_special_tokens=False)
        at = 0
        for found, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if start > at or at == 0:
                yield None, at, start
            yield self._ids[found], start, end
            at = end
        if at < len(text) or at == 0:
            yield None, at, len(text)
