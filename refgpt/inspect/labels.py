"""Visible labels of tokens: plain characters, and marks for invisible or misleading ones.

A token is a string of bytes. It may hold a part of a character, blanks, controls, or characters that turn the direction
of the text around them; a page that printed them as they are would show something else than the model was given.
"""

from __future__ import annotations

from unicodedata import category

from refgpt._common.wording import VISIBLE_BLANKS

#: Longer labels are cut; the list of bytes is not.
MOST_SHOWN = 48
#: What ``surrogateescape`` makes of the byte 0.
ESCAPED = 0xDC00


def label(raw: bytes, most: int = MOST_SHOWN, blanks: bool = True) -> list[str]:
    """The label of a token's bytes.

    Parameters
    ----------
    raw : bytes
    most : int
        Number of characters after which the text is cut.
    blanks : bool
        Whether a space is shown as a mark; running text is easier to read without.

    Returns
    -------
    list of str
        Text and marks by turns, beginning with text, which may be empty: b" a\\xe2" -> ["", "␣", "a", "xE2"].
        A mark stands for a blank, for a byte that is no whole character (x and two digits), or for a character that
        cannot be seen (U+ and its number).
    """
    parts, marked = [""], False
    text = raw.decode("utf-8", "surrogateescape")
    for i, character in enumerate(text[:most]):
        mark = None if character == " " and not blanks else _mark(character, first=i == 0)
        if mark is None:
            if marked:
                parts.append("")
            parts[-1] += character
        else:
            parts += ["", mark] if marked else [mark]
        marked = mark is not None
    if len(text) > most:
        parts += ["", "…"] if marked else ["…"]
    return parts


def _mark(character: str, first: bool) -> str | None:
    """The mark for a character that cannot be shown; None for one that can."""
    code = ord(character)
    if ESCAPED <= code < ESCAPED + 256:
        return f"x{code - ESCAPED:02X}"
    kind = category(character)
    # Controls, formats, unassigned and private ones; separators; an accent with nothing of its own to stand on.
    if kind[0] in "CZ" or (first and kind[0] == "M"):
        return VISIBLE_BLANKS.get(character, f"U+{code:04X}")
    return None
