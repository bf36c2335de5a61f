"""Where results go: nothing is destroyed, nothing that was computed is lost, nothing piles up."""

from __future__ import annotations

import csv
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

import refgpt
from refgpt._common.errors import DataError
from refgpt.cli import kernels, results
from refgpt.cli.prompts import LARGEST_PROMPT
from refgpt.cli.results import check_suffix, open_output
from refgpt.evaluation import RaftSettings, read_raft, run_raft
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.raft_files import write_task
from tests.helpers.tiny import random_params, tiny_config

OLD = "the results of last night\n"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "out.csv"
    path.write_text(OLD)
    return path


def test_the_old_file_stays_until_the_new_one_is_whole(old):
    with open_output(str(old)) as output:
        assert output.path == old.resolve()
        output.write("one\n")
        output.write("two\n")
        assert old.read_text() == OLD and Path(f"{old}.partial").read_text() == "one\ntwo\n"  # no buffer between
    assert old.read_text() == "one\ntwo\n" and names(old.parent) == ["out.csv"]


def test_an_output_without_a_line_is_empty(old):
    Path(f"{old}.partial").write_text("of a killed run\n")
    with open_output(str(old)):
        pass
    assert old.read_text() == "" and names(old.parent) == ["out.csv"]


@pytest.mark.parametrize(
    "fault", [ValueError, KeyboardInterrupt, SystemExit, TimeoutError("a signal"), OSError(28, "full")]
)
def test_what_fails_before_the_first_line_changes_nothing(old, fault):
    with pytest.raises(type(fault) if isinstance(fault, Exception) else fault) as caught, open_output(str(old)):
        raise fault
    assert not isinstance(caught.value, DataError)  # what the block raises is the block's own
    assert old.read_text() == OLD and names(old.parent) == ["out.csv"]


