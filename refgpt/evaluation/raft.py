"""RAFT as HELM runs it (https://github.com/stanford-crfm/helm): few examples, one line of answer, exact matches.

For each of three trials five examples are drawn, in turn from each label, frequent labels first. Each row follows the
examples in a prompt, and the model generates greedily up to 30 tokens of one line. An answer is correct if it equals
the label exactly. The second method instead chooses the most likely label.
"""

from __future__ import annotations

import hashlib
import random
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from typing import Any

from refgpt._common.arguments import collected, instance_of, keep_whole, one_of, whole_number
from refgpt._common.errors import DataError, GenerationError
from refgpt.evaluation.answering import Answer, Request, Scored, answers
from refgpt.evaluation.classification import NORMALISATIONS, Classifier
from refgpt.evaluation.measures import Measure, Record
from refgpt.evaluation.metrics import (
    Estimate,
    Metric,
    Sample,
    accuracy,
    codes,
    difference_of,
    estimate,
    macro_f1,
    mean_over_trials,
)
from refgpt.evaluation.raft_tasks import RaftTask
from refgpt.evaluation.requests import Likelihoods, Text
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompts import fault_of, needs_tokenizer, telling_fault
from refgpt.generation.scoring import encode_continuations
from refgpt.generation.sequence import Generates
from refgpt.spec.config import AnyConfig
from refgpt.tokenizers import Tokenizer

METHODS = ("generate", "likelihood")
ANSWER = GenerationParams(temperature=0, max_new_tokens=30, stop="\n")


@dataclass(frozen=True)
class RaftSettings:
    """Settings of a run; the defaults are HELM's. Building one validates it.

    Attributes
    ----------
    method : "generate" or "likelihood"
        Exact match of the generated text, or the most likely label.
    n_shots, n_trials : int
        Number of examples before each row, and number of draws of examples.
    n_rows : int or None
        Use only the first rows of a task; None uses all.
    normalise : "sum", "mean" or "pmi"
        What a label scores, for "likelihood": see ``Classifier``.

    Raises
    ------
    GenerationError
        Names the first setting that cannot be used.
    """

    method: str = "generate"
    n_shots: int = 5
    n_trials: int = 3
    n_rows: int | None = None
    normalise: str = "sum"

    def __post_init__(self) -> None:
        one_of("method", self.method, METHODS, GenerationError)
        keep_whole(self, "n_shots", 0, None, GenerationError)
        keep_whole(self, "n_trials", 1, None, GenerationError)
        keep_whole(self, "n_rows", 1, None, GenerationError, optional=True)
        one_of("normalise", self.normalise, NORMALISATIONS, GenerationError)


@dataclass(frozen=True)
class Asked:
    """A row and its prompt.

    Attributes
    ----------
    prompt : str or None
        None if the end had to be cut off.
    ids : list of int
        Ids of the prompt.
    label : str
        The correct label.
    n_shots : int
        Number of examples that fitted.
    """

    prompt: str | None
    ids: list[int]
    label: str
    n_shots: int


@dataclass(frozen=True)
class RaftResult:
    """The answers of a model for one task.

    Attributes
    ----------
    task : RaftTask
    settings : RaftSettings
    trials : tuple of list of Asked
    answers : tuple of list of str
        The answer to each row in each trial: the generated text without surrounding spaces, or the most likely label.
    """

    task: RaftTask
    settings: RaftSettings
    trials: tuple[list[Asked], ...]
    answers: tuple[list[str], ...]

    @property
    def n_shortened(self) -> int:
        """Prompts that lost examples, or their end, to fit into the context."""
        n_shots = min(self.settings.n_shots, len(self.task.pool))
        return sum(asked.n_shots < n_shots or asked.prompt is None for trial in self.trials for asked in trial)

    def records(self) -> Iterator[dict[str, Any]]:
        """Each answer as a flat record: task, trial, row, n_shots, label and answer."""
        for trial, (asked, texts) in enumerate(zip(self.trials, self.answers, strict=True)):
            for row, (one, answer) in enumerate(zip(asked, texts, strict=True)):
                yield _record(self.task, trial, row, one, answer)


def mean_results(results: Sequence[RaftResult]) -> dict[str, Estimate]:
    """Means over tasks, with equal weights, and intervals for the choice of rows (not of tasks).

    Returns
    -------
    dict from str to Estimate
        "exact": share of answers equal to the label; "quasi-exact": equal except for case, punctuation, articles and
        spaces; "macro-F1" of exact answers.
    """

    results = collected("results", results, "what run_raft returns, for one task or more", DataError)
    for result in results:
        instance_of("results", result, RaftResult, DataError)
    samples = [_samples(result) for result in results]
    return {name: estimate(*(own[name] for own in samples)) for name in METRICS}


