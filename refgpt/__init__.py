"""GPT-J, readable and fast: a forward pass in plain NumPy, and C kernels that are tested against it.

import refgpt
model = refgpt.load()
model.generate("Once upon a time", max_new_tokens=40, seed=1).text
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from refgpt import _moved
from refgpt._common.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GenerationError,
    KernelError,
    RefgptError,
    ServerError,
    TokenizerError,
)
from refgpt._common.wording import PrintableRecords

if TYPE_CHECKING:
    __version__: str
    from refgpt._load import load, merge_adapter
    from refgpt._model import Model
    from refgpt._new_model import new_model
    from refgpt._open import default_model_path
    from refgpt.evaluation import Classification
    from refgpt.generation import Constraint, Generation, GenerationParams, Scheduler, grammar, json_schema, regex
    from refgpt.spec.gptj import Config as ModelConfig
    from refgpt.tokenizers import load_tokenizer

_moved.install()
logging.getLogger("refgpt").addFilter(PrintableRecords())  # log messages contain file names

__all__ = [
    "CheckpointError",
    "Classification",
    "ConfigError",
    "Constraint",
    "DataError",
    "Generation",
    "GenerationError",
    "GenerationParams",
    "KernelError",
    "Model",
    "ModelConfig",
    "RefgptError",
    "Scheduler",
    "ServerError",
    "TokenizerError",
    "default_model_path",
    "grammar",
    "json_schema",
    "load",
    "load_tokenizer",
    "merge_adapter",
    "new_model",
    "regex",
]


#: Packages that are imported on first use. ``LAZY_NAMES`` are imported from them: its values are their full names.
LAZY_PACKAGES = (
    "checkpoints",
    "conversion",
    "evaluation",
    "generation",
    "kernels",
    "numbers",
    "plotting",
    "runtime",
    "spec",
    "tokenizers",
    "tracing",
    "training",
)
LAZY_NAMES = {
    "Classification": "evaluation.Classification",
    "Constraint": "generation.Constraint",
    "Generation": "generation.Generation",
    "GenerationParams": "generation.GenerationParams",
    "Model": "_model.Model",
    "ModelConfig": "spec.gptj.Config",
    "Scheduler": "generation.Scheduler",
    "default_model_path": "_open.default_model_path",
    "grammar": "generation.grammar",
    "json_schema": "generation.json_schema",
    "load": "_load.load",
    "load_tokenizer": "tokenizers.load_tokenizer",
    "merge_adapter": "_load.merge_adapter",
    "new_model": "_new_model.new_model",
    "regex": "generation.regex",
}


def __getattr__(name: str) -> Any:
    if name in LAZY_PACKAGES:
        return import_module(f"refgpt.{name}")
    if name in LAZY_NAMES:
        module, _, own_name = LAZY_NAMES[name].rpartition(".")
        return getattr(import_module(f"refgpt.{module}"), own_name)
    if name == "__version__":
        return _installed_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *LAZY_PACKAGES})


def _installed_version() -> str:
    """The installed version: pip's records are files, so they are read only on demand."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("refgpt")
    except PackageNotFoundError:  # a checkout that is not installed
        return "0+checkout"
