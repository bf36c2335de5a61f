"""What goes into the sdist and the wheel, as far as can be told without building them, which ``.ci/packaging`` does."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import refgpt
from tests.test_architecture import GUESTS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]
MOST_MODEL_BYTES = 25_000_000


def test_packages_listed_are_packages_on_disk() -> None:
    on_disk = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "refgpt").rglob("__init__.py")}
    assert on_disk | {"refgpt.default_model"} == set(SETUPTOOLS["packages"])


def test_dependencies_are_what_is_imported() -> None:
    """test_architecture says who may import what; NumPy may all, and cffi is what the extension is made with."""
    extras = PROJECT["project"]["optional-dependencies"]
    extra = [line for name in ("mesh", "hub", "plot", "constrain", "ray", "server", "eval") for line in extras[name]]
    lines = [line.replace("-", "_") for line in PROJECT["project"]["dependencies"] + extra]
    names = {re.match(r"\w+", line)[0] for line in lines}  # type: ignore[index]
    assert names == GUESTS.keys() - {"_refgpt_kernels", "compression"} | {
        "numpy",
        "cffi",
    }


def test_data_of_packages_is_listed() -> None:
    """Whatever lies beside the modules, but for Python itself, is package data: a page has no page without it."""
    beside = {path for path in (ROOT / "refgpt").rglob("*") if path.is_file() and path.suffix not in {".py", ".pyc"}}
    listed = {
        path
        for package, patterns in SETUPTOOLS["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).glob(pattern)
    }
    assert {"py.typed", "report.html", "report.css", "report.js", "views.css", "attention.js"} <= {
        path.name for path in beside
    }
    assert beside <= listed
    kinds = {f"*{path.suffix}" for path in beside if path.suffix in {".html", ".css", ".js", ".svg"}}
    (line,) = re.findall(r"^recursive-include refgpt (.+)$", (ROOT / "MANIFEST.in").read_text("utf-8"), re.MULTILINE)
    assert kinds <= set(line.split())


def in_sdist(path: str, manifest: str) -> bool:
    """Whether MANIFEST.in, or setuptools by itself, puts a file into the sdist."""
    grafts = re.findall(r"^graft (.+)$", manifest, re.MULTILINE)
    includes = " ".join(re.findall(r"^include (.+)$", manifest, re.MULTILINE)).split()
    excluded = " ".join(re.findall(r"^global-exclude (.+)$", manifest, re.MULTILINE)).split()
    if any(Path(path).match(pattern) for pattern in excluded):
        return False
    by_itself = path.startswith("refgpt/") or path in {"README.md", "LICENSE", "pyproject.toml", "MANIFEST.in"}
    return by_itself or path in includes or any(path.startswith(f"{graft}/") for graft in grafts)


def needed_files() -> list[str]:
    """What builds the extension, what the tests read, and what a reader of the sdist is owed."""
    folders = ["csrc", "tests", "benchmarks", "docs", "weights", ".ci"]
    found = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    kept = [path for path in found if "__pycache__" not in path.parts and path.suffix not in {".so", ".o"}]
    return [path.relative_to(ROOT).as_posix() for path in kept] + ["CHANGELOG.md", "CONTRIBUTING.md", ".clang-format"]


def test_the_sdist_is_complete() -> None:
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    needed = needed_files()
    assert {"csrc/build.py", "csrc/kernels.def", "csrc/refgpt_kernels.h", "csrc/ops/linear.h"} <= set(needed)
    assert [path for path in needed if not in_sdist(path, manifest)] == []
    assert not in_sdist("csrc/build.py", manifest.replace("graft csrc\n", ""))
    assert not in_sdist("tests/kernels/left.o", manifest)


def test_everything_that_pyproject_names_exists() -> None:
    sources = [source for module in SETUPTOOLS["ext-modules"] for source in module["sources"]]
    folders = SETUPTOOLS["package-dir"].values()
    named = [PROJECT["project"]["readme"], *PROJECT["project"]["license-files"], *sources, *folders, "refgpt/py.typed"]
    assert [path for path in named if not (ROOT / path).exists()] == []
    module, _, function = PROJECT["project"]["scripts"]["refgpt"].partition(":")
    assert callable(getattr(import_module(module), function))


def test_the_default_model_is_flat_whole_and_small() -> None:
    """The wheel takes the files of weights/default, not its folders."""
    files = list(refgpt.default_model_path().rglob("*"))
    assert all(path.is_file() for path in files if path.name != "__pycache__")
    assert {"config.json", "model.safetensors", "tokenizer.model"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) <= MOST_MODEL_BYTES


def test_one_oldest_python_everywhere() -> None:
    oldest = re.fullmatch(r">=(3\.\d+)", PROJECT["project"]["requires-python"])
    assert oldest
    tag = oldest[1].replace(".", "")
    tools = PROJECT["tool"]
    assert tools["distutils"]["bdist_wheel"]["py-limited-api"] == f"cp{tag}"
    assert all(module["py-limited-api"] for module in SETUPTOOLS["ext-modules"])
    assert tools["ruff"]["target-version"] == f"py{tag}"
    assert tools["mypy"]["python_version"] == oldest[1]
    assert tools["cibuildwheel"]["build"] == f"cp{tag}-*"


def test_the_extension_is_good_for_later_pythons() -> None:
    assert import_module("_refgpt_kernels").__file__.endswith(".abi3.so")  # type: ignore[union-attr]


def test_the_changelog_knows_this_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## (\d\S*)", changelog, re.MULTILINE)
    assert released[0] == PROJECT["project"]["version"]
    assert "### Numerics" in changelog
