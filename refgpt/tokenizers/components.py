"""What a tokenizer.json may ask of the tokenizers library, checked before the library sees it.

A few hundred bytes can ask for gigabytes: normalizers that each multiply a text, a table whose header names its own
size, a pattern that backtracks without end. So the steps that GPT-J and its relatives use are allowed, within bounds,
and every other is refused by its name. Models, decoders, post-processors, truncation and padding are never handed on:
see ``ByteLevelBPE``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from refgpt._common.errors import TokenizerError
from refgpt._common.wording import listed, shown

#: Steps of a sequence, sequences within it included; no published tokenizer of the family has more than six.
MOST_STEPS = 16
#: How many times as long all normalizers together may make a text.
MOST_GROWTH = 16
#: Letters of a text that a step inserts or looks for.
MOST_LETTERS = 256
#: Letters of a regular expression; those of published tokenizers have a few hundred.
MOST_LETTERS_OF_PATTERN = 4096
#: In one alternative of a regular expression: repetitions without a bound, since each raises the power of the time
#: that a text takes, and optional parts, each of which doubles it.
MOST_REPEATS, MOST_OPTIONAL = 2, 4

#: Normalizers that need no bound: applied again and again they change nothing more.
PLAIN_NORMALIZERS = ("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "Strip", "StripAccents")
PLAIN_SPLITS = ("Digits", "Punctuation", "Whitespace", "WhitespaceSplit")
#: Each spells the text anew, and a second one would spell the first one's letters.
ONCE = ("ByteLevel", "Metaspace")

FIX = "use the tokenizer that came with the model, or remove this step if you trust the file"


def check_components(description: dict[str, Any], path: Path) -> None:
    """Refuse what a tokenizer.json may not ask for.

    Parameters
    ----------
    description : dict
        The contents of the file.
    path : Path
        The file, for errors.

    Raises
    ------
    TokenizerError
        Naming the first step that is not allowed or beyond its bounds.
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
    """The steps of a component in order, those of sequences too; each has a type that is a name."""
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
    """How many times as long one normalizer may make a text, rounded up."""
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
    """What a step looks for: the text itself, or None if that is a regular expression, which is then harmless."""
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


#: The parts of a regular expression, each as its own kind. A class may hold classes.
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
    """Why a regular expression may take time without bound; "" if it cannot.

    What remains takes at most the cube of the length of a text, and its square if no letter fits two repetitions that
    stand side by side: groups are not repeated, nothing refers back, and an alternative has few repetitions.
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
    """Where a class that has been opened before ``at`` ends; None if it does not."""
    depth = 1
    while depth and at < len(pattern):
        letter = pattern[at]
        depth += (letter == "[") - (letter == "]")
        at += 2 if letter == "\\" else 1
    return None if depth else at
