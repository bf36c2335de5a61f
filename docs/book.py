"""The book's additions to Sphinx's pages: links from code to the reference and back, labels of folds, wrapped lines.

A name in a cell or in the text, such as ``spec.softmax``, becomes a link to its entry in the reference; the entry has a
link to its source, and names the chapters that use it. No page needs to write these links.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from html import unescape
from importlib import import_module
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

COMMANDS = "reference/command-line"
#: What a name means on every page, and on pages that load a model under this name.
ALIASES = {"refgpt": "refgpt"}
LOADED = {"model": "refgpt.Model"}
#: Labels of a fold around a whole cell, and around the code of a cell whose figure is shown.
FOLDS = {"all": "the answer", "input": "the code"}
#: A line of code with more characters may not fit a telephone.
LONG = 30
#: Columns by which the rest of a long line is moved to the right, at most.
MOST_HANGING = 12
NAME, DOT = r'<span class="n">\w+</span>', '<span class="o">.</span>'
CHAIN = re.compile(rf"{NAME}(?:{re.escape(DOT)}{NAME})*" r'(?P<call>(?=<span class="p">\())?')
CODE_OR_LINK = re.compile(r'<a\b.*?</a>|<code class="docutils literal notranslate">(.*?)</code>', re.DOTALL)
BLOCK = re.compile(r'(<div class="highlight"><pre>)(.*?)(</pre>)', re.DOTALL)
TAG = re.compile(r"<[^>]*>")


class Cells(SphinxTransform):
    """Words for folds, and a class for printed tables: they are scrolled on a narrow screen, all else wraps."""

    default_priority = 900

    def apply(self, **_: Any) -> None:
        for cell in self.document.findall(nodes.container):
            if what := FOLDS.get(cell.get("hide_mode", "")):
                cell["prompt_show"], cell["prompt_hide"] = f"Show {what}", f"Hide {what}"
            if cell.get("nb_element") == "cell_code_output":
                for block in cell.findall(nodes.literal_block):
                    if block.get("language") in ("python", "c"):  # a source that is shown
                        continue
                    columns = [line for line in block.astext().splitlines() if re.search(r"\S {2,}\S", line)]
                    if len(columns) > 1:
                        block["classes"].append("printed-table")


# ----------------------------------------------------------------------------------------------------------------------
# Names and what they stand for.


def imported(code: str) -> dict[str, str]:
    """The local names that code gives to parts of the package."""
    found: dict[str, str] = {}
    for node in _parsed(code):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "refgpt":
            found |= {name.asname or name.name: f"{node.module}.{name.name}" for name in node.names}
        if isinstance(node, ast.Import):
            found |= {name.asname: name.name for name in node.names if name.asname and name.name.startswith("refgpt.")}
    return found


def used(code: str, aliases: dict[str, str]) -> set[str]:
    """The full names of all parts of the package that code mentions."""
    found = set()
    for node in _parsed(code):
        if isinstance(node, ast.Attribute | ast.Name):
            first, *rest = ast.unparse(node).split(".")
            if first in aliases:
                found.add(".".join([aliases[first], *rest]))
    return found


def _parsed(code: str) -> Iterator[ast.AST]:
    try:
        return ast.walk(ast.parse(re.sub(r"^%.*$", "", code, flags=re.MULTILINE)))
    except SyntaxError:  # other languages, and outputs
        return iter(())


def _blocks(doctree: nodes.document) -> list[str]:
    return [block.astext() for block in doctree.findall(nodes.literal_block)]


def _aliases(doctree: nodes.document) -> dict[str, str]:
    found = dict(ALIASES)
    for code in _blocks(doctree):
        found |= imported(code)
        found |= LOADED if re.search(r"^model = refgpt\.load\(", code, re.MULTILINE) else {}
    return found


class Entries:
    """The entries of the reference. Objects with several names have one entry."""

    def __init__(self, app: Sphinx) -> None:
        self.app = app
        self.objects = app.env.get_domain("py").objects
        self.commands = app.env.get_doctree(COMMANDS).ids if COMMANDS in app.env.all_docs else {}
        self._by_id = {id(found): name for name in self.objects if (found := _resolve(name)) is not None}

    def entry(self, name: str) -> str | None:
        """The name under which an object has its entry."""
        if name in self.objects:
            return name
        found = _resolve(name)
        return None if found is None else self._by_id.get(id(found))

    def link(self, page: str, name: str) -> str | None:
        """Where a page finds the entry of a name."""
        if (entry := self.entry(name)) is None:
            return None
        place = self.objects[entry]
        return f"{self.app.builder.get_relative_uri(page, place.docname)}#{place.node_id}"

    def link_of_text(self, page: str, text: str, aliases: dict[str, str]) -> str | None:
        """Where a page finds what a piece of code in a sentence names: an object, a command, or a source file."""
        command = re.match(r"refgpt ([a-z]+)", text)
        if command and f"refgpt-{command[1]}" in self.commands:
            return f"{self.app.builder.get_relative_uri(page, COMMANDS)}#refgpt-{command[1]}"
        module = re.fullmatch(r"(refgpt/[\w/]+)\.py", text)
        if module and module[1].replace("/", ".") in getattr(self.app.env, "_viewcode_modules", {}):
            return self.app.builder.get_relative_uri(page, f"_modules/{module[1]}")
        name = re.fullmatch(r"([A-Za-z_]\w*)((?:\.\w+)*)(?:\(\))?", text)
        if name is None or (not name[2] and (name[1] not in aliases or name[1] in ALIASES | LOADED)):
            return None
        return self.link(page, aliases.get(name[1], f"refgpt.{name[1]}") + name[2])


def _resolve(name: str) -> Any:
    """What a full name stands for, if it is an object that is told apart by its identity."""
    parts = name.split(".")
    for n in range(len(parts), 0, -1):
        try:
            found = import_module(".".join(parts[:n]))
        except Exception:  # no module, or one whose extra is missing
            continue
        for part in parts[n:]:
            found = getattr(found, part, None)
        return found if callable(found) else None
    return None


# ----------------------------------------------------------------------------------------------------------------------
# From pages to the reference.


def finish_page(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None) -> None:
    """Link names and wrap lines in a page's HTML."""
    if doctree is None or "body" not in context:
        return
    entries, aliases = app.refgpt_entries, _aliases(doctree)

    def of_chain(chain: re.Match[str]) -> str:
        pieces = re.findall(NAME, chain[0])
        first, *rest = (TAG.sub("", piece) for piece in pieces)
        if first not in aliases or (not rest and chain["call"] is None):
            return chain[0]
        for n in range(len(rest), -1, -1):
            if n == 0 and first in ALIASES | LOADED:
                break
            if target := entries.link(page, ".".join([aliases[first], *rest[:n]])):
                linked, others = DOT.join(pieces[: n + 1]), "".join(DOT + piece for piece in pieces[n + 1 :])
                return f'<a class="to-reference" href="{target}">{linked}</a>{others}'
        return chain[0]

    def of_text(code: re.Match[str]) -> str:
        text = "" if code[1] is None else unescape(TAG.sub("", code[1]))
        target = entries.link_of_text(page, text, aliases) if text else None
        return code[0] if target is None else f'<a class="reference internal" href="{target}">{code[0]}</a>'

    def of_block(block: re.Match[str]) -> str:
        return block[1] + "".join(map(_line, CHAIN.sub(of_chain, block[2]).splitlines(keepends=True))) + block[3]

    context["body"] = CODE_OR_LINK.sub(of_text, BLOCK.sub(of_block, context["body"]))


