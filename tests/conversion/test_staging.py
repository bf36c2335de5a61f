"""A destination is there whole or not at all: after errors, after kill -9, beside another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from refgpt._common.errors import CheckpointError
from refgpt.conversion import staging
from refgpt.conversion.staging import staged


def write(destination: Path, **files: str) -> None:
    with staged(destination, 100) as directory:
        assert not destination.exists() or not any(destination.iterdir())
        for name, text in files.items():
            (directory / name).write_text(text)


def test_it_appears_when_it_is_whole(tmp_path):
    write(tmp_path / "out", a="1", b="2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert (tmp_path / "out" / "b").read_text() == "2"


def test_an_empty_directory_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", a="1")
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_a_destination_relative_to_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("out/"), a="1")
    assert (tmp_path / "out" / "a").read_text() == "1"


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path, fault):
    with pytest.raises(fault), staged(tmp_path / "out", 100) as directory:
        (directory / "a").write_text("1")
        raise fault
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "out", a="1")


def test_a_disk_that_fails_is_an_error_of_the_destination(tmp_path):
    with pytest.raises(CheckpointError, match=r"out: it cannot be written \(No space"), staged(tmp_path / "out", 1):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def taken(path: Path) -> None:
    (path / "out").mkdir()
    (path / "out" / "kept").write_text("1")


@pytest.mark.parametrize(
    ("prepare", "match"),
    [
        (taken, "not empty"),
        (lambda path: (path / "out").write_text("1"), "no directory"),
        (lambda path: (path / "out").symlink_to("nowhere"), "no directory"),
        (lambda path: path.rmdir(), "no such directory to put it in"),
    ],
)
def test_a_destination_that_cannot_be_is_refused_and_left_alone(tmp_path, prepare, match):
    parent = tmp_path / "parent"
    parent.mkdir()
    prepare(parent)
    before = sorted(parent.rglob("*")) if parent.exists() else None
    with pytest.raises(CheckpointError, match=match):
        write(parent / "out", a="1")
    assert (sorted(parent.rglob("*")) if parent.exists() else None) == before


def test_room_on_the_disk_is_asked_for_first(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage(1000, 901, 99))
    with pytest.raises(CheckpointError, match="no room on the disk; got 99 bytes; wanted 100 bytes"):
        write(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


PROCESS = """
import signal, sys
from pathlib import Path
from refgpt.conversion.staging import staged
with staged(Path(sys.argv[1]), 10) as directory:
    (directory / "half").write_text("1")
    print("ready", flush=True)
    signal.pause()
"""


def at_work(destination: Path) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", PROCESS, str(destination)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_do_not_write_one_destination(tmp_path):
    process = at_work(tmp_path / "out")
    try:
        with pytest.raises(CheckpointError, match="another process is writing it"):
            write(tmp_path / "out", a="1")
        assert (tmp_path / ".out.partial" / "half").read_text() == "1"
        write(tmp_path / "other", a="1")
    finally:
        process.kill()
        process.wait()


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    process = at_work(tmp_path / "out")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    write(tmp_path / "out", a="1")
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["out", "out/a"]


CONVERSION = """
import sys
from refgpt.cli import main
sys.exit(main(["convert", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("pause", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
def test_a_conversion_killed_at_any_moment_leaves_all_or_nothing(tmp_path, pause):
    """Some moments are before the writing, some within and some after: each must leave a whole model or none."""
    import refgpt

    source, out = refgpt.default_model_path(), tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", CONVERSION, str(source), str(out), "--dtype", "q8"], stdout=subprocess.DEVNULL
    )
    time.sleep(pause)
    process.kill()
    process.wait()
    if out.exists():
        refgpt.load(out)
    else:
        assert (
            subprocess.run([sys.executable, "-c", CONVERSION, str(source), str(out), "--dtype", "q8"]).returncode == 0
        )
        refgpt.load(out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("stop_at", ["config.json", "tokenizer.model", "packed.safetensors", "manifest.json", "rename"])
def test_a_conversion_killed_at_each_file_leaves_nothing(tmp_path, stop_at):
    import refgpt

    program = f"""
import os, pathlib, signal, sys
from refgpt.cli import main
def die(): os.kill(os.getpid(), signal.SIGKILL)
if {stop_at!r} == "rename":
    pathlib.Path.rename = lambda *_: die()
else:
    opened = pathlib.Path.open
    def watched(path, *arguments, **options):
        file = opened(path, *arguments, **options)
        if path.name == {stop_at!r} and ".partial" in str(path): file.write(b"x" if "b" in file.mode else "x"); die()
        return file
    pathlib.Path.open = watched
    pathlib.Path.write_text = lambda path, text, **_: watched(path, "w").write(text)
    pathlib.Path.write_bytes = lambda path, raw: watched(path, "wb").write(raw)
sys.exit(main(["convert", {str(refgpt.default_model_path())!r}, {str(tmp_path / "out")!r}, "--dtype", "q4"]))
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [".out.partial"]
    write(tmp_path / "out", a="1")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "a"]
