"""The result of opening a checkpoint in any layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refgpt._common.errors import CheckpointError
from refgpt._common.wording import FRESH_COPY
from refgpt.numbers.checksums import checksum
from refgpt.numbers.dtypes import dtype_name
from refgpt.numbers.encoded import Encoded
from refgpt.numbers.finite import not_finite
from refgpt.numbers.leaves import Leaf
from refgpt.numbers.mapped import check_unchanged
from refgpt.numbers.tree import ParamTree
from refgpt.spec.config import AnyConfig
from refgpt.spec.families import leaf_shapes
from refgpt.tokenizers.vocabulary import Vocabulary


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as it is stored."""

    name: str
    dtype: str  # "f32", "f16", "bf16", "f64", an encoding such as "q4_0", or NumPy's name of another dtype
    shape: tuple[int, ...]
    n_bytes: int
    file: Path

    @classmethod
    def of(cls, name: str, leaf: Leaf, file: Path) -> TensorInfo:
        """Describe an array or an encoded matrix in ``file``."""
        dtype = leaf.encoding if isinstance(leaf, Encoded) else dtype_name(leaf.dtype) or str(leaf.dtype)
        return cls(name, dtype, leaf.shape, leaf.nbytes, file)


@dataclass(frozen=True, eq=False)
class Checked:
    """Bytes of a file that have a checksum (``refgpt.numbers.checksums``) and are used directly from the file."""

    words: np.ndarray  # [n], uint32
    numbers: np.ndarray  # the floats in these bytes
    checksum: str
    place: str


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An opened checkpoint. Everything is known about it, but no weight has been read.

    Attributes
    ----------
    path : Path
        The directory or file that was opened.
    format : str
        Description of the files, for display: "Hugging Face, safetensors".
    family : str
        The architecture, by its model_type.
    config : Config
        Its shape.
    params : Params
        The weights as stored: read-only views into mapped files, possibly unaligned or strided, or encoded matrices.
    mask : {"causal", "prefix"}
        The attention mask; with "prefix" all tokens of a prompt see each other.
    mask_source : str
        Where the mask was found, as a sentence for display.
    tensors : tuple of TensorInfo
        Every tensor in the files, including buffers.
    vocabulary : Vocabulary or None
        The tokenizer data in the files of weights.
    checked : tuple of Checked
        If the files have checksums of the weights: the bytes to check (``verify_checksums``).
    config_file : Path or None
        A config.json in transformers' format that came with the weights; it may have more entries than ``config``.
    own_tokenizer : bool
        Whether its tokenizer is the one that came with it; False where another was asked for.
    tokenizer_fault : str
        Why the tokenizer that came with it cannot be used; "" if it can, or there is none.
    mask_written : bool
        Whether refgpt itself wrote this mask into the files; other masks were found in another program's files, or
        taken from elsewhere.
    """

    path: Path
    format: str
    family: str
    config: AnyConfig
    params: ParamTree
    mask: str
    mask_source: str
    tensors: tuple[TensorInfo, ...]
    vocabulary: Vocabulary | None = None
    checked: tuple[Checked, ...] = ()
    config_file: Path | None = None
    own_tokenizer: bool = True
    tokenizer_fault: str = ""
    mask_written: bool = False

    @property
    def directory(self) -> Path:
        """The directory of the files that belong to the weights, such as the tokenizer's."""
        return self.path if self.path.is_dir() else self.path.parent


def verify_checksums(
    checkpoint: Checkpoint, digests_and_finite: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, bool]]
) -> None:
    """Read all bytes that have a checksum, compare them with it, and look for NaN in them.

    Parameters
    ----------
    digests_and_finite : callable
        ``refgpt.kernels.digests_and_finite``, or that of ``refgpt.numbers.checksums``, which takes longer.

    Raises
    ------
    CheckpointError
        Names the first tensor that was changed since it was written, or holds NaN or infinity. This is the only check
        for weights that are used directly from the file.
    """
    for part in checkpoint.checked:
        check_unchanged(part.words)
        piece_digests, finite = digests_and_finite(part.words, part.numbers)
        found = checksum(piece_digests)
        if found != part.checksum:
            raise CheckpointError(
                "the bytes are not those that were written: their checksum differs",
                where=part.place,
                got=found,
                wanted=part.checksum,
                fix=FRESH_COPY,
            )
        if not finite:
            raise not_finite(part.place)


def check_params(
    params: ParamTree,
    config: AnyConfig,
    names: Mapping[str, str] | None = None,
    where: object = None,
    fix: str = "use the config.json that came with these weights",
) -> None:
    """Check the shape and dtype of every leaf against the configuration.

    Parameters
    ----------
    params : Params
    config : Config
    names : mapping of str to str, optional
        Name of each leaf in the error; by default its name in ``Params.items``.
    where : object, optional
        Where the weights come from, for the error.
    fix : str, optional
        Advice for the error.

    Raises
    ------
    CheckpointError
        One error that names every leaf of a wrong shape or dtype.
    """
    names = {} if names is None else names
    wanted = {names.get(name, name): shape for name, shape in leaf_shapes(config).items()}
    check_leaves({names.get(name, name): leaf for name, leaf in params.items()}, wanted, where, fix)


def check_leaves(
    leaves: Mapping[str, Leaf], wanted: Mapping[str, tuple[int, ...]], where: object = None, fix: str = ""
) -> None:
    """Compare named leaves, or tensors, with the shapes that they should have: see ``check_params``."""
    faults = [f"{name} is missing" for name in wanted.keys() - leaves.keys()]
    faults += [f"{name} is one too many" for name in leaves.keys() - wanted.keys()]
    for name in leaves.keys() & wanted.keys():
        leaf = leaves[name]
        if dtype_name(leaf.dtype) is None:
            faults.append(f"{name} holds {leaf.dtype}, not floating-point numbers")
        if leaf.shape != wanted[name]:
            faults.append(f"{name} is {list(leaf.shape)}, the configuration says {list(wanted[name])}")
    if faults:
        raise CheckpointError(
            "the weights do not fit the configuration", where=where, got="; ".join(sorted(faults)), fix=fix
        )