def mean_differences(before: Sequence[RaftResult], after: Sequence[RaftResult]) -> dict[str, Estimate]:
    """By how much the means over tasks changed between two runs, with intervals for paired rows."""
    pairs = [(_samples(one), _samples(two)) for one, two in zip(before, after, strict=True)]
    return {name: estimate(*(difference_of(one[name], two[name]) for one, two in pairs)) for name in METRICS}


def _samples(result: RaftResult) -> dict[str, Sample]:
    """Each metric of a task in the form that ``estimate`` takes."""
    found = {}
    for name, (metric, spelt) in METRICS.items():
        labels = [spelt(label) for label in result.task.labels]
        gold = codes([spelt(asked.label) for asked in result.trials[0]], labels)
        guessed = [codes([spelt(answer) for answer in texts], labels) for texts in result.answers]
        found[name] = mean_over_trials(metric, gold, guessed)
    return found


class Raft(Measure):
    """A task of RAFT, for the runner: each row in each trial is an item.

    Parameters
    ----------
    task : RaftTask
    settings : RaftSettings
    """

    def __init__(self, task: RaftTask, settings: RaftSettings = RaftSettings()) -> None:
        instance_of("task", task, RaftTask, GenerationError)
        instance_of("settings", settings, RaftSettings, GenerationError)
        self.task, self.settings, self.name = task, settings, task.name
        self._rows = task.rows[: settings.n_rows]
        self._shots = [draw_shots(task.pool, settings.n_shots, trial) for trial in range(settings.n_trials)]
        self.places = [
            f"{task.name}, trial {trial}, row {row}"
            for trial in range(settings.n_trials)
            for row in range(len(self._rows))
        ]
        self.trials: tuple[list[Asked], ...] = ()
        self._classifier: tuple[Generates, Classifier] | None = None

    def describe(self) -> dict[str, Any]:
        """Its name, what is asked, and the settings."""
        asked = repr((self.task.labels, self.task.template, self.task.pool, self._rows))
        return {
            "task": self.name,
            "data": hashlib.sha256(asked.encode()).hexdigest(),
            "n_items": len(self.places),
            "settings": asdict(self.settings),
        }

    def requests(self, config: AnyConfig, tokenizer: Tokenizer | None) -> list[list[Request]]:
        """Each row after its trial's examples, as many of them as fit."""
        if tokenizer is None:
            raise needs_tokenizer("the tasks are text", "take another model")
        room = config.n_ctx - ANSWER.max_new_tokens
        if room < 1:
            raise GenerationError(
                "the model's context is too small for an answer",
                where=self.task.name,
                got=f"{config.n_ctx} positions",
                wanted=f"more than {ANSWER.max_new_tokens}",
            )
        self.trials = tuple(
            [_ask(self.task, row, shots, room, tokenizer) for row in self._rows] for shots in self._shots
        )
        asked = [one for trial in self.trials for one in trial]
        if self.settings.method == "generate":
            return [[Text(one.ids, ANSWER)] for one in asked]
        labels = [self.task.template.answer(label) for label in self.task.labels]
        prompts = [one.ids if one.prompt is None else one.prompt for one in asked]
        return [[Likelihoods(*encode_continuations(prompt, labels, config, tokenizer))] for prompt in prompts]

    def record(self, item: int, answered: Sequence[Answer], model: Generates) -> Record:
        """The row's label and the answer: the text without spaces around it, or the most likely label."""
        (answer,) = answered
        if isinstance(answer, Scored):
            text = self._classifier_of(model).decide(answer.logprobs).label
        else:
            text = answer.text.strip()
        trial, row = divmod(item, len(self._rows))
        return _record(self.task, trial, row, self.trials[trial][row], text)

    def _classifier_of(self, model: Generates) -> Classifier:
        if self._classifier is None or self._classifier[0] is not model:
            made = Classifier(model, self.task.labels, self.task.template, normalise=self.settings.normalise)
            self._classifier = model, made
        return self._classifier[1]

    def result(self, records: Sequence[Record]) -> RaftResult:
        """All answers of a run, from its records."""
        n = len(self._rows)
        trials, texts = [], []
        for trial in range(self.settings.n_trials):
            own = records[trial * n : (trial + 1) * n]
            known = self.trials[trial] if self.trials else [None] * n
            trials.append(
                [
                    asked or Asked("", [], record["label"], record["n_shots"])
                    for asked, record in zip(known, own, strict=True)
                ]
            )
            texts.append([record["answer"] for record in own])
        return RaftResult(self.task, self.settings, tuple(trials), tuple(texts))

    def results(self, records: Sequence[Record]) -> dict[str, Estimate]:
        """Exact and quasi-exact matches, and macro-F1."""
        return mean_results([self.result(records)])

    def differences(self, before: Sequence[Record], after: Sequence[Record]) -> dict[str, Estimate]:
        """By how much each metric changed. A row is resampled with all its trials, and in both runs."""
        return mean_differences([self.result(before)], [self.result(after)])

    def check(self, record: Mapping[str, Any]) -> None:
        """Refuse a record that is not the item's: a DataError."""
        trial, row = divmod(record["item"], len(self._rows))
        want = {"trial": trial, "row": row, "label": self._rows[row][1]}
        got = {key: record.get(key) for key in want}
        if got != want or not isinstance(record.get("answer"), str) or not isinstance(record.get("n_shots"), int):
            raise DataError("a record is not that of its item", where=self.places[record["item"]], got=got, wanted=want)

    def is_right(self, record: Mapping[str, Any]) -> bool:
        """Whether an answer equals the label."""
        return bool(record["answer"] == record["label"])


