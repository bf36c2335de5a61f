"""Files of texts to learn from: JSONL, folders of it, and plain text.

Nothing is dropped silently: too long, empty and malformed texts are counted and reported with their lines.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from refgpt._common.arguments import one_of, path_of, whole_number
from refgpt._common.errors import DataError, RefgptError, missing
from refgpt._common.small_files import open_file, parse_json, read_bytes, reading
from refgpt._common.wording import told
from refgpt.training.examples import Encoder, Example, pieces_of

#: Most bytes of a line of JSONL, or of a plain text.
LONGEST_LINE = 1 << 24
LONGEST_TEXT = 1 << 31
JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
SPLITS = ("train", "valid", "test")
#: Most line numbers reported for each reason of leaving out texts.
MOST_NAMED = 5
TOO_LONG = ("skip", "cut")


@dataclass(eq=False)
class Texts:
    """The texts of a file.

    Attributes
    ----------
    path : Path
    examples : list of Example
    n_cut : int
        How many were too long, and were cut into pieces or shortened.
    left_out : dict of str to list of str
        Places of texts that are not used, by reason: "too long", "empty", "malformed".
    """

    path: Path
    examples: list[Example] = field(default_factory=list)
    n_cut: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def leave_out(self, why: str, place: str) -> None:
        """Count a line, and remember where it is."""
        self.left_out.setdefault(why, []).append(place)

    @property
    def n_tokens(self) -> int:
        """Of all texts together."""
        return sum(map(len, self.examples))

    @property
    def n_targets(self) -> int:
        """Tokens that are to be predicted."""
        return sum(example.n_targets for example in self.examples)

    def summary(self) -> list[str]:
        """What was read and what was left out, as lines of text."""
        cut = f", {self.n_cut:,} too long and cut" if self.n_cut else ""
        learned = f"{self.n_tokens:,} tokens, {self.n_targets:,} of them learned"
        plural = "" if len(self.examples) == 1 else "s"
        lines = [f"{self.path}: {len(self.examples):,} text{plural}{cut}, {learned}"]
        for why, places in self.left_out.items():
            more = f" and {len(places) - MOST_NAMED:,} more" if len(places) > MOST_NAMED else ""
            lines.append(f"{self.path}: left out, {why}: {len(places):,} ({'; '.join(places[:MOST_NAMED])}{more})")
        return lines

    def digest(self) -> str:
        """A checksum of all ids, targets and prefix lengths."""
        found = hashlib.sha256()
        for example in self.examples:
            found.update(np.array([len(example), example.prefix_len], "<i8").tobytes())
            found.update(example.ids.astype("<i4").tobytes() + example.wanted.tobytes())
        return found.hexdigest()[:32]


def find_splits(path: str | os.PathLike[str]) -> dict[str, Path]:
    """The files of a data set: "train", and "valid" and "test" where it is a folder that has them.

    Raises
    ------
    DataError
        If there is nothing at the path, or a folder without train.jsonl or train.txt.
    """
    place = path_of("data", path, DataError)
    with reading(place, DataError):
        if not place.is_dir():
            place.stat()
            return {"train": place}
        names = {split: [place / f"{split}.jsonl", place / f"{split}.txt"] for split in SPLITS}
        found = {split: next((one for one in files if one.exists()), None) for split, files in names.items()}
    if found["train"] is None:
        raise missing(DataError)("has no file to learn from", where=place, wanted="train.jsonl or train.txt")
    return {split: one for split, one in found.items() if one is not None}


def read_texts(path: Path, encoder: Encoder, max_length: int, too_long: str = "skip", strict: bool = False) -> Texts:
    """The texts of a file.

    Parameters
    ----------
    path : Path
        JSONL, by its suffix, or plain text: a single text that is cut into pieces.
    encoder : Encoder
    max_length : int
        Most tokens of a text. A longer text without a prompt is cut into pieces, and no part is lost.
    too_long : "skip" or "cut"
        Longer texts with a prompt are left out, or cut at the end.
    strict : bool
        Whether a malformed line is an error.

    Raises
    ------
    DataError
        If the file cannot be read, or contains no usable text.
    """
    one_of("too_long", too_long, TOO_LONG, DataError)
    max_length = whole_number("max_seq_length", max_length, 2, encoder.config.n_ctx, DataError)
    texts = Texts(path)
    if path.suffix.lower() not in JSON_SUFFIXES:
        try:
            examples = encoder.encode({"text": _plain_text(path)})
        except RefgptError as fault:
            raise fault if fault.where == path else fault.within(path) from None
        _add(texts, examples, max_length, None, "the text")
    else:
        for n, raw in enumerate(_lines(path), 1):
            place, whole_place = f"line {n}", f"{path}, line {n}"
            if not raw.strip():
                texts.leave_out("empty", place)
                continue
            try:
                record = parse_json(raw, whole_place, DataError)
                examples = encoder.encode(record)
            except RefgptError as fault:
                if strict:
                    raise fault if fault.where == whole_place else fault.within(whole_place) from None
                where = "" if fault.where in (None, whole_place) else f"{told(fault.where)}: "
                got = "" if fault.got is None else f", got {told(fault.got)}"
                texts.leave_out("malformed", f"{place}: {where}{told(fault.what)}{got}")
                continue
            _add(texts, examples, max_length, None if "text" in record else too_long, place)
    if not texts.examples:
        got = "; ".join(texts.summary()[1:]) or "an empty file"
        wanted = "lines as {'text'}, {'prompt', 'completion'} or {'messages'}, or plain text"
        raise DataError("holds nothing that can be learned from", where=path, got=got, wanted=wanted)
    return texts


def _add(texts: Texts, examples: list[Example], most: int, too_long: str | None, place: str) -> None:
    """Add the examples of a record. One that is too long is cut into pieces if ``too_long`` is None."""
    if not any(example.n_targets for example in examples):
        texts.leave_out("empty", place)
    for example in examples:
        if len(example) > most and too_long is None:
            texts.n_cut += 1
            texts.examples += pieces_of(example, most)
        elif len(example) > most and (too_long == "skip" or not example.wanted[1:most].any()):
            texts.leave_out("too long", f"{place}: {len(example):,} tokens")
        elif len(example) > most:
            texts.n_cut += 1
            texts.examples.append(Example(example.ids[:most], example.wanted[:most], min(example.prefix_len, most)))
        elif example.n_targets:
            texts.examples.append(example)


def _lines(path: Path) -> Iterator[bytes]:
    with reading(path, DataError), open_file(path, DataError) as file:
        first = True
        while raw := file.readline(LONGEST_LINE + 1):
            if len(raw) > LONGEST_LINE:
                wanted = f"at most {LONGEST_LINE:,} bytes"
                raise DataError("a line is too long", where=path, wanted=wanted, fix="is it JSONL, a text a line?")
            yield raw.removeprefix(b"\xef\xbb\xbf") if first else raw
            first = False


def _plain_text(path: Path) -> str:
    try:
        return read_bytes(path, DataError, LONGEST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        raise DataError("is not UTF-8 text", where=path, got=f"byte {fault.start}") from None
