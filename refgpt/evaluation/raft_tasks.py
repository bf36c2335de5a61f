"""The eleven tasks of RAFT (https://arxiv.org/abs/2109.14076), read from a folder of their files.

A task is ``<task>/train.csv``, as its authors publish it, or ``<task>.csv``: rows with the columns below and ``Label``,
in words. ``<task>/test.csv`` may hold labelled rows to be answered; then all rows of train.csv are examples. Otherwise
the rows are split as in HELM. ``<task>/task.json``, also the authors', lists the labels; otherwise they are the labels
that occur.

The instructions are in our own words, unless HELM's file of settings (``prompt_construction_settings.json``: a line of
columns and one of instructions) is in the folder: then its words and columns are used, and the prompts equal HELM's.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from refgpt._common.arguments import collected, path_of, whole_number
from refgpt._common.errors import DataError
from refgpt._common.small_files import LARGEST_JSON, is_there, parse_json, read_bytes, read_json, reading
from refgpt._common.wording import listed, shown
from refgpt.evaluation.tables import Table, read_csv
from refgpt.evaluation.templates import Template, check_labels, numbered

log = logging.getLogger("refgpt")

SETTINGS_FILES = ("prompt_construction_settings.json", "prompt_construction_settings.jsonl")

#: The columns that are shown to the model, in the order of HELM's settings.
FIELDS = {
    "ade_corpus_v2": ("Sentence",),
    "banking_77": ("Query",),
    "neurips_impact_statement_risks": ("Impact statement", "Paper title"),
    "one_stop_english": ("Article",),
    "overruling": ("Sentence",),
    "semiconductor_org_types": ("Organization name", "Paper title"),
    "systematic_review_inclusion": ("Title", "Abstract", "Journal"),
    "tai_safety_research": ("Title", "Abstract Note", "Publication Title", "Item Type", "Publication Year"),
    "terms_of_service": ("Sentence",),
    "tweet_eval_hate": ("Tweet",),
    "twitter_complaints": ("Tweet text",),
}

INSTRUCTIONS = {
    "ade_corpus_v2": "Say whether the sentence tells of an adverse effect of a drug.",
    "banking_77": "Say what the customer of a bank asks about.",
    "neurips_impact_statement_risks": "Say whether the impact statement mentions a harmful use of the paper's results.",
    "one_stop_english": "Say for which level of learners of English the article was written.",
    "overruling": "Say whether the sentence overrules an earlier decision of a court.",
    "semiconductor_org_types": "Say of what kind the organization is from which the paper comes.",
    "systematic_review_inclusion": "Say whether the paper belongs into a review of what makes people give to charity.",
    "tai_safety_research": "Say whether the paper is about making transformative artificial intelligence (TAI) safe.",
    "terms_of_service": "Say whether the sentence from the terms of a service may be unfair to its users.",
    "tweet_eval_hate": "Say whether the tweet is hate speech against immigrants or women.",
    "twitter_complaints": "Say whether the tweet is a complaint.",
}


@dataclass(frozen=True)
class RaftTask:
    """A task, ready to be asked.

    Attributes
    ----------
    name : str
    labels : tuple of str
    template : Template
    pool : tuple of (text, label)
        Rows from which examples are drawn.
    rows : tuple of (text, label)
        Rows to be answered.
    """

    name: str
    labels: tuple[str, ...]
    template: Template
    pool: tuple[tuple[str, str], ...]
    rows: tuple[tuple[str, str], ...]


def read_raft(folder: str | os.PathLike[str], names: Sequence[str] | None = None) -> list[RaftTask]:
    """The tasks in a folder.

    Parameters
    ----------
    folder : path
        See above. Nothing is downloaded.
    names : sequence of str, optional
        Tasks to read; by default all of the eleven that exist in the folder.

    Raises
    ------
    DataError
        If there is no task, one that was asked for is missing, or a file is damaged or lacks a column or a label.
    """
    folder = path_of("folder", folder, DataError)
    with reading(folder, DataError):
        return _read_tasks(folder, names)


def _read_tasks(folder: Path, names: Sequence[str] | None) -> list[RaftTask]:
    if not folder.is_dir():
        raise DataError("is not a directory", where=folder, wanted="a folder of RAFT's tasks")
    if names is not None:
        names = collected("names", names, "a list of names of tasks", DataError)
        if not names:
            raise DataError("name no task", where="names", fix="leave them out for all tasks")
    if unknown := [name for name in names or () if not isinstance(name, str) or name not in FIELDS]:
        raise DataError(
            "there is no such task", where="names", got=listed(map(str, unknown)), wanted=f"of {listed(FIELDS)}"
        )
    wanted = list(names or FIELDS)
    files = {name: file for name in wanted if (file := _file_of(folder, name)) is not None}
    missing = [name for name in wanted if name not in files]
    if missing and (names or not files):
        raise DataError(
            "tasks are missing",
            where=folder,
            got=f"no {listed(missing)}",
            wanted="<task>/train.csv or <task>.csv of each",
        )
    if missing:
        log.warning("not in %s, and so not in any mean: %s", folder, listed(missing))
    fields, instructions = _settings(folder)
    return [_read_task(name, file, fields[name], instructions.get(name)) for name, file in files.items()]


def split_rows(n: int) -> tuple[list[int], list[int]]:
    """HELM's split of ``n`` rows: (those to draw examples from, four in five to be answered), each in its order.

    HELM calls ``train_test_split(test_size=0.8, seed=42)`` of the package datasets, which draws a permutation from
    NumPy's generator and takes the rows to be answered from its front.
    """
    n = whole_number("n", n, 0, None, DataError)
    permuted = np.random.default_rng(42).permutation(n).tolist()
    n_answered = math.ceil(0.8 * n)
    return permuted[n_answered:], permuted[:n_answered]


def _file_of(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name / "train.csv", folder / f"{name}.csv") if is_there(path)), None)


def _settings(folder: Path) -> tuple[Mapping[str, Sequence[str]], Mapping[str, str]]:
    """Columns and instructions by task, from HELM's file; without it, our columns and no instructions."""
    path = next((folder / name for name in SETTINGS_FILES if is_there(folder / name)), None)
    if path is None:
        return FIELDS, {}
    lines = read_bytes(path, DataError, LARGEST_JSON).strip().split(b"\n")
    fields, instructions = (parse_json(line, path, DataError) for line in lines) if len(lines) == 2 else ({}, {})
    for name in FIELDS:
        columns, words = fields.get(name), instructions.get(name)
        if (
            not isinstance(columns, list)
            or not all(isinstance(column, str) for column in columns)
            or not columns
            or not isinstance(words, str)
        ):
            raise DataError(
                "are not HELM's settings",
                where=path,
                got=f"nothing usable for {name}",
                wanted="two lines: {task: [columns]} and {task: instructions}",
            )
    return fields, instructions