def run_raft(
    model: Generates,
    task: RaftTask,
    settings: RaftSettings = RaftSettings(),
    on_answer: Callable[[], object] = lambda: None,
    on_record: Callable[[dict[str, Any]], object] = lambda record: None,
) -> RaftResult:
    """Run a task with a model. ``on_answer`` is called after each answer.

    ``on_record`` is called with each of the result's records as soon as it and those before it are known.

    Raises
    ------
    GenerationError
        If the model has no tokenizer, or its context is too small for an answer or a label.
    """
    measure, records = Raft(task, settings), []
    with telling_fault(fault_of(model)):
        asked = measure.requests(model.engine.config, model.tokenizer)
    for item, answer in enumerate(answers(model, [request for (request,) in asked])):
        records.append(measure.record(item, [answer], model))
        on_answer()
        on_record(records[-1])
    return measure.result(records)


def draw_shots(pool: Sequence[tuple[str, str]], n: int, trial: int) -> list[tuple[str, str]]:
    """The examples of a trial, as HELM draws them.

    One row is drawn from each label in turn, without replacement. Labels with more rows come first; ties are in random
    order.

    Parameters
    ----------
    pool : sequence of (text, label)
    n : int
        Largest number of examples; the pool may have fewer.
    trial : int
        Seed of Python's random generator.
    """
    n, trial = (whole_number(name, one, 0, None, DataError) for name, one in (("n", n), ("trial", trial)))
    stream = random.Random(trial)
    rows: dict[str, list[tuple[str, str]]] = {}
    for text, label in pool:
        rows.setdefault(label, []).append((text, label))
    order: list[str] = []
    for count in sorted({len(own) for own in rows.values()}, reverse=True):
        alike = [label for label in sorted(rows) if len(rows[label]) == count]
        stream.shuffle(alike)
        order += alike
    drawn: list[tuple[str, str]] = []
    labels = cycle(order)
    while len(drawn) < min(n, len(pool)):
        own = rows[next(labels)]
        if own:
            drawn.append(own.pop(stream.randrange(len(own))))
    return drawn


def plain(text: str) -> str:
    """Normalise a text for quasi-exact matches: remove case, ASCII punctuation, English articles and double spaces."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def _ask(
    task: RaftTask, row: tuple[str, str], shots: Sequence[tuple[str, str]], most: int, tokenizer: Tokenizer
) -> Asked:
    """A row after as many examples as fit into ``most`` tokens: the last examples are dropped first, then the row's
    end."""
    text, label = row
    for n_shots in range(len(shots), -1, -1):
        prompt = task.template.prompt(text, shots[:n_shots])
        ids = tokenizer.encode(prompt)
        if len(ids) <= most:
            return Asked(prompt, ids, label, n_shots)
    return Asked(None, ids[:most], label, 0)


def _record(task: RaftTask, trial: int, row: int, asked: Asked, answer: str) -> dict[str, Any]:
    return {
        "task": task.name,
        "trial": trial,
        "row": row,
        "n_shots": asked.n_shots,
        "label": asked.label,
        "answer": answer,
    }


#: The metrics of a task, each with how texts are spelt before they are compared.
METRICS: dict[str, tuple[Metric, Callable[[str], str]]] = {
    "exact": (accuracy, str),
    "quasi-exact": (accuracy, plain),
    "macro-F1": (macro_f1, str),
}
