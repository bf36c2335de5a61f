"""The tokenizer data in a file of weights, as plain data from which a tokenizer can be built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """A byte-level vocabulary.

    Attributes
    ----------
    tokens : tuple of bytes or None
        By id, as stored; None for an id without a text.
    in_letters : bool
        Whether the tokens are written in GPT-2's letters, one for each byte (a space is "Ġ"), instead of plain bytes.
    merges : tuple of str or None
        Pairs in GPT-2's letters with a space between, in order of priority; None if the file has none.
    special : frozenset of int or None
        Ids of tokens that are searched for in a text first; None if the file does not say.
    eos_id : int or None
        The id that ends a text.
    path : Path
        The file, for errors.
    files : mapping of str to bytes
        Complete tokenizer files embedded in the file, by name; they contain more than the lists.
    """

    tokens: tuple[bytes | None, ...]
    in_letters: bool
    merges: tuple[str, ...] | None
    special: frozenset[int] | None
    eos_id: int | None
    path: Path
    files: Mapping[str, bytes] = field(default_factory=dict)
