"""What a file of weights says about its tokenizer, where it says anything: plain data, of which a tokenizer is made."""

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
        By id, as stored; None for an id that means no text.
    in_letters : bool
        Whether they are spelt in GPT-2's letters, one for each byte (a space is "Ġ"), instead of plain bytes.
    merges : tuple of str or None
        Pairs in GPT-2's letters with a space between, the most urgent first; None if the file has none.
    special : frozenset of int or None
        The ids of tokens that are looked for in a text before anything else; None if the file does not tell.
    eos_id : int or None
        The id that ends a text.
    path : Path
        The file, for errors.
    files : mapping of str to bytes
        Whole files of a tokenizer that it has inside, by name; they tell more than the lists do.
    """

    tokens: tuple[bytes | None, ...]
    in_letters: bool
    merges: tuple[str, ...] | None
    special: frozenset[int] | None
    eos_id: int | None
    path: Path
    files: Mapping[str, bytes] = field(default_factory=dict)