def test_what_a_killed_run_left_is_not_thrown_away_for_nothing(old):
    partial = Path(f"{old}.partial")
    partial.write_text("half a night's work\n")
    with pytest.raises(ValueError), open_output(str(old)):
        raise ValueError
    assert partial.read_text() == "half a night's work\n" and old.read_text() == OLD
    with open_output(str(old)) as output:
        output.write("new\n")
        assert partial.read_text() == "new\n"
    assert old.read_text() == "new\n" and names(old.parent) == ["out.csv"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_lines_of_an_interrupted_run_are_kept(tmp_path, old, caplog, fault):
    for path, kept in ((tmp_path / "new.csv", "new.csv"), (old, "out.csv.partial")):
        with pytest.raises(fault), open_output(str(path)) as output:
            output.write("one\n")
            output.write("two\n")
            raise fault
        assert (tmp_path / kept).read_text() == "one\ntwo\n"
        assert caplog.messages[-1] == f"{tmp_path / kept} has the 2 lines that were written before this ended"
    assert old.read_text() == OLD and names(tmp_path) == ["new.csv", "out.csv", "out.csv.partial"]


def test_a_page_is_kept_whole_or_not_at_all(tmp_path, old):
    for path in (tmp_path / "new.csv", old):
        with pytest.raises(ValueError), open_output(str(path), keep=False) as output:
            output.write("half a page")
            raise ValueError
    assert names(tmp_path) == ["out.csv"] and old.read_text() == OLD


def test_a_line_that_was_cut_short_is_left_out(tmp_path, monkeypatch):
    written, write = [], os.write

    def full(descriptor, raw):
        written.append(bytes(raw))
        if len(written) == 2:
            return write(descriptor, raw[:2])
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return write(descriptor, raw)

    path = tmp_path / "out.csv"
    with (
        pytest.raises(DataError, match=r"out.csv: cannot be written \(No space left"),
        open_output(str(path)) as output,
    ):
        monkeypatch.setattr(results.os, "write", full)
        output.write("one\n")
        output.write("two\n")
    assert path.read_text() == "one\n" and names(tmp_path) == ["out.csv"]


def test_what_a_signal_raises_comes_out_as_itself(tmp_path, monkeypatch):
    def interrupted(descriptor, raw):
        raise TimeoutError("this took too long")

    with pytest.raises(TimeoutError, match="this took too long"), open_output(str(tmp_path / "out.csv")) as output:
        monkeypatch.setattr(results.os, "write", interrupted)
        output.write("one\n")


def test_two_runs_do_not_write_one_file(old):
    with open_output(str(old)) as output:
        output.write("one\n")
        with pytest.raises(DataError, match="another run is writing it; wait for it"), open_output(str(old)):
            pass
    assert old.read_text() == "one\n"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: Path(f"{path}.partial").mkdir(), "Is a directory"),
        (lambda path: Path(f"{path}.partial").symlink_to("elsewhere"), "symbolic links"),
        (lambda path: os.mkfifo(f"{path}.partial"), "is in the way"),
        (lambda path: path.symlink_to("/nowhere/out.csv"), "No such file"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(tmp_path, make, said):
    path = tmp_path / "out.csv"
    make(path)
    before = names(tmp_path)
    with pytest.raises(DataError, match=said), open_output(str(path)):
        pytest.fail("it was opened")
    assert names(tmp_path) == before


def test_links_and_modes_stay(tmp_path):
    real, link = tmp_path / "real.csv", tmp_path / "link.csv"
    real.write_text(OLD)
    real.chmod(0o640)
    link.symlink_to("real.csv")
    with open_output(str(link)) as output:
        output.write("new\n")
    assert link.is_symlink() and real.read_text() == "new\n" and stat.S_IMODE(real.stat().st_mode) == 0o640


def test_the_longest_name_has_room_for_a_partial_one(tmp_path):
    path = tmp_path / ("é" * 125 + ".csv")
    with open_output(str(path)) as output:
        output.write("new\n")
    assert names(tmp_path) == [path.name]


@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_is_written_into(tmp_path, link):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    path = pipe
    if link:
        path = tmp_path / "page.html"
        path.symlink_to("pipe")
    got = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    with open_output(str(path)) as output:
        assert output.path is None
        output.write("one\x1b\n")
    reader.join()
    assert got == ["one\x1b\n"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_into_under_any_name(tmp_path):
    link = tmp_path / "page.html"
    link.symlink_to("/dev/null")
    for path in (str(link), "/dev/null"):
        assert check_suffix(path, ".html", ".htm") == ".html"
        with open_output(path) as output:
            output.write("gone\n")
    assert names(tmp_path) == ["page.html"] and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(DataError, match=r"a name in \.html"):
        check_suffix("page.txt", ".html")


TABLE = "text,mood\nMerry he was,glad\nShe wept,sad\n"
REFGPT = [sys.executable, "-m", "refgpt"]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(TABLE)
    return path


def test_standard_output_can_be_named(table, tmp_path):
    """Also where it is a file, which is not replaced while it is written."""
    command = [*REFGPT, "classify", str(table), "--labels", "glad,sad", "--label-column", "mood", "-o", "/dev/stdout"]
    piped = subprocess.run(command, capture_output=True, text=True)
    with open(tmp_path / "out.csv", "w") as file:
        file.write("before\n")
        file.flush()
        assert subprocess.run(command, stdout=file, stderr=subprocess.PIPE).returncode == 0
    for out in (piped.stdout, (tmp_path / "out.csv").read_text().removeprefix("before\n")):
        assert out.splitlines()[0] == "text,mood,predicted,p(glad),p(sad)" and out.count("\n") == 3
    assert piped.stderr.startswith("accuracy  ") and (tmp_path / "out.csv").read_text().startswith("before\n")


@pytest.mark.parametrize("how", ["name", "symlink", "hard link", "partial"])
@pytest.mark.parametrize("read", ["table", "examples", "model"])
def test_what_is_read_is_not_written_over(run, table, tmp_path, how, read):
    examples = tmp_path / "examples.csv"
    examples.write_text(TABLE)
    config = tiny_config(eos_id=0, bos_id=0)
    model = write_tokenizer(write_model(tmp_path / "model", config, random_params(config, 2)))
    victim = {"table": table, "examples": examples, "model": model / "config.json"}[read]
    if read == "model" and how == "name":
        return  # no name of a model's file ends so
    before, out = victim.read_bytes(), tmp_path / "out.csv"
    if how == "name":
        out = victim.parent / "." / victim.name
    elif how == "symlink":
        out.symlink_to(victim)
    elif how == "hard link":
        out.hardlink_to(victim)
    else:
        Path(f"{out}.partial").hardlink_to(victim)
    got = run(
        "classify",
        table,
        "--labels",
        "glad,sad",
        "--label-column",
        "mood",
        "--examples",
        examples,
        "-m",
        model,
        "-o",
        out,
    )
    assert got.code == 1 and "--output: is also an input of this run" in got.err
    assert victim.read_bytes() == before
    assert (tmp_path / "out.csv.partial").exists() == (how == "partial")


def test_a_prompt_is_not_written_over(run, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("Once upon a time")
    got = run("inspect", "-f", page, "-o", page, "--no-verify")
    assert got.code == 1 and "is also an input of this run" in got.err and page.read_text() == "Once upon a time"


def test_results_of_an_earlier_run_are_replaced_wherever_they_lie(run, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        got = run("classify", "table.csv", "--labels", "glad,sad", "-o", "out.csv")
        assert (got.code, got.err) == (0, "")
    assert names(tmp_path) == ["out.csv", "table.csv"]


@pytest.mark.parametrize("options", [["-m", "./nowhere"], ["-t", "0"], ["--kv-dtype", "f16", "--dtype", "f64"]])
@pytest.mark.parametrize("command", ["classify", "raft", "inspect"])
def test_a_run_that_cannot_start_empties_nothing(run, table, tmp_path, command, options):
    write_task(tmp_path / "raft", "overruling", ["yes", "no"] * 5)
    out = tmp_path / {"classify": "o.csv", "raft": "o.jsonl", "inspect": "o.html"}[command]
    out.write_text(OLD)
    given = {"classify": [table, "--labels", "glad,sad"], "raft": [tmp_path / "raft"], "inspect": ["Hi"]}[command]
    assert run(command, *given, *options, "-o", out).code == 1
    assert out.read_text() == OLD and not list(tmp_path.glob("*.partial"))


ENDED = """
import os, signal, sys
from refgpt import cli
from refgpt.cli import results
from refgpt.cli.prompts import LARGEST_PROMPT
write, n = results.PartialFile.write, 0
def watched(self, text):
    global n
    write(self, text)
    n += 1
    if n == 5:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
results.PartialFile.write = watched
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGKILL", -9)])
def test_answers_outlive_the_run(tmp_path, name, status):
    """The run ends itself after its fifth line."""
    (tmp_path / "table.csv").write_text("text\n" + "a text\n" * 12)
    out = tmp_path / "out.csv"
    given = ["classify", str(tmp_path / "table.csv"), "--labels", "glad,sad"]
    done = subprocess.run([sys.executable, "-c", ENDED, name, *given, "-o", str(out)], capture_output=True, text=True)
    assert done.returncode == status
    kept = Path(f"{out}.partial") if name == "SIGKILL" else out
    lines = kept.read_text().splitlines()
    assert len(lines) == 5 and names(tmp_path) == sorted(["table.csv", kept.name])
    assert [row["text"] for row in csv.DictReader(lines)] == ["a text"] * 4
    if name != "SIGKILL":
        assert f"{out} has the 5 lines that were written before this ended" in done.stderr


def test_a_killed_page_leaves_nothing_that_piles_up(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from refgpt import cli\n"
        "from refgpt.cli import inspect\n"
        "inspect.build_report = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cli.main(['inspect', 'Hi', '-o', sys.argv[1]])\n"
    )
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / "page.html")])
        assert names(tmp_path) == ["page.html.partial"]
    with open_output(str(tmp_path / "page.html"), keep=False) as output:
        output.write("a page")
    assert names(tmp_path) == ["page.html"]


def test_the_records_are_given_in_the_order_of_the_result(tmp_path):
    write_task(tmp_path, "overruling", ["yes", "no"] * 10)
    (task,) = read_raft(tmp_path, ["overruling"])
    for method in ("generate", "likelihood"):
        given = []
        result = run_raft(refgpt.load(), task, RaftSettings(method, n_trials=2), on_record=given.append)
        assert given == list(result.records()) and len(given) > 20


@pytest.mark.parametrize("source", ["-f", "-"])
def test_a_prompt_without_an_end_is_refused(source, tmp_path):
    given = ["-f", "/dev/zero"] if source == "-f" else ["-"]
    with open("/dev/zero", "rb") as zeros:
        done = subprocess.run([*REFGPT, "generate", *given], stdin=zeros, capture_output=True, text=True)
    assert done.returncode == 1 and "is far too long for a prompt; got over 16.8 MB" in done.stderr


def test_no_more_of_standard_input_is_read_than_a_prompt_may_have(run, monkeypatch):
    asked = []

    class Endless:
        def read(self, n: int = -1) -> bytes:
            asked.append(n)
            return b"a" * min(n, 1 << 25)

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Endless(), isatty=lambda: False))
    assert "is far too long for a prompt" in run("generate", "-").err
    assert asked == [LARGEST_PROMPT + 1]


def test_a_sparse_terabyte_is_no_prompt(run, tmp_path):
    path = tmp_path / "prompt.txt"
    path.touch()
    os.truncate(path, 1 << 40)
    got = run("generate", "-f", path)
    assert got.code == 1 and "prompt.txt: is far too long for a prompt" in got.err


def test_signals_are_as_they_were_afterwards(run, monkeypatch):
    before, during = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)], []
    monkeypatch.setattr(kernels, "print_line", lambda *_: during.append(signal.getsignal(signal.SIGTERM)))
    run("kernels")
    assert during and before[0] not in during
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
