"""RAFT's files: what is read, how it is split, and what is wrong with bad ones."""

import json
import logging
import os

import pytest

from refgpt._common.errors import DataError, GenerationError
from refgpt.evaluation import read_raft
from refgpt.evaluation.raft_tasks import FIELDS, INSTRUCTIONS, split_rows
from tests.helpers.raft_files import write_settings, write_task

YES_NO = ["yes", "no"] * 25


def test_the_split_is_helms():
    """Which rows the published runs of GPT-JT's authors (raft:subset=overruling) asked first and last."""
    pool, asked = split_rows(50)
    assert (asked[:4], asked[-2:]) == ([5, 25, 20, 49], [19, 35])
    assert set(pool) == {0, 1, 2, 8, 12, 13, 14, 33, 36, 48}
    assert sorted(pool + asked) == list(range(50))
    assert [len(part) for part in split_rows(7)] == [1, 6]


def test_a_task_of_one_column(tmp_path):
    write_task(tmp_path, "overruling", YES_NO)
    (task,) = read_raft(tmp_path)
    assert (task.name, task.labels, len(task.pool), len(task.rows)) == ("overruling", ("no", "yes"), 10, 40)
    assert task.rows[0] == ("Sentence: S5, which is no", "no")
    assert task.pool[:2] == (("Sentence: S0, which is yes", "yes"), ("Sentence: S12, which is yes", "yes"))
    assert task.template.prompt("Sentence: new", [("Sentence: old", "no")]) == (
        f"{INSTRUCTIONS['overruling']}\nPossible labels:\n1. no\n2. yes\n\n"
        "Sentence: old\nLabel: no\n\n"
        "Sentence: new\nLabel:"
    )
    assert task.template.answer("no") == " no"


def test_columns_come_in_the_order_of_the_settings(tmp_path):
    for name in FIELDS:
        write_task(tmp_path, name, YES_NO)
    tasks = {task.name: task for task in read_raft(tmp_path)}
    assert list(tasks) == list(FIELDS) and len(tasks) == 11
    assert tasks["systematic_review_inclusion"].rows[0][0] == (
        "Title: T5, which is no\nAbstract: A5, which is no\nJournal: J5, which is no"
    )
    write_settings(tmp_path)
    settled = {task.name: task for task in read_raft(tmp_path)}
    assert settled["systematic_review_inclusion"].rows[0][0] == (
        "Journal: J5, which is no\nAbstract: A5, which is no\nTitle: T5, which is no"
    )


def test_helms_settings_are_taken_to_the_letter(tmp_path):
    write_task(tmp_path, "overruling", YES_NO)
    write_settings(tmp_path, "Is {it} so?\nPossible labels:\n1. maybe so\n2. no\n3. yes")
    (task,) = read_raft(tmp_path)
    assert task.labels == ("maybe so", "no", "yes")
    assert task.template.prompt("S") == "Is {it} so?\nPossible labels:\n1. maybe so\n2. no\n3. yes\n\nS\nLabel:"


def test_rows_to_be_answered_can_be_given(tmp_path):
    write_task(tmp_path, "overruling", YES_NO)
    write_task(tmp_path, "overruling", ["yes", "perhaps"], "{}/test.csv")
    (task,) = read_raft(tmp_path)
    assert len(task.pool) == 50 and [label for _, label in task.rows] == ["yes", "perhaps"]
    assert task.labels == ("no", "perhaps", "yes")


def test_a_flat_folder_and_chosen_tasks(tmp_path, caplog):
    for name in ("overruling", "banking_77"):
        write_task(tmp_path, name, YES_NO, "{}.csv")
    with caplog.at_level(logging.WARNING, "refgpt"):
        assert [task.name for task in read_raft(tmp_path)] == ["banking_77", "overruling"]
    (said,) = caplog.records
    assert "so not in any mean: ade_corpus_v2, neurips" in said.getMessage() and "overruling" not in said.getMessage()
    assert [task.name for task in read_raft(tmp_path, ["overruling"])] == ["overruling"]
    assert len(caplog.records) == 1


