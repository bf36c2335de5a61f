"""The reference has every public name, and every command."""

from __future__ import annotations

import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import refgpt

DOCS = Path(__file__).parents[2] / "docs"
ENTRY = re.compile(r"^\.\. (?:auto\w+|py:data):: (refgpt\S*)$", re.MULTILINE)


def entries() -> list[str]:
    """The full names of all entries of the reference."""
    pages = sorted((DOCS / "reference").glob("*.md"))
    return [name for page in pages for name in ENTRY.findall(page.read_text(encoding="utf-8"))]


def resolve(name: str) -> Any:
    """What a full name stands for. Some functions are called like their modules, so modules come last."""
    package, _, attribute = name.rpartition(".")
    if package:
        module = import_module(package)
        if hasattr(module, attribute):
            return getattr(module, attribute)
    return import_module(name)


def public_names() -> dict[str, Any]:
    """What the packages say they export."""
    packages = [refgpt, *(import_module(f"refgpt.{m.name}") for m in pkgutil.iter_modules(refgpt.__path__) if m.ispkg)]
    lists = {package.__name__: package for package in packages if hasattr(package, "__all__")}
    return {f"{name}.{each}": getattr(package, each) for name, package in lists.items() for each in package.__all__}


def test_every_entry_exists() -> None:
    assert len(entries()) > 100
    for name in entries():
        resolve(name)


def test_no_entry_stands_twice() -> None:
    found = entries()
    assert sorted(set(found)) == sorted(found)


def test_every_public_name_has_an_entry() -> None:
    """By itself or as what it is: a class that two packages export needs one entry only."""
    documented = {id(resolve(name)) for name in entries()}
    names = public_names()
    assert {"refgpt.load", "refgpt.spec.forward", "refgpt.kernels.linear", "refgpt.tracing.verify"} <= names.keys()
    assert [name for name, it in names.items() if id(it) not in documented and name not in entries()] == []


def test_every_command_has_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx", reason='the site needs the extra "docs"')
    monkeypatch.syspath_prepend(str(DOCS))
    command_line = import_module("command_line")
    parser = command_line.build_parser()
    listed = command_line.commands(parser)
    assert {"generate", "info", "verify", "convert", "kernels"} <= listed.keys()
    whole = command_line.help_of(parser)
    for name, command in listed.items():
        text = command_line.help_of(command)
        assert f"\n    {name} " in whole, name
        assert text.startswith(f"usage: refgpt {name} "), text
        assert "\x1b" not in text
        usage = command_line.usage_of(command)
        assert usage.startswith(f"refgpt {name}") and "[-" not in usage
        options = dict(one for _, arguments in command_line.options_of(command) for one in arguments)
        assert options and all(options.values()), name
        assert "%(default)" not in "".join(options.values())
