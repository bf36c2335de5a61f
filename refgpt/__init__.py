"""GPT-J to read and to run: a forward pass in plain NumPy, and C kernels that are held to it.

import refgpt
model = refgpt.load()
model.generate("Once upon a time", max_new_tokens=40, seed=1).text
"""

from importlib.metadata import PackageNotFoundError, version

from refgpt.config import ModelConfig
from refgpt.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    GenerationError,
    KernelError,
    RefgptError,
    TokenizerError,
)
from refgpt.evaluation import Classification
from refgpt.generation import Generation, GenerationParams
from refgpt.model import Model, default_model_path, load
from refgpt.tokenizers import load_tokenizer

try:
    __version__ = version("refgpt")
except PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+checkout"

__all__ = [
    "CheckpointError",
    "Classification",
    "ConfigError",
    "DataError",
    "Generation",
    "GenerationError",
    "GenerationParams",
    "KernelError",
    "Model",
    "ModelConfig",
    "RefgptError",
    "TokenizerError",
    "default_model_path",
    "load",
    "load_tokenizer",
]
