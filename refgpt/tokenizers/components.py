"""Limits on a tokenizer.json, checked before the tokenizers library reads it.

A few hundred bytes can cause an allocation of gigabytes: normalizers that each multiply a text, a table whose header
states its own size, a pattern that backtracks endlessly. So the steps that GPT-J and related models use are allowed,
within limits, and all others are refused by name. Models, decoders, post-processors, truncation and padding are never
passed on: see ``ByteLevelBPE``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refgpt._common.errors import TokenizerError
from refgpt._common.wording import listed, shown

#: Most steps of a sequence, including nested sequences; published tokenizers have at most six.
MOST_STEPS = 16
#: Largest factor by which all normalizers together may lengthen a text.
MOST_GROWTH = 16
#: Most letters of a text that a step inserts or searches for.
MOST_LETTERS = 256
#: Most letters of a regular expression; published tokenizers use a few hundred.
MOST_LETTERS_OF_PATTERN = 4096
#: Limits for one alternative of a regular expression: unbounded repetitions (each raises the exponent of the running
#: time) and optional parts (each doubles the time).
MOST_REPEATS, MOST_OPTIONAL = 2, 4

#: Normalizers that need no limit: applying them again changes nothing.
PLAIN_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents")
PLAIN_SPLITS = ("Digits", "Punctuation", "Whitespace", "WhitespaceSplit")
#: Steps allowed only once: each rewrites the text in its own letters, and a second would rewrite those letters.
ONCE = ("ByteLevel", "Metaspace")

FIX = "use the tokenizer that came with the model, or remove this step if you trust the file"


def check_components(description: dict[str, Any], path: Path) -> None:
    """Refuse a tokenizer.json with steps that are not allowed.

    Parameters
    ----------
    description : dict
        The contents of the file.
    path : Path
        The file, for errors.

    Raises
    ------
    TokenizerError
        Names the first step that is not allowed or exceeds a limit.
    """
    growth = 1
    for step in _steps(description.get("normalizer"), "normalizer", "normalizers", path):
        growth *= _growth_of(step, path)
        if growth > MOST_GROWTH:
            raise TokenizerError(
                "the normalizers would make a text many times as long",
                where=path,
                got=f"{growth} times",
                wanted=f"at most {MOST_GROWTH} times",
                fix=FIX,
            )
    seen = set()
    for step in _steps(description.get("pre_tokenizer"), "pre-tokenizer", "pretokenizers", path):
        kind = step["type"]
        if kind == "Split":
            _check_pattern(step, "Split", path)
        elif kind == "Metaspace":
            _text(step, "Metaspace", "replacement", path)
        elif kind not in (*PLAIN_SPLITS, *ONCE):
            _refuse("pre-tokenizer", kind, (*PLAIN_SPLITS, "Split", *ONCE), path)
        if kind in seen and kind in ONCE:
            raise TokenizerError(f"the pre-tokenizer {kind} is there twice", where=path, wanted="once", fix=FIX)
        seen.add(kind)


def _steps(value: object, what: str, inner: str, path: Path) -> Iterator[dict[str, Any]]:
    """The steps of a component in order, including those of nested sequences. Each has a type."""
    waiting, n_steps = [] if value is None else [value], 0
    while waiting:
        step = waiting.pop(0)
        n_steps += 1
        if n_steps > MOST_STEPS:
            raise TokenizerError(f"there are too many {what}s", where=path, wanted=f"at most {MOST_STEPS}", fix=FIX)
        if not isinstance(step, dict) or not isinstance(step.get("type"), str):
            raise TokenizerError(
                f"a {what} makes no sense", where=path, got=shown(step), wanted="an object with a type", fix=FIX
            )
        if step["type"] != "Sequence":
            yield step
        elif isinstance(step.get(inner), list):
            waiting = step[inner] + waiting
        else:
            raise TokenizerError(
                f"a sequence of {what}s makes no sense",
                where=path,
                got=shown(step.get(inner)),
                wanted="a list",
                fix=FIX,
            )


def _growth_of(step: dict[str, Any], path: Path) -> int:
    """Largest factor by which one normalizer may lengthen a text, rounded up."""
    kind = step["type"]
    if kind == "Prepend":
        _text(step, kind, "prepend", path)
        return 1
    if kind == "Replace":
        by_text = _check_pattern(step, kind, path)
        content = len(_text(step, kind, "content", path, least=0).encode("utf-8", "replace"))
        if by_text is None:  # a pattern may match at every place, between two letters too
            return 1 + content
        return max(1, -(-content // len(by_text.encode("utf-8", "replace"))))
    if kind not in PLAIN_NORMALIZERS:
        _refuse("normalizer", kind, (*PLAIN_NORMALIZERS, "Prepend", "Replace"), path)
    return 1


def _refuse(what: str, kind: str, allowed: tuple[str, ...], path: Path) -> None:
    raise TokenizerError(f"this {what} is not read", where=path, got=shown(kind), wanted=listed(allowed), fix=FIX)


def _text(step: dict[str, Any], kind: str, key: str, path: Path, least: int = 1) -> str:
    """A text of bounded length in a step."""
    text = step.get(key)
    if not isinstance(text, str) or not least <= len(text) <= MOST_LETTERS:
        raise TokenizerError(
            f"{key} of {kind} cannot be used",
            where=path,
            got=shown(text),
            wanted=f"a text of {least} to {MOST_LETTERS} letters",
            fix=FIX,
        )
    return text


def _check_pattern(step: dict[str, Any], kind: str, path: Path) -> str | None:
    """The text that a step searches for, or None for a regular expression. Raises an error if that is not harmless."""
    pattern = step.get("pattern")
    if isinstance(pattern, dict) and pattern.keys() == {"String"}:
        return _text(pattern, f"the pattern of {kind}", "String", path)
    if not isinstance(pattern, dict) or pattern.keys() != {"Regex"} or not isinstance(pattern["Regex"], str):
        raise TokenizerError(
            f"the pattern of {kind} makes no sense",
            where=path,
            got=shown(pattern),
            wanted='{"String": ...} or {"Regex": ...}',
            fix=FIX,
        )
    fault = fault_of_regex(pattern["Regex"])
    if fault:
        raise TokenizerError(
            f"the regular expression of {kind} may take for ever: {fault}",
            where=path,
            got=shown(pattern["Regex"]),
            fix=FIX,
        )
    return None


#: The parts of a regular expression, by kind. A class may contain classes.
_PARTS: dict[str, str] = {
    "reference": r"\\(?:[1-9kg])",
    "escape": r"\\(?:[pP]\{[^}]*\}|x\{[^}]*\}|.)",
    "opening": r"\((?:\?(?:[im-]*:|[im-]+\)|=|!|<=|<!|>))?",
    "closing": r"\)",
    "bounded": r"\{\d*,?\d*\}",
    "repeat": r"[*+]",
    "optional": r"\?",
    "class": r"\[",
    "or": r"\|",
    "letter": r".",
}
_PART = re.compile("|".join(f"(?P<{name}>{part})" for name, part in _PARTS.items()), re.DOTALL)


def fault_of_regex(pattern: str) -> str:
    """Why a regular expression might run without a time limit; "" if it cannot.

    The accepted expressions take at most time cubic in the length of a text, or quadratic if no letter matches two
    adjacent repetitions: groups are not repeated, there are no back references, and an alternative has few repetitions.
    """
    if len(pattern) > MOST_LETTERS_OF_PATTERN:
        return f"it has {len(pattern)} letters, more than {MOST_LETTERS_OF_PATTERN}"
    at, depth, before = 0, 0, ""
    repeats = optional = 0
    while at < len(pattern):
        part = _PART.match(pattern, at)
        kind = part.lastgroup if part else None
        if part is None or kind is None:
            return f"it cannot be read from letter {at}"
        at = part.end()
        if kind == "reference":
            return f"{part[0]} refers to another part"
        if kind == "opening" and pattern[at : at + 1] == "?":
            return "it has a group of an uncommon kind"
        if kind == "class":
            end = _end_of_class(pattern, at)
            if end is None:
                return "a class does not end"
            at = end
        quantifies = kind in ("repeat", "optional", "bounded")
        if quantifies and before == "closing" and kind != "optional":
            return "a group is repeated"
        if quantifies and before in ("repeat", "optional", "bounded"):
            if part[0] not in "?+" or before == "bounded":
                return "a repetition is repeated"
            before = "lazy"
            continue
        if quantifies and before == "lazy":
            return "a repetition is repeated"
        repeats += kind in ("repeat", "bounded")
        optional += kind == "optional"
        depth += (kind == "opening" and not part[0].endswith(")")) - (kind == "closing")
        if repeats > MOST_REPEATS:
            return f"one alternative has more than {MOST_REPEATS} repetitions"
        if optional > MOST_OPTIONAL:
            return f"one alternative has more than {MOST_OPTIONAL} optional parts"
        if kind == "bounded" and any(int(n) > MOST_LETTERS for n in re.findall(r"\d+", part[0])):
            return f"{part[0]} is more than {MOST_LETTERS}"
        if kind == "or" and depth == 0:
            repeats = optional = 0
        before = kind
    return ""


def _end_of_class(pattern: str, at: int) -> int | None:
    """Where a character class that was opened before ``at`` ends; None if it does not end."""
    depth = 1
    while depth and at < len(pattern):
        letter = pattern[at]
        depth += (letter == "[") - (letter == "]")
        at += 2 if letter == "\\" else 1
    return None if depth else at
