"""Texts to learn from as ids: which tokens of each are to be predicted, and which see one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refgpt._common.errors import DataError
from refgpt._common.wording import listed, shown
from refgpt.generation.chat_templates import ChatTemplate
from refgpt.generation.prompts import prompt_ids
from refgpt.generation.scoring import encode_after
from refgpt.spec.config import AnyConfig
from refgpt.spec.gradients import NO_TARGET
from refgpt.tokenizers import Tokenizer
from refgpt.training.batch import Batch

#: The forms of records, each with its keys.
FORMS = (("text",), ("prompt", "completion"), ("messages",))
LOSSES = ("completion", "all")

#: A piece of a text, and whether its tokens are targets of the loss.
Segment = tuple[str, bool]


@dataclass(frozen=True, eq=False)
class Example:
    """A text to learn from.

    Attributes
    ----------
    ids : ndarray of int32 [t]
    wanted : ndarray of bool [t]
        Which tokens are to be predicted; the first never is.
    prefix_len : int
        Number of leading tokens that see each other.
    """

    ids: np.ndarray
    wanted: np.ndarray
    prefix_len: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def n_targets(self) -> int:
        """How many tokens are to be predicted."""
        return int(self.wanted[1:].sum())

    @property
    def labels(self) -> np.ndarray:
        """int64 [t], as ``Batch`` takes them."""
        return np.where(self.wanted, self.ids, NO_TARGET).astype(np.int64)


def batch_of(examples: Sequence[Example]) -> Batch:
    """Some examples as a batch, padded to the longest."""
    lens = [len(example) for example in examples]
    ids = np.zeros((len(examples), max(lens)), np.int64)
    labels = np.full_like(ids, NO_TARGET)
    for row, example in enumerate(examples):
        ids[row, : len(example)], labels[row, : len(example)] = example.ids, example.labels
    return Batch(ids, labels, np.array([example.prefix_len for example in examples]), np.array(lens))


@dataclass(frozen=True)
class Encoder:
    """Turns records into examples.

    Attributes
    ----------
    config : Config
    tokenizer : Tokenizer
    template : ChatTemplate
        The format of conversations.
    loss : "completion" or "all"
        Targets of the loss in texts with a prompt: the completion alone, or the prompt too.
    prefix : bool
        Whether all tokens of a prompt see each other, as in GPT-JT.
    end : bool
        Whether to append the end-of-text token to each text, if the model has one.
    """

    config: AnyConfig
    tokenizer: Tokenizer
    template: ChatTemplate
    loss: str = "completion"
    prefix: bool = False
    end: bool = True

    def encode(self, record: Mapping[str, Any]) -> list[Example]:
        """The examples of a record: one, or with the prefix mask one for each answer of a conversation.

        Pieces of a text follow each other as in ``Model.score``: each has the ids that it has within the whole; where a
        token would span the seam, the pieces are encoded apart. So a completion has the ids that the model is given, or
        chooses from, where it writes after that prompt.

        Raises
        ------
        RefgptError
            If the record has none of the forms.
        """
        segments = self.segments(record)
        last = max((i for i, (text, wanted) in enumerate(segments) if wanted and text), default=None)
        if last is None:
            return []
        if not self.prefix:
            return [self._example(segments, self.end)]
        answers = [i for i, (text, wanted) in enumerate(segments) if wanted and text]
        asked = [(text, False) for text, _ in segments]
        return [self._example([*asked[:i], segments[i]], self.end and i == last) for i in answers]

    def segments(self, record: Mapping[str, Any]) -> list[Segment]:
        """A record as pieces of text."""
        found = [form for form in FORMS if any(key in record for key in form)]
        if len(found) != 1 or not all(key in record for key in found[0]):
            wanted = " or ".join("{" + ", ".join(map(repr, form)) + "}" for form in FORMS)
            raise DataError("has not the keys of one form", got=f"keys {listed(record) or 'none'}", wanted=wanted)
        if found[0] == ("messages",):
            pieces = self.template.pieces_of(record["messages"])
            if len(pieces) % 2:
                raise DataError("messages do not end with an answer")
            return pieces
        for key in found[0]:
            if not isinstance(record[key], str):
                raise DataError(f"{key} is no text", got=shown(record[key]))
        if found[0] == ("text",):
            return [(record["text"], True)]
        return [(record["prompt"], False), (record["completion"], True)]

    def _example(self, segments: Sequence[Segment], end: bool) -> Example:
        text, prefix_len = "", 0
        ids: list[int] = []
        learned: list[bool] = []
        for i, (piece, wanted) in enumerate(segments):
            if not i and not wanted and not piece:
                new = prompt_ids("", self.config, self.tokenizer)  # the beginning of a text
            else:
                new = encode_after((text, ids), piece, self.tokenizer) if text else self.tokenizer.encode(piece)
            prefix_len = len(ids) if self.prefix and i == len(segments) - 1 else 0
            text, ids = text + piece, [*ids, *new]
            learned += [wanted or self.loss == "all"] * len(new)
        eos_id = self.tokenizer.eos_id if self.config.eos_id is None else self.config.eos_id
        if end and eos_id is not None and ids[-1:] != [eos_id]:
            ids, learned = [*ids, eos_id], [*learned, True]
        return Example(np.array(ids, np.int32), np.array(learned, bool), prefix_len)


def pieces_of(example: Example, most: int) -> list[Example]:
    """A long text as pieces of at most ``most`` tokens; each begins with the last token of the one before.

    So every token but the very first is predicted once.
    """
    starts = range(0, max(1, len(example) - 1), max(1, most - 1))
    return [Example(example.ids[at : at + most], example.wanted[at : at + most]) for at in starts]
