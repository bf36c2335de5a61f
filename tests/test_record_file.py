"""Records that outlive the run that makes them, and files that are not to be written to."""

from __future__ import annotations

import json
import os

import pytest

from refgpt._common.errors import DataError
from refgpt._common.record_file import open_record_file

ABOUT = {"task": "x", "settings": [1, None]}


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_later_run_goes_on_after_the_last_whole_record(tmp_path):
    path = tmp_path / "out.jsonl"
    with open_record_file(path, ABOUT) as file:
        file.add({"item": 0, "text": "ü\n\x1b"})
        assert lines_of(path) == [{"run": ABOUT}, {"item": 0, "text": "ü\n\x1b"}]  # at once
        file.add({"item": 1})
    with path.open("a") as file:
        file.write('{"item": 2, "te')  # the machine lost power
    with open_record_file(path, {"settings": (1, None), "task": "x"}) as file:
        assert (file.n_earlier, [one["item"] for one in file.records]) == (2, [0, 1])
        file.add({"item": 2})
    assert [one.get("item") for one in lines_of(path)] == [None, 0, 1, 2]


def test_an_interrupted_run_keeps_its_records_and_says_so(tmp_path, caplog):
    path = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt), open_record_file(path, ABOUT) as file:
        file.add({"item": 0})
        raise KeyboardInterrupt
    assert len(lines_of(path)) == 2 and "out.jsonl holds 1 record: the same command goes on there" in caplog.text


def test_without_a_record_nothing_stays_behind(tmp_path):
    path = tmp_path / "out.jsonl"
    with pytest.raises(RuntimeError), open_record_file(path, ABOUT):
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with open_record_file(None, ABOUT) as file:
        file.add({"item": 0})
    assert file.records == [{"item": 0}] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content, said",
    [
        (
            b'{"run": {"task": "y", "settings": [1, null]}}\n{"item": 0}\n',
            "a run with another task; got 'y'; wanted 'x'",
        ),
        (b'{"run": 3}\n', "a run with another task; got None"),
        (b'{"item": 0}\n', "does not hold results"),
        (b"my diary", "does not hold results"),
        (b"my diary\n", "does not hold results"),
        (b"\xff\n", "does not hold results"),
        (json.dumps({"run": ABOUT}).encode() + b"\nnonsense\n", "line 2: the text is not JSON"),
    ],
)
def test_a_file_that_is_not_of_this_run_is_left_as_it_is(tmp_path, content, said):
    path = tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said), open_record_file(path, ABOUT):
        pass
    assert path.read_bytes() == content


def test_two_runs_do_not_write_one_file(tmp_path):
    path = tmp_path / "out.jsonl"
    with (
        open_record_file(path, ABOUT) as file,
        pytest.raises(DataError, match="another run is writing it"),
        open_record_file(path, ABOUT),
    ):
        pass
    assert file.records == []


def test_what_is_no_plain_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be written"), open_record_file(tmp_path, ABOUT):
        pass
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="wanted a plain file"), open_record_file(tmp_path / "pipe", ABOUT):
        pass
    with (
        pytest.raises(DataError, match=r"cannot be written .No such file"),
        open_record_file(tmp_path / "a" / "b", ABOUT),
    ):
        pass


def test_a_line_that_cannot_be_written_whole_is_not_written(tmp_path, monkeypatch):
    path, write = tmp_path / "out.jsonl", os.write

    def full(descriptor, raw):
        if b'"item": 1' in bytes(raw):
            write(descriptor, raw[:5])
            raise OSError(28, "No space left on device")
        return write(descriptor, raw)

    with pytest.raises(DataError, match="No space left"), open_record_file(path, ABOUT) as file:
        file.add({"item": 0})
        monkeypatch.setattr(os, "write", full)
        file.add({"item": 1})
    assert lines_of(path) == [{"run": ABOUT}, {"item": 0}]
