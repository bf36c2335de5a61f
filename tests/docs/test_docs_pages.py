"""The pages of the site hold together. That their code runs is what building the site shows: see ``.ci/run``."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *DOCS.rglob("*.ipynb")])
CHAPTERS = sorted(DOCS.glob("[0-9]*.md"))
CELL = re.compile(r"^```\{code-cell\} ipython3\n(?::[^\n]*\n)*(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")
TOCTREE = re.compile(r"^```\{toctree\}\n(?::[^\n]*\n)*\n?(.*?)^```$", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    """A page without its code."""
    raw = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        return "\n".join("".join(c["source"]) for c in json.loads(raw)["cells"] if c["cell_type"] == "markdown")
    return CELL.sub("", raw)


def in_toctree(page: Path) -> list[Path]:
    """The pages that a page's table of contents leads to, without their endings."""
    names = [line for body in TOCTREE.findall(text_of(page)) for line in body.split()]
    return [(page.parent / name).resolve() for name in names]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = LINK.findall(text_of(page))
    included = re.findall(r"^```\{literalinclude\} (\S+)$", text_of(page), re.MULTILINE)
    assert [target for target in targets + included if not (page.parent / target).exists()] == []


def test_every_page_is_reached_once() -> None:
    reached, waiting = [], [DOCS / "index"]
    while waiting:
        name = waiting.pop()
        reached.append(name)
        waiting += in_toctree(name.with_name(f"{name.name}.md")) if name.with_name(f"{name.name}.md").exists() else []
    assert sorted(reached) == sorted(page.with_suffix("") for page in PAGES)


def test_chapters_are_listed_in_order() -> None:
    listed = [name for name in in_toctree(DOCS / "index.md") if name.name[0].isdigit()]
    assert [name.name for name in listed] == [chapter.stem for chapter in CHAPTERS]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_a_chapter_is_a_notebook(chapter: Path) -> None:
    raw = chapter.read_text(encoding="utf-8")
    assert raw.startswith("---\nfile_format: mystnb\nkernelspec:\n  name: python3\n")
    cells = CELL.findall(raw)
    assert len(cells) > 3
    assert raw.count("```{code-cell}") == len(cells)
    for code in cells:
        python = re.sub(r"^%.*$", "", code, flags=re.MULTILINE)
        compile(python, chapter.name, "exec")
        assert max(map(len, code.splitlines())) <= 120


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.stem)
def test_code_that_only_draws_is_folded(chapter: Path) -> None:
    """A reader sees the figure; the lines that place its parts are behind a fold."""
    cells = re.findall(r"^```\{code-cell\} ipython3\n(.*?)^```$", chapter.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    drawing = [cell for cell in cells if "subplots(" in cell]
    assert [cell for cell in drawing if not re.match(r":tags: \[(hide-input|hide-cell)\]\n", cell)] == []


def test_ci_builds_the_site() -> None:
    """In the script that every push runs, and where warnings are errors."""
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert 'python -m pip install ".[docs]" && python -m sphinx -W -b html docs build/site' in ci


def test_every_test_that_a_page_names_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx", reason='the site needs the extra "docs"')
    monkeypatch.syspath_prepend(str(DOCS))
    held_by = import_module("held_by")
    named = re.findall(r"^(tests/\S+::\w+)$", (DOCS / "sources.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(named) > 50
    for test in named:
        assert f"def {test.partition('::')[2]}(" in held_by.code_of(test)
    with pytest.raises(LookupError, match="no such test"):
        held_by.code_of("tests/docs/test_docs_pages.py::test_nothing")