def _read_task(name: str, file: Path, fields: Sequence[str], instructions: str | None) -> RaftTask:
    train, test_file = read_csv(file), file.parent / "test.csv"
    test = read_csv(test_file) if file.name == "train.csv" and is_there(test_file) else None
    labels = _labels(file, [table for table in (train, test) if table is not None], instructions)
    if instructions is None:
        instructions = f"{INSTRUCTIONS[name]}\nPossible labels:\n{numbered(labels)}"
    rows = _rows(train, fields, labels)
    if test is not None:
        pool, asked = rows, _rows(test, fields, labels)
    else:
        pool, asked = ([rows[i] for i in part] for part in split_rows(len(rows)))
    return RaftTask(name, labels, Template(f"{instructions}\n\n", "", "\nLabel: "), tuple(pool), tuple(asked))


def _labels(file: Path, tables: Sequence[Table], instructions: str | None) -> tuple[str, ...]:
    """The labels: from the numbered list of HELM's instructions, otherwise task.json, otherwise those that occur."""
    listed_there: Any = re.findall(r"^\d+\. (.+)$", instructions or "", re.MULTILINE)
    listing = file.parent / "task.json"
    if not listed_there and file.name == "train.csv" and is_there(listing):
        columns = read_json(listing, DataError).get("label_columns")
        listed_there = columns.get("Label") if isinstance(columns, dict) else None
        if not isinstance(listed_there, list) or not all(isinstance(label, str) for label in listed_there):
            raise DataError(
                "lists no labels", where=listing, got=shown(columns), wanted='"label_columns": {"Label": [labels]}'
            )
        listed_there.sort()
    occurring = sorted({label for table in tables for label in table.column("Label")})
    if all(label.isdigit() for label in occurring):
        raise DataError(
            "has numbers for labels",
            where=file,
            got=listed(occurring),
            wanted="labels in words",
            fix="use the files as RAFT's authors publish them",
        )
    return check_labels(listed_there or occurring)


def _rows(table: Table, fields: Sequence[str], labels: Sequence[str]) -> list[tuple[str, str]]:
    columns = [table.column(field) for field in fields]
    texts = [
        "\n".join(f"{field}: {value}" for field, value in zip(fields, values, strict=True))
        for values in zip(*columns, strict=True)
    ]
    return list(zip(texts, table.labels("Label", labels), strict=True))
