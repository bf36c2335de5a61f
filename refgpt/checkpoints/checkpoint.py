"""What opening a checkpoint gives, whatever its layout."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refgpt.config import ModelConfig
from refgpt.params import Params
from refgpt.vocabulary import Vocabulary


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as it is stored."""

    name: str
    dtype: str  # "f32", "f16", "bf16", "f64", an encoding such as "q4_0", or NumPy's name of another dtype
    shape: tuple[int, ...]
    n_bytes: int
    file: Path


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint: everything is known about it, and no weight has been read.

    Attributes
    ----------
    path : Path
        The directory or file that was opened.
    format : str
        What the files are, for the reader: "Hugging Face, safetensors".
    family : str
        The architecture, by its model_type.
    config : ModelConfig
        Its shape.
    params : Params
        The weights as stored: read-only views into mapped files, possibly unaligned or strided, or encoded matrices.
    mask : {"causal", "prefix"}
        Whether a prompt sees itself in one direction or in both.
    mask_source : str
        How that is known, as a sentence for the reader.
    tensors : tuple of TensorInfo
        Every tensor in the files, buffers too.
    vocabulary : Vocabulary or None
        What the files of weights themselves say about the tokenizer.
    """

    path: Path
    format: str
    family: str
    config: ModelConfig
    params: Params
    mask: str
    mask_source: str
    tensors: tuple[TensorInfo, ...]
    vocabulary: Vocabulary | None = None
