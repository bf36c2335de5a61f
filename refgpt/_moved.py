"""Former module names: they can still be imported, and lead to the modules that have replaced them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast

#: For each former module, the modules that hold its names now; they are searched in this order.
MOVED = {
    "arguments": ("_common.arguments",),
    "benchmarking": ("evaluation.speed",),
    "checksums": ("numbers.checksums",),
    "config": ("spec.config", ""),
    "drafting": ("generation.prompt_lookup",),
    "encoded": ("numbers.encoded",),
    "engine": ("runtime.engine", "runtime.spec_engine"),
    "errors": ("_common.errors",),
    "file_names": ("_common.file_names",),
    "hub": ("checkpoints.hub",),
    "memory": ("_common.memory",),
    "model": ("_model", "_load", "_open"),
    "panels": ("numbers.panels",),
    "params": (
        "spec.gptj",
        "numbers.leaves",
        "numbers.dtypes",
        "numbers.casting",
        "_common.progress",
        "checkpoints.checkpoint",
    ),
    "prompts": ("spec.ids",),
    "quantisation": ("numbers.quantisation", "numbers.packing"),
    "report": ("inspect",),
    "sampling": ("generation.sampling",),
    "scoring": ("generation.scoring",),
    "small_files": ("_common.small_files",),
    "spec.primitives": ("spec.ops",),
    "spec.rotary": ("spec.positions",),
    "stopping": ("generation.stopping",),
    "tracing.bounds": ("spec.bounds.ops", "spec.bounds"),
    "vocabulary": ("tokenizers.vocabulary",),
    "wording": ("_common.wording",),
}
#: Names that changed when their module moved.
RENAMED = {"params.check": "checkpoints.checkpoint.check_params"}

PACKAGE = __package__ or "refgpt"


class _Former(ModuleType):
    """A module under its former name. It looks names up in the modules that replaced it."""

    def __getattr__(self, name: str) -> Any:
        former = self.__name__.removeprefix(f"{PACKAGE}.")
        where, _, now = RENAMED.get(f"{former}.{name}", "").rpartition(".")
        if where:
            return getattr(import_module(f"{PACKAGE}.{where}"), now)
        for place in MOVED[former]:
            module = import_module(f"{PACKAGE}.{place}".rstrip("."))
            if hasattr(module, name):
                return getattr(module, name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class Finder:
    """Finds modules by their former names, after all other finders have failed.

    It has the methods of ``importlib.abc.MetaPathFinder`` and ``Loader``, but does not import them: in Python 3.11 they
    import ``tempfile``, ``zipfile`` and more.
    """

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``."""
        package, _, former = name.partition(".")
        return ModuleSpec(name, cast(Any, self)) if package == PACKAGE and former in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """A module that looks names up in the modules that replaced it."""
        return _Former(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module has no code of its own."""


def install() -> None:
    """Make former names importable."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())
