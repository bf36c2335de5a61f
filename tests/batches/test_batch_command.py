"""``refgpt batch``: files in and out, the bar, and a process that is killed again and again."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import refgpt
from refgpt import cli
from tests.helpers.terminal import shown_on_terminal

COMMAND = [sys.executable, "-m", "refgpt", "batch"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    requests = [{"prompt": f"{i} times upon", "max_new_tokens": 20 + i % 40} for i in range(60)]
    path.write_text("".join(json.dumps(one) + "\n" for one in requests))
    return path


def test_a_process_that_is_killed_again_and_again_answers_everything_once(prompts, tmp_path):
    output, options = tmp_path / "out.jsonl", ["--seed", "3", "--slots", "4", "-t", "1", "-q"]
    assert cli.main(["batch", str(prompts), "-o", str(tmp_path / "whole.jsonl"), *options]) == 0
    journal, before = Path(f"{output}.partial"), b""
    for n_bytes in (2500, 4500, 6500):
        with subprocess.Popen([*COMMAND, str(prompts), "-o", str(output), *options]) as process:
            while process.poll() is None and (not journal.exists() or journal.stat().st_size < n_bytes):
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL and not output.exists()
        now = journal.read_bytes()
        assert now.startswith(before[: before.rfind(b"\n") + 1]) and len(now) >= n_bytes
        before = now
    assert cli.main(["batch", str(prompts), "-o", str(output), *options]) == 0
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["out.jsonl", "prompts.jsonl", "whole.jsonl"]


def test_a_process_that_is_asked_to_end_says_where_it_goes_on(prompts, tmp_path):
    output = tmp_path / "out.jsonl"
    journal = Path(f"{output}.partial")
    with subprocess.Popen([*COMMAND, str(prompts), "-o", str(output), "-t", "1"], stderr=subprocess.PIPE) as process:
        while process.poll() is None and (not journal.exists() or journal.stat().st_size < 3000):
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        _, told = process.communicate()
    assert process.returncode == 143
    assert b"out.jsonl.partial has the answers to" in told and b"of 60 requests: the same command goes on" in told
    assert journal.read_bytes().endswith(b"}\n") and not output.exists()


def test_records_go_to_standard_output_where_no_file_is_named(tmp_path, capsys, monkeypatch):
    raw = b'{"prompt": "Once", "id": "a"}\n{"prompt": 1}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw)))
    assert cli.main(["batch", "-", "-n", "3", "--temperature", "0", "--repetition-penalty", "1", "-q"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["text"] == refgpt.load().generate("Once", temperature=0, max_new_tokens=3).text and first["id"] == "a"
    assert second["id"] == 2 and "error" in second


def test_prompts_that_are_too_long_lose_their_beginning_where_asked(tmp_path, capsys):
    path = tmp_path / "prompts.txt"
    path.write_text("x " * 600 + "\nOnce\n")
    for option in ([], ["--truncate", "left"]):
        assert cli.main(["batch", str(path), "-n", "2", "-q", *option]) == 0
        first, second = map(json.loads, capsys.readouterr().out.splitlines())
        assert ("error" in first) == (not option) and "text" in second
    assert first["n_prompt"] == refgpt.load().config.n_ctx - 2


def test_tables_become_tables(tmp_path, capsys):
    path, output = tmp_path / "questions.csv", tmp_path / "answers.csv"
    path.write_text('question,max_tokens,label\n"Once upon",3,good\nOnce,2,bad\nx\n')
    options = ["--prompt-column", "question", "-o", str(output), "--ignore-eos", "--order", "completion"]
    assert cli.main(["batch", str(path), *options]) == 0
    rows = list(csv.DictReader(output.read_text().splitlines()))
    assert [(row["id"], row["n_new"], row["label"]) for row in rows] == [
        ("4", "", ""),
        ("3", "2", "bad"),
        ("2", "3", "good"),
    ]
    assert "number of fields" in rows[0]["error"]
    told = capsys.readouterr().err
    assert "1 of 3 requests have no answer" in told and "tokens/s" in told


@pytest.mark.parametrize(
    "options, why",
    [
        (["none.jsonl"], "no such file"),
        (["prompts.jsonl", "-o", "out.txt"], "wanted a name in .jsonl or .csv"),
        (["prompts.jsonl", "-o", "prompts.jsonl"], "is also an input"),
        (["prompts.jsonl", "--slots", "0"], "--slots"),
        (["prompts.jsonl", "--prompt-column", "x", "--format", "csv"], "--prompt-column"),
        (["prompts"], "--format jsonl"),
    ],
)
def test_what_cannot_be_used_is_refused_in_the_commands_own_words(prompts, monkeypatch, capsys, options, why):
    monkeypatch.chdir(prompts.parent)
    assert cli.main(["batch", *options]) == 1
    assert why in capsys.readouterr().err and os.listdir(".") == ["prompts.jsonl"]


def test_the_bar_shows_tokens_a_second_and_the_time_that_is_left(prompts, monkeypatch):
    output = prompts.parent / "out.jsonl"
    command = ["batch", str(prompts), "-o", str(output), "--slots", "4"]
    shown = shown_on_terminal(monkeypatch, lambda: cli.main(command))
    assert "/60" in shown and "tokens/s" in shown and "<" in shown  # elapsed<left
