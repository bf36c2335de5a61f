"""The directive ``held-by``: tests by file and name, each with its code behind a fold. A missing test is an error."""

from __future__ import annotations

import ast
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parent.parent


def code_of(test: str) -> str:
    """The code of a test, given as ``path::name``, with its decorators.

    Raises
    ------
    LookupError
        If there is none.
    """
    path, _, name = test.partition("::")
    if not (ROOT / path).is_file():
        raise LookupError(f"{test}: there is no such file")
    text = (ROOT / path).read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    raise LookupError(f"{test}: there is no such test in the file")


class HeldBy(SphinxDirective):
    """One test a line."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        found: list[nodes.Node] = []
        for test in filter(None, map(str.strip, self.content)):
            try:
                code = code_of(test)
            except LookupError as fault:
                raise self.error(str(fault)) from None
            self.env.note_dependency(str(ROOT / test.partition("::")[0]))
            head = f'<details class="held-by"><summary><code>{escape(test)}</code></summary>'
            block = nodes.literal_block(code, code, language="python")
            found += [nodes.raw("", head, format="html"), block, nodes.raw("", "</details>", format="html")]
        return found


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("held-by", HeldBy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
