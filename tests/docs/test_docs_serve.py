"""The guide to serving: its commands are run, and its configurations hold what the command takes."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import refgpt
from tests.helpers.adapters import written
from tests.helpers.servers import Served, serving
from tests.helpers.work import HANGS

GUIDE = Path(__file__).parents[2] / "docs" / "serve.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    adapter = written(None, tmp_path_factory.mktemp("adapters") / "oz", "wq wv", 1)
    with serving(refgpt.load(adapters={"oz": adapter})) as served:
        yield served


def blocks(kind: str, about: str) -> list[str]:
    """Blocks of one language that have a word; there are some."""
    found = [block for language, block in BLOCKS if language == kind and about in block]
    assert found
    return found


def test_every_block_is_tested() -> None:
    assert {language for language, _ in BLOCKS} == {"sh", "python", "ini", "dockerfile", "yaml"}
    for language, block in BLOCKS:
        assert language != "sh" or re.match(r"curl |mkdir|refgpt serve |python -m pip", block)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("block", blocks("sh", "curl "), ids=lambda block: block.split()[-1][:30])
def test_curl(server: Served, block: str) -> None:
    if "regex" in block:
        pytest.importorskip("llguidance")
    quiet = block.replace(URL, server.url).replace(
        "curl ", "curl --silent --show-error --fail-with-body --noproxy '*' "
    )
    done = subprocess.run(["bash", "-ec", quiet], capture_output=True, text=True, timeout=HANGS)
    assert done.returncode == 0, done
    assert '"error"' not in done.stdout and len(done.stdout) > 20


@pytest.mark.parametrize("library", ["openai", "langchain_openai"])
def test_python(server: Served, library: str) -> None:
    pytest.importorskip(library)
    (block,) = blocks("python", f"from {library} ")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block.replace(URL, server.url), str(GUIDE), "exec"), {})
    assert len(printed.getvalue()) > 20


def test_lm_eval(server: Served, tmp_path: Path) -> None:
    for name in ("lm_eval", "tenacity"):
        pytest.importorskip(name)
    (block,) = blocks("sh", "lm_eval ")
    command = block.replace(URL, server.url).replace("lm_eval ", f"{sys.executable} -m lm_eval ")
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "*"}
    done = subprocess.run(
        ["bash", "-ec", command], cwd=tmp_path, env=offline, capture_output=True, text=True, timeout=HANGS
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (line,) = [line for line in done.stdout.splitlines() if "|acc" in line.replace(" ", "")]
    assert re.search(r"\|\s*1\.0|\|\s*1\s*\|", line), line  # the model knows more of kings than of percentages
