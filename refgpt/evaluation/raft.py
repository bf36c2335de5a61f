"""RAFT as HELM runs it (https://github.com/stanford-crfm/helm): few examples, one line of answer, exact matches.

For each of three trials five examples are drawn, in turn from each label, frequent labels first. Each row follows the
examples in a prompt, and the model generates greedily up to 30 tokens of one line. An answer is correct if it equals
the label exactly. The second method instead chooses the most likely label.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from refgpt._common.arguments import collected, instance_of, keep_whole, one_of, whole_number
from refgpt._common.errors import DataError, GenerationError
from refgpt.evaluation.classification import NORMALISATIONS, Classifier
from refgpt.evaluation.metrics import Estimate, accuracy, codes, estimate, macro_f1, mean_over_trials
from refgpt.evaluation.raft_tasks import RaftTask
from refgpt.generation.loop import generate_events
from refgpt.generation.params import GenerationParams
from refgpt.generation.prompts import needs_tokenizer
from refgpt.generation.sequence import Generates
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
        for trial, (asked, answers) in enumerate(zip(self.trials, self.answers, strict=True)):
            for row, (one, answer) in enumerate(zip(asked, answers, strict=True)):
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

    def over(metric: Callable, spelt: Callable[[str], str]) -> Estimate:
        samples = []
        for result in results:
            labels = [spelt(label) for label in result.task.labels]
            gold = codes([spelt(asked.label) for asked in result.trials[0]], labels)
            guessed = [codes([spelt(answer) for answer in answers], labels) for answers in result.answers]
            samples.append(mean_over_trials(metric, gold, guessed))
        return estimate(*samples)

    return {"exact": over(accuracy, str), "quasi-exact": over(accuracy, plain), "macro-F1": over(macro_f1, str)}


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
    instance_of("task", task, RaftTask, GenerationError)
    instance_of("settings", settings, RaftSettings, GenerationError)
    if model.tokenizer is None:
        raise needs_tokenizer("the tasks are text", "take another model")
    room = model.engine.config.n_ctx - ANSWER.max_new_tokens
    if room < 1:
        raise GenerationError(
            "the model's context is too small for an answer",
            where=task.name,
            got=f"{model.engine.config.n_ctx} positions",
            wanted=f"more than {ANSWER.max_new_tokens}",
        )
    rows, trials = task.rows[: settings.n_rows], []
    for trial in range(settings.n_trials):
        shots = draw_shots(task.pool, settings.n_shots, trial)
        trials.append([_ask(task, row, shots, room, model.tokenizer) for row in rows])
    answer = _written if settings.method == "generate" else _likeliest
    answers = []
    for number, asked in enumerate(trials):

        def give(row: int, text: str, number: int = number, asked: Sequence[Asked] = asked) -> None:
            on_record(_record(task, number, row, asked[row], text))

        answers.append(answer(model, task, asked, settings, on_answer, give))
    return RaftResult(task, settings, tuple(trials), tuple(answers))


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


def _written(
    model: Generates,
    task: RaftTask,
    trial: Sequence[Asked],
    settings: RaftSettings,
    on_answer: Callable[[], object],
    give: Callable[[int, str], None],
) -> list[str]:
    """Generate the model's answer after each prompt."""
    texts, ended, n_given = [""] * len(trial), [False] * len(trial), 0
    for event in generate_events(model, [asked.ids for asked in trial], ANSWER):
        texts[event.seq] += event.text
        if event.finish_reason:
            ended[event.seq] = True
            on_answer()
        while n_given < len(trial) and ended[n_given]:  # in order
            give(n_given, texts[n_given].strip())
            n_given += 1
    return [text.strip() for text in texts]


def _likeliest(
    model: Generates,
    task: RaftTask,
    trial: Sequence[Asked],
    settings: RaftSettings,
    on_answer: Callable[[], object],
    give: Callable[[int, str], None],
) -> list[str]:
    """The most likely label after each prompt."""
    classifier, labels = Classifier(model, task.labels, task.template, normalise=settings.normalise), []
    for row, asked in enumerate(trial):
        labels.append(classifier.choose(*classifier.encode_prompt(asked.prompt or asked.ids)).label)
        on_answer()
        give(row, labels[-1])
    return labels
