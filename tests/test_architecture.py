"""The house: who may import whom, and what belongs in one room only, read from the source itself."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: From the ground up. A room imports from the rows above it in this list and from itself: never sideways, never up.
FLOORS = [
    {"errors", "wording"},
    {"arguments", "file_names", "small_files", "checksums", "memory"},
    {"config", "encoded", "vocabulary"},
    {"params", "prompts"},
    {"panels"},
    {"spec", "kernels", "checkpoints", "tokenizers", "sampling", "drafting", "hub", "quantisation"},
    {"engine", "runtime", "stopping"},
    {"generation", "tracing", "benchmarking", "conversion"},
    {"scoring", "plotting"},
    {"evaluation"},
    {"model"},
    {"__init__"},
    {"report"},
    {"cli"},
    {"__main__"},
]

#: Rooms that a package from elsewhere may enter; NumPy may go anywhere, anything else nowhere.
GUESTS = {
    "_refgpt_kernels": {"kernels"},
    "tokenizers": {"tokenizers"},
    "sentencepiece": {"tokenizers"},
    "tqdm": {"cli", "tracing"},
    "huggingface_hub": {"hub"},
    "zstandard": {"checkpoints"},
    "matplotlib": {"plotting"},
    "compression": {"checkpoints"},  # the standard library's, from Python 3.14
}

MOST_LINES = 500


def floor_of(room: str) -> int:
    return next((n for n, rooms in enumerate(FLOORS) if room in rooms), -1)


def rooms_in(package: Path) -> dict[str, list[Path]]:
    """The modules and subpackages directly inside a package, each with its source files."""
    rooms = {path.stem: [path] for path in sorted(package.glob("*.py"))}
    return rooms | {
        path.parent.name: sorted(path.parent.rglob("*.py")) for path in sorted(package.glob("*/__init__.py"))
    }


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything a module imports, wherever it does: at its top, in a function, for types only.

    ``from package import x`` counts as ``package.x``; relative imports count as "." and what follows.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [f"{module}.{name.name}" for name in node.names] if module == package else [module]
            yield from ((node.lineno, name) for name in names)


def faults_in(package: Path) -> list[str]:
    """Every import of a package that breaks the rules of the house, and every room that has no floor."""
    rooms = rooms_in(package)
    faults = [f"{room}: on no floor" for room in rooms if floor_of(room) < 0]
    for room, paths in rooms.items():
        for path in paths:
            for line, name in imported(path.read_text(encoding="utf-8"), package.name):
                where, (top, _, rest) = f"{path.relative_to(package)}:{line}", name.partition(".")
                if top == "":
                    faults.append(f"{where}: relative import {name}")
                elif top == package.name:
                    target = rest.partition(".")[0]
                    target = target if target in rooms else "__init__"
                    if target != room and floor_of(target) >= floor_of(room):
                        faults.append(f"{where}: {room} may not import {target}")
                elif top not in sys.stdlib_module_names | {"numpy"} and room not in GUESTS.get(top, ()):
                    faults.append(f"{where}: {top} may not enter {room}")
    return faults


def test_imports_go_down() -> None:
    assert faults_in(ROOT / "refgpt") == []


def test_tests_need_no_torch() -> None:
    """PyTorch's word is in the goldens; only what records them (``record*.py``) imports it."""
    modules = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("record")]
    for path in modules:
        tops = {name.partition(".")[0] for _, name in imported(path.read_text(encoding="utf-8"), "refgpt")}
        assert not tops & {"torch", "transformers"}, path


def test_contributing_shows_the_same_floors() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (`.*) \|$", text, re.MULTILINE)
    table = {int(floor): set(re.findall(r"`(\w+)`", rooms)) for floor, rooms in rows}
    assert table == dict(enumerate(FLOORS))


def test_every_place_in_the_plan_is_built() -> None:
    assert set().union(*FLOORS) == rooms_in(ROOT / "refgpt").keys()


@pytest.mark.parametrize(
    ("path", "source", "fault"),
    [
        ("errors.py", "import refgpt.cli", "errors may not import cli"),
        ("spec/gptj.py", "from refgpt.kernels import linear", "spec may not import kernels"),
        ("spec/gptj.py", "from refgpt import kernels", "spec may not import kernels"),
        ("params.py", "from refgpt.prompts import check_ids", "params may not import prompts"),
        ("engine.py", "from refgpt import load", "engine may not import __init__"),
        ("engine.py", "import refgpt", "engine may not import __init__"),
        ("spec/gptj.py", "import scipy.special", "scipy may not enter spec"),
        ("cli.py", "def f():\n    import torch", "torch may not enter cli"),
        ("model.py", "if TYPE_CHECKING:\n    from refgpt.cli import main", "model may not import cli"),
        ("runtime/gptj.py", "from _refgpt_kernels import lib", "_refgpt_kernels may not enter runtime"),
        ("spec/gptj.py", "from .masks import causal_mask", "relative import .masks"),
        ("attic.py", "", "attic: on no floor"),
        ("attic/__init__.py", "", "attic: on no floor"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, path: str, source: str, fault: str) -> None:
    package = tmp_path / "refgpt"
    for room in ("errors", "params", "prompts", "engine", "model", "cli", "spec/gptj", "kernels/ops", "runtime/gptj"):
        for file in (package / f"{room}.py", *([package / Path(room).parent / "__init__.py"] if "/" in room else [])):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("import json\nimport numpy as np\n")
    assert faults_in(package) == []
    (package / path).parent.mkdir(exist_ok=True)
    (package / path).write_text(source)
    (found,) = faults_in(package)
    assert fault in found


SHARED_C = sorted((ROOT / "csrc").glob("*.[ch]"))
KERNEL_BODIES = [path for path in sorted((ROOT / "csrc").glob("*/*.h")) if path.parent.name != "testing"]


def holders(pattern: str, files: list[Path]) -> list[str]:
    """Names of the files whose code, comments aside, has the pattern."""
    code = {
        path: re.sub(r"/\*.*?\*/|//[^\n]*", "", path.read_text(encoding="utf-8"), flags=re.DOTALL) for path in files
    }
    return [path.name for path in files if re.search(pattern, code[path])]


def test_one_file_knows_of_threads() -> None:
    assert holders(
        r"\bomp_|\bomp\.h|_OPENMP|#\s*pragma\s+omp|\bpthread|\bthreads\.h|\b_Atomic\b|\batomic_",
        SHARED_C + KERNEL_BODIES,
    ) == ["parallel.c"]


def test_kernels_do_nothing_but_compute() -> None:
    assert len(KERNEL_BODIES) > 10
    assert holders(r"\b(malloc|calloc|realloc|free|exit|abort|\w*printf|getenv)\s*\(", KERNEL_BODIES) == []


def test_kernels_round_alike_everywhere() -> None:
    """libm's transcendental functions differ between machines, and these flags change what a float is."""
    assert holders(r"\b(exp|exp2|expm1|log|log2|tanh|sin|cos|pow|erf)f?\s*\(", SHARED_C + KERNEL_BODIES) == []
    build = (ROOT / "csrc" / "build.py").read_text(encoding="utf-8")
    assert "-ffp-contract=off" in build
    assert not re.search(r"-ffast-math|-Ofast|-funsafe|-march=native|-mtune=native", build)


def test_no_file_has_a_second_subject() -> None:
    """A file this long holds two: find the second. (Never cut one algorithm to please the ruler.)"""
    files = [path for folder in ("refgpt", "csrc", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.*")]
    sources = [path for path in files if path.suffix in {".py", ".c", ".h"}]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in sources}
    assert len(lengths) > 50
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}
