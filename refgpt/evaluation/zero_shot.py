"""The tasks of GPT-J's zero-shot table: LAMBADA, HellaSwag, PIQA and WinoGrande.

What is asked for each row is lm-evaluation-harness's: the same contexts and continuations, to the character. How these
become ids is a matter of the framing (``refgpt.evaluation.requests``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from refgpt._common.errors import DataError, RefgptError
from refgpt.evaluation.answering import Answer, Request, Scored
from refgpt.evaluation.measures import Measure, Metric, Record, perplexity_of
from refgpt.evaluation.requests import LM_EVAL, Framing, encode_pairs
from refgpt.evaluation.rows import Row, Rows
from refgpt.generation.prompts import needs_tokenizer
from refgpt.generation.sequence import Generates
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

log = logging.getLogger("refgpt")

ACC, ACC_NORM = Metric("acc", "acc"), Metric("acc_norm", "acc_norm")
PERPLEXITY = Metric("perplexity", "loglikelihood", of=perplexity_of, percent=False, higher_is_better=False)


@dataclass(frozen=True)
class Question:
    """What is asked for one row.

    Attributes
    ----------
    pairs : tuple of (context, continuation)
        One for each choice; of LAMBADA a single one.
    gold : int
        The number of the right choice.
    lengths : tuple of int
        The length of each choice in characters, by which ``acc_norm`` divides.
    """

    pairs: tuple[tuple[str, str], ...]
    gold: int = 0
    lengths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Task:
    """A task: which columns it reads, what it asks, and what is measured.

    Attributes
    ----------
    name : str
    about : str
        In a few words.
    ask : callable
        From a row to its question.
    metrics : tuple of Metric
    variants : tuple of str
        Versions of the data, which are asked alike; the first is the default.
    looks_like : callable
        From a row to the version that it seems to be of, or None.
    """

    name: str
    about: str
    ask: Callable[[Row], Question]
    metrics: tuple[Metric, ...]
    variants: tuple[str, ...] = ()
    looks_like: Callable[[Row], str | None] = lambda row: None


def _lambada(row: Row) -> Question:
    """The last word of a passage. Words are separated by single spaces."""
    context, space, word = row.text("text").rpartition(" ")
    if not space:
        raise row.error("has a passage of one word", row.text("text"), "words with spaces between them")
    return Question(((context, f" {word}"),))


def _version_of_lambada(row: Row) -> str:
    """The standard version is in lower case, with spaces around punctuation; OpenAI's is as it was printed."""
    text = row.text("text")
    return "standard" if text == text.lower() and re.search(r" [.,?!;]( |$)|``| '", text) else "openai"


def _hellaswag(row: Row) -> Question:
    """Which of four endings goes on."""
    context = f"{row.text('activity_label')}: {row.text('ctx_a')} {row.text('ctx_b').capitalize()}"
    endings = [without_brackets(ending) for ending in row.texts("endings")]
    gold = row.number("label", 0, len(endings) - 1)
    return _choice(without_brackets(context), endings, gold)


def _piqa(row: Row) -> Question:
    """Which of two solutions serves a goal."""
    solutions = [row.text("sol1"), row.text("sol2")]
    return _choice(f"Question: {row.text('goal')}\nAnswer:", solutions, row.number("label", 0, 1))


def _winogrande(row: Row) -> Question:
    """Which of two names fits the blank: the same end of the sentence is scored after either (partial evaluation)."""
    before, blank, after = row.text("sentence").partition("_")
    if not blank:
        raise row.error("has a sentence without a blank", row.text("sentence"), "one _")
    options = row.text("option1"), row.text("option2")
    pairs = tuple((before + option, f" {after.strip()}") for option in options)
    return Question(pairs, row.number("answer", 1, 2) - 1, tuple(map(len, options)))


def _choice(context: str, choices: Sequence[str], gold: int) -> Question:
    return Question(tuple((context, f" {choice}") for choice in choices), gold, tuple(map(len, choices)))


def without_brackets(text: str) -> str:
    """A text of HellaSwag without the marks that its source, WikiHow, has left in it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task(
                "lambada",
                "the last word of a passage",
                _lambada,
                (PERPLEXITY, ACC),
                ("openai", "standard"),
                _version_of_lambada,
            ),
            Task("hellaswag", "which of four endings goes on", _hellaswag, (ACC, ACC_NORM)),
            Task("piqa", "which of two solutions serves a goal", _piqa, (ACC, ACC_NORM)),
            Task("winogrande", "which of two names fits a blank", _winogrande, (ACC,)),
        )
    }
)


class ZeroShot(Measure):
    """A task of the table over a data set.

    Parameters
    ----------
    task : Task
        One of ``TASKS``.
    data : Rows
        As ``read_rows`` returns them.
    framing : Framing
        How texts become ids.
    variant : str, optional
        Which version of the data it is, for tasks that have several.
    n_rows : int, optional
        Only the first rows.

    Raises
    ------
    DataError
        If a row lacks a column or has an unusable value, or there is no such variant.
    """

    def __init__(
        self,
        task: Task,
        data: Rows,
        framing: Framing = LM_EVAL,
        variant: str | None = None,
        n_rows: int | None = None,
    ) -> None:
        if variant is not None and variant not in task.variants:
            wanted = ", ".join(task.variants) or f"none, since {task.name} has one version"
            raise DataError("there is no such version of the data", where="variant", got=variant, wanted=wanted)
        version = variant or next(iter(task.variants), None)
        self.name = task.name if version is None else f"{task.name}_{version}"
        self.metrics, self.framing, self._data = task.metrics, framing, data
        rows = data.rows[:n_rows]
        self.places = [row.place for row in rows]
        self.questions = [task.ask(row) for row in rows]
        self._clean = framing.cleaner()
        seen = [task.looks_like(row) for row in rows]
        for other in task.variants:
            if other != version and seen.count(other) > 0.9 * len(seen):
                log.warning("%s: the texts look like the version %s, and are measured as %s", data.path, other, version)

    def describe(self) -> dict[str, Any]:
        """Its name, the data's checksum, the number of items and the framing."""
        return {
            "task": self.name,
            "data": self._data.sha256,
            "n_items": len(self.questions),
            "framing": self.framing.describe(),
        }

    def requests(self, config: AnyConfig, tokenizer: Tokenizer | None) -> list[list[Request]]:
        """The requests of each item; choices after one context share a request."""
        if tokenizer is None:
            raise needs_tokenizer("the tasks are text", "take another model")
        found: list[list[Request]] = []
        for place, question in zip(self.places, self.questions, strict=True):
            try:
                found.append([*encode_pairs(question.pairs, self.framing, config, tokenizer, self._clean)])
            except RefgptError as error:
                raise error.within(place) from None
        return found

    def record(self, item: int, answered: Sequence[Answer], model: Generates) -> Record:
        """The log-likelihood of each choice, and whether the right one has the highest."""
        scored = [answer for answer in answered if isinstance(answer, Scored)]
        sums = [value for answer in scored for value in answer.sums]
        greedy = [value for answer in scored for value in answer.greedy]
        question = self.questions[item]
        if len(sums) == 1:
            return {"item": item, "loglikelihood": sums[0], "acc": int(greedy[0])}
        record = {"item": item, "gold": question.gold, "loglikelihoods": sums, "greedy": [int(one) for one in greedy]}
        record["acc"] = int(np.argmax(sums) == question.gold)
        if ACC_NORM in self.metrics:
            normed = np.argmax(np.array(sums) / np.maximum(question.lengths, 1))
            record["acc_norm"] = int(normed == question.gold)
        return record
