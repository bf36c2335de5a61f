"""The journal of a batch: whatever byte a run is killed at, no record is lost and none is there twice."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path

import pytest

from refgpt import DataError
from refgpt.batches.journal import Journal
from refgpt.batches.running import Record

IDENTITY = {"prompts": "abc", "model": {"weights": "1"}}
RECORDS = [
    Record(2, {"id": "c", "text": "é\n\u2028", "metadata": {"label": "x"}}, False),
    Record(0, {"id": "a", "error": "too long"}, True),
    Record(3, {"id": "d", "text": "\ud800"}, False),
    Record(1, {"id": "b", "text": ""}, False),
]


def write_all(output: Path, stop: int = len(RECORDS)) -> Journal:
    """Write what is missing of the first records; with all of them also the output."""
    with Journal(output, len(RECORDS)) as journal:
        journal.begin(IDENTITY)
        for record in RECORDS[:stop]:
            if not journal.is_done(record.index):
                journal.write(record)
        if stop == len(RECORDS):
            journal.finish()
    return journal


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out.jsonl"


def partial(output: Path) -> Path:
    return Path(f"{output}.partial")


def ids_in(output: Path) -> list[str]:
    return [json.loads(line)["id"] for line in output.read_bytes().splitlines()]


def test_records_come_in_the_order_asked_for(output):
    write_all(output)
    assert ids_in(output) == ["a", "b", "c", "d"] and os.listdir(output.parent) == [output.name]
    with Journal(output, 4) as journal:
        journal.begin(IDENTITY)
        for record in RECORDS:
            journal.write(record)
        assert ids_in(output) == ["a", "b", "c", "d"]  # the old ones until the new ones are there
        journal.finish(in_order=False)
    assert ids_in(output) == ["c", "a", "d", "b"] and journal.n_errors == 1


def test_a_run_that_is_cut_off_at_any_byte_goes_on_where_it_was(output, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # hundreds of times would take long
    write_all(output)
    want = output.read_bytes()
    write_all(output, 3)
    whole = partial(output).read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for n_bytes in range(len(whole) + 1):
        output.unlink()
        partial(output).write_bytes(whole[:n_bytes])
        with Journal(output, 4) as journal:
            journal.begin(IDENTITY)
            assert journal.n_done == max(0, sum(end <= n_bytes for end in ends) - 1)
            for record in RECORDS:
                assert journal.is_done(record.index) == (record in RECORDS[: journal.n_done]) or record.index == 1
                if not journal.is_done(record.index):
                    journal.write(record)
            journal.finish()
        assert output.read_bytes() == want and not partial(output).exists()


@pytest.mark.parametrize(
    "rest", [b"\0" * 50, b"7\t{}\n", b'2\t{"id": "again"}\n', b'1 {"id": "b"}\n', b"1\t[]\n", b"\n"]
)
def test_what_follows_a_line_that_is_not_whole_does_not_count(output, rest):
    write_all(output, 2)
    with open(partial(output), "ab") as file:
        file.write(rest + b'1\t{"id": "b", "text": ""}\n')
    assert write_all(output, 2).n_done == 2
    assert write_all(output).n_done == 4
    assert ids_in(output) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("point", ["open", "replace", "sync", "unlink"])
def test_a_run_that_is_killed_at_the_end_loses_nothing(output, point):
    write_all(output, 3)
    child = os.fork()
    if not child:

        def die(*arguments, **options):
            os.kill(os.getpid(), signal.SIGKILL)

        from refgpt.batches import journal

        if point == "sync":
            journal.sync = die
        elif point == "open":
            journal.os.fchmod = journal.write_table = die
            journal.Path.replace = die
        else:
            setattr(journal.Path, point, die)
        write_all(output)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert partial(output).exists()
    write_all(output)
    assert ids_in(output) == ["a", "b", "c", "d"] and os.listdir(output.parent) == [output.name]


def test_what_an_earlier_run_of_something_else_has_left_is_kept(output):
    write_all(output, 2)
    before = partial(output).read_bytes()
    other = IDENTITY | {"model": {"weights": "2"}}
    with pytest.raises(DataError, match=r"another model.*--restart"), Journal(output, 4) as journal:
        journal.begin(other)
    assert partial(output).read_bytes() == before
    with Journal(output, 4) as journal:
        journal.begin(other, restart=True)
        assert journal.n_done == 0
    assert not partial(output).exists()


def test_what_is_no_journal_is_not_touched(output):
    partial(output).write_bytes(b"an answer of another command\n")
    with pytest.raises(DataError, match="in the way"):
        Journal(output, 4)
    assert partial(output).read_bytes() == b"an answer of another command\n"
    partial(output).unlink()
    with pytest.raises(DataError, match="cannot be written"):
        Journal(output.parent, 4)


def test_two_runs_do_not_write_one_output(output):
    with Journal(output, 4) as journal:
        journal.begin(IDENTITY)
        with pytest.raises(DataError, match="another run"):
            Journal(output, 4)
    assert os.listdir(output.parent) == []  # nothing was answered


def test_an_error_while_the_output_is_written_leaves_the_journal(output, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    write_all(output, 3)
    with monkeypatch.context() as patched, pytest.raises(DataError, match="No space"):
        patched.setattr("refgpt.batches.journal.os.fsync", full)
        write_all(output)
    assert os.listdir(output.parent) == [partial(output).name]
    write_all(output)
    assert ids_in(output) == ["a", "b", "c", "d"]


def test_a_table_has_a_row_for_each_text(tmp_path):
    output = tmp_path / "out.csv"
    choices = [{"text": "x,1", "finish_reason": "stop", "n_new": 2}, {"text": 'y"', "finish_reason": "length"}]
    body = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}
    refused = {"error": {"message": "bad"}}
    records = [
        {"id": 1, "metadata": {"label": "good", "id": "other"}, "n_prompt": 3, "choices": choices},
        {"id": "two", "error": "wrong", "metadata": {"colour": "red"}},
        {"custom_id": "o", "response": {"status_code": 200, "body": body}, "error": None},
        {"custom_id": "p", "response": {"status_code": 400, "body": refused}, "error": None},
        {"custom_id": "q", "response": None, "error": {"message": "worse"}},
    ]
    with Journal(output, len(records)) as journal:
        journal.begin(IDENTITY)
        for i, record in enumerate(records):
            journal.write(Record(i, record, False))
        journal.finish()
    header, *rows = csv.reader(output.read_text().splitlines())
    assert header == ["id", "text", "finish_reason", "n_prompt", "n_new", "error", "label", "metadata.id", "colour"]
    assert rows == [
        ["1", "x,1", "stop", "3", "2", "", "good", "other", ""],
        ["1", 'y"', "length", "3", "", "", "good", "other", ""],
        ["two", "", "", "", "", "wrong", "", "", "red"],
        ["o", "hi", "stop", "", "", "", "", "", ""],
        ["p", "", "", "", "", "bad", "", "", ""],
        ["q", "", "", "", "", "worse", "", "", ""],
    ]