def test_the_authors_list_of_labels_is_taken(tmp_path):
    path = write_task(tmp_path, "banking_77", YES_NO)
    listing = path.parent / "task.json"
    listing.write_text(json.dumps({"label_columns": {"Label": ["yes", "no", "age_limit"]}}))
    assert read_raft(tmp_path)[0].labels == ("age_limit", "no", "yes")
    listing.write_text(json.dumps({"label_columns": ["Label"]}))
    with pytest.raises(DataError, match=r"task\.json: lists no labels"):
        read_raft(tmp_path)


def spoilt(name):
    def spoil(folder):
        write_task(folder, "overruling", YES_NO)
        path = folder / "overruling" / "train.csv"
        text = path.read_text()
        if name == "column":
            path.write_text(text.replace("Sentence,", "Words,"))
        elif name == "label column":
            path.write_text(text.replace("Label,ID", "Class,ID"))
        elif name == "numbers":
            path.write_text(text.replace("yes", "2").replace("no", "1"))
        elif name == "one label":
            path.write_text(text.replace("no,", "yes,"))
        elif name == "settings":
            (folder / "prompt_construction_settings.jsonl").write_text('{"overruling": ["Sentence"]}\n')
        elif name == "columns of settings":
            write_settings(folder)
            file = folder / "prompt_construction_settings.json"
            file.write_text(file.read_text().replace('["Sentence"]', '"Sentence"'))
        elif name == "label of settings":
            write_settings(folder, "Possible labels:\n1. nay\n2. yes")

    return spoil


@pytest.mark.parametrize(
    "spoil, names, error, said",
    [
        (lambda folder: None, None, DataError, "tasks are missing; got no ade_corpus_v2, .*wanted <task>/train.csv"),
        (spoilt(""), ["banking_77"], DataError, "tasks are missing; got no banking_77; wanted"),
        (spoilt(""), ["banking"], DataError, "names: there is no such task; got banking; wanted of ade_corpus_v2"),
        (spoilt("column"), None, DataError, "train.csv: there is no such column; got 'Sentence'; wanted one of Words"),
        (spoilt("label column"), None, DataError, "no such column; got 'Label'"),
        (spoilt("numbers"), None, DataError, "has numbers for labels; got 1, 2; wanted labels in words"),
        (spoilt("one label"), None, GenerationError, "labels: leave no choice"),
        (
            spoilt("settings"),
            None,
            DataError,
            "settings.jsonl: are not HELM's settings; got nothing usable for ade_corpus",
        ),
        (
            spoilt("columns of settings"),
            None,
            DataError,
            "are not HELM's settings; got nothing usable for ade_corpus_v2",
        ),
        (spoilt("label of settings"), None, DataError, "line 3: has a label that is not among the labels; got 'no'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, spoil, names, error, said):
    spoil(tmp_path)
    with pytest.raises(error, match=said):
        read_raft(tmp_path, names)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(DataError, match="is not a directory"):
        read_raft(tmp_path / "absent")
    with pytest.raises(DataError, match="folder: cannot be used"):
        read_raft(None)


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to(path.name)]
)
@pytest.mark.parametrize("name", ["train.csv", "test.csv", "../overruling.csv", "../prompt_construction_settings.json"])
def test_what_is_no_file_is_refused_and_not_passed_over(tmp_path, name, make):
    train = write_task(tmp_path, "overruling", YES_NO)
    path = train.parent / name
    if name in ("train.csv", "../overruling.csv"):
        train.unlink()
    make(path)
    with pytest.raises(DataError, match=f"{path.name}: (is not a file|this is a link|the file cannot be read)"):
        read_raft(tmp_path)


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 5000, "nul\0"])
def test_a_folder_that_cannot_be(name):
    with pytest.raises(DataError):
        read_raft(name)
