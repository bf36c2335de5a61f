"""The README is true: its commands print what it shows, its Python runs, its excerpt of the spec is the spec.

What a block is follows from its language:

    console   "$ command" lines with the output below them; "..." in an output stands for anything
    sh        commands for the reader's own files: those of refgpt must parse
    pycon     a Python session, run by doctest
    python    an excerpt of refgpt/spec/gptj.py, word for word

Lines that install or test belong to ``.ci/run``, which runs them as they stand. After a change of the default model,
``python -m tests.test_readme`` rewrites the outputs that differ, but for those with "..."
and what pip, pytest and Sphinx print.
"""

from __future__ import annotations

import doctest
import os
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

import refgpt
from refgpt.cli import build_parser

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Command:
    """A command of a console block and the output shown below it."""

    line: str
    output: str

    @property
    def belongs_to_ci(self) -> bool:
        return self.line.startswith("python -m p")  # pip and pytest

    def run(self) -> str:
        """Everything that the command, or the last of several, prints in an empty folder."""
        program, *arguments = shlex.split(self.line.rpartition("&& ")[2])
        assert program == "refgpt", self.line
        environment = os.environ | {"PYTHONPATH": str(Path(refgpt.__file__).parents[1])}
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-m", "refgpt", *arguments],
                cwd=folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
            )
        return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())

    def matches(self, printed: str) -> bool:
        return doctest.OutputChecker().check_output(self.output, printed, doctest.ELLIPSIS)


def blocks(language: str) -> list[str]:
    return [body for name, body in BLOCK.findall(README.read_text(encoding="utf-8")) if name == language]


def console_commands() -> list[Command]:
    parts = [part for body in blocks("console") for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]]
    return [Command(*part.partition("\n")[::2]) for part in parts]


def test_every_block_is_tested() -> None:
    languages = {name for name, _ in BLOCK.findall(README.read_text(encoding="utf-8"))}
    assert languages == {"console", "sh", "pycon", "python"}


@pytest.mark.parametrize("command", [c for c in console_commands() if not c.belongs_to_ci], ids=lambda c: c.line)
def test_command_prints_what_is_shown(command: Command) -> None:
    printed = command.run()
    assert command.matches(printed), printed


def test_installing_and_testing_is_what_ci_does() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    lines = [command.line for command in console_commands() if command.belongs_to_ci]
    assert len(lines) >= 2
    assert set(lines) <= set(ci)


@pytest.mark.parametrize("block", blocks("sh"), ids=lambda block: block.partition("\n")[0])
def test_commands_for_other_files_parse(block: str) -> None:
    calls = re.findall(r"^(?:.*\| )?refgpt (.*?)(?: > .*)?$", block, re.MULTILINE)
    assert calls
    for call in calls:
        build_parser().parse_args(shlex.split(call, comments=True))


@pytest.mark.parametrize("block", blocks("pycon"), ids=lambda block: block.partition("\n")[0])
def test_python_session(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session = doctest.DocTestParser().get_doctest(block, {}, "README.md", "README.md", 0)
    report: list[str] = []
    failed, attempted = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(session, out=report.append)
    assert attempted
    assert not failed, "".join(report)


def test_excerpt_of_the_spec_is_the_spec() -> None:
    spec = (ROOT / "refgpt" / "spec" / "gptj.py").read_text(encoding="utf-8")
    (excerpt,) = blocks("python")
    assert len(excerpt.splitlines()) >= 10
    assert f"\n{excerpt}" in spec


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", README.read_text(encoding="utf-8"))
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    for shown in console_commands():
        if not shown.line.rpartition("&& ")[2].startswith("refgpt ") or shown.matches(printed := shown.run()):
            continue
        if "..." in shown.output:  # someone chose what to leave out
            print(f"to be mended by hand: {shown.line}\n{printed}")
        else:
            text = text.replace(f"$ {shown.line}\n{shown.output}", f"$ {shown.line}\n{printed}")
    README.write_text(text, encoding="utf-8")