def _line(line: str) -> str:
    """A line of code; where it is long, what does not fit continues to the right of its beginning."""
    text = unescape(TAG.sub("", line)).rstrip("\n")
    whole = line.count("<span") == line.count("</span") and line.count("<a ") == line.count("</a")
    if len(text) <= LONG or not whole:
        return line
    at = min(len(text) - len(text.lstrip()) + 4, MOST_HANGING)
    return f'<span class="long" style="--at: {at}">{line}</span>'


# ----------------------------------------------------------------------------------------------------------------------
# From the reference to pages.


def find_uses(app: Sphinx, env: Any) -> list[str]:
    """Note which chapters use an entry."""
    app.refgpt_entries = Entries(app)
    app.refgpt_uses = {}
    for page in sorted(page for page in env.all_docs if page[0].isdigit()):
        doctree = env.get_doctree(page)
        aliases = _aliases(doctree)
        names = set().union(*(used(code, aliases) for code in _blocks(doctree)))
        for name in {app.refgpt_entries.entry(name) for name in names} - {None}:
            app.refgpt_uses.setdefault(name, []).append(page)
    return []


def add_uses(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Name under each entry the chapters that use it."""
    for entry in doctree.findall(addnodes.desc):
        signature, content = entry[0], entry[-1]
        chapters = app.refgpt_uses.get((signature.get("ids") or [""])[0], [])
        if not chapters:
            continue
        line = nodes.paragraph("", "Used in ", classes=["used-in"])
        for n, chapter in enumerate(chapters):
            line += nodes.Text(", " if n else "")
            target = app.builder.get_relative_uri(page, chapter)
            line += nodes.reference("", app.env.titles[chapter].astext(), internal=True, refuri=target)
        content += line


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(Cells)
    app.connect("env-updated", find_uses)
    app.connect("doctree-resolved", add_uses)
    app.connect("html-page-context", finish_page)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
