"""The notebook prints what it shows, but for times.

Its cells are plain Python, so they run here without Jupyter. After a change of the default model or of the notebook,
``python -m tests.docs.test_docs_notebook`` stores the outputs anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[2] / "docs" / "gpt-j.ipynb"


def read() -> Any:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(notebook: Any) -> list[str]:
    """What each code cell prints, one after the other in one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    texts = []
    for number, cell in enumerate(code_cells(notebook)):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, code cell {number}", "exec"), namespace)
        texts.append(out.getvalue())
    return texts


def stored(notebook: Any) -> list[str]:
    """What each code cell shows as printed."""
    cells = code_cells(notebook)
    return ["".join(line for output in cell["outputs"] for line in output["text"]) for cell in cells]


def without_times(text: str) -> str:
    """The text with the numbers of lines about time blotted out."""
    return re.sub(
        r"^.*\b(?:seconds|tokens/s)\b.*$", lambda line: re.sub(r"[\d.]+", "#", line[0]), text, flags=re.MULTILINE
    )


def test_it_prints_what_it_shows() -> None:
    notebook = read()
    shown = stored(notebook)
    assert any(shown)
    assert list(map(without_times, printed(notebook))) == list(map(without_times, shown))


def test_one_line_makes_it_gpt_j() -> None:
    """The model is named once, by a line that names GPT-J beside the included model."""
    sources = ["".join(cell["source"]) for cell in code_cells(read())]
    (line,) = [line for source in sources for line in source.splitlines() if line.startswith("MODEL =")]
    assert line.startswith("MODEL = None")
    assert "EleutherAI/gpt-j-6b" in line
    assert sum(source.count("refgpt.load(") for source in sources) == sources[1].count("refgpt.load(MODEL") == 1


def test_it_is_whole() -> None:
    """Cells have ids, outputs are streams, and nothing is left of who ran it where."""
    notebook = read()
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(code_cells(notebook), 1):
        assert cell["execution_count"] == number
        assert [output["output_type"] for output in cell["outputs"]] in ([], ["stream"])


if __name__ == "__main__":
    notebook = read()
    for cell, text in zip(code_cells(notebook), printed(notebook), strict=True):
        output = {"name": "stdout", "output_type": "stream", "text": text.splitlines(keepends=True)}
        cell["outputs"] = [output] if text else []
    for number, cell in enumerate(code_cells(notebook), 1):
        cell["execution_count"] = number
    NOTEBOOK.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
