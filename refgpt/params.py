"""The parameter tree of a GPT-J: dataclasses of arrays, matrices as ``[out, in]`` like the checkpoints.

Leaves keep the dtype they were stored in and are usually memory maps: a tree of a 24 GB checkpoint costs nothing until
it is read. NumPy has no bfloat16, so such a leaf has the structured dtype ``BFLOAT16``; ``widen`` turns any leaf into
floats. A matrix may also be ``Encoded``: stored in blocks, shards or panels, and decoded where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import DTypeLike

from refgpt.config import ModelConfig
from refgpt.encoded import Encoded
from refgpt.errors import CheckpointError

#: A bfloat16 is the upper half of a float32; the field name keeps it apart from plain 16-bit integers.
BFLOAT16 = np.dtype([("bfloat16", "<u2")])

STORED_DTYPES: dict[str, np.dtype] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": BFLOAT16,
    "f64": np.dtype("<f8"),
}

#: What a cache can keep keys and values in.
KVDtype = Literal["f32", "f16"]
KV_DTYPES = get_args(KVDtype)

#: One parameter: a vector is always an array.
Leaf = np.ndarray | Encoded

#: Numbers of a matrix that are worked on together while it is read.
SLICE = 1 << 22

#: Called with the bytes that are loaded and the bytes in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Block:
    """One transformer block: the LayerNorm that both branches share, attention (no biases), MLP."""

    ln_w: np.ndarray  # [c]
    ln_b: np.ndarray  # [c]
    wq: Leaf  # [c, c]   rows are heads x d_head
    wk: Leaf  # [c, c]
    wv: Leaf  # [c, c]
    wo: Leaf  # [c, c]
    w_in: Leaf  # [f, c]
    b_in: np.ndarray  # [f]
    w_out: Leaf  # [c, f]
    b_out: np.ndarray  # [c]


@dataclass(frozen=True)
class Params:
    """All parameters of a model."""

    wte: Leaf  # [v, c]   token embeddings
    blocks: tuple[Block, ...]
    ln_w: np.ndarray  # [c]      final LayerNorm
    ln_b: np.ndarray  # [c]
    w_head: Leaf  # [v, c]   output head, not tied to wte
    b_head: np.ndarray  # [v]

    @classmethod
    def from_leaves(cls, leaves: Mapping[str, Any], n_layer: int) -> Params:
        """The tree of leaves named as ``items`` names them: its inverse."""
        blocks = tuple(Block(**{f.name: leaves[f"blocks.{i}.{f.name}"] for f in fields(Block)}) for i in range(n_layer))
        return cls(blocks=blocks, **{f.name: leaves[f.name] for f in fields(cls) if f.name != "blocks"})

    def items(self) -> Iterator[tuple[str, Leaf]]:
        """Each leaf with its name, "wte", "blocks.0.ln_w", ..., in the order of the forward pass."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "blocks":
                yield field.name, value
                continue
            for i, block in enumerate(value):
                for leaf in fields(block):
                    yield f"blocks.{i}.{leaf.name}", getattr(block, leaf.name)

    @property
    def size(self) -> int:
        """How many numbers all leaves hold together."""
        return sum(leaf.size for _, leaf in self.items())

    @property
    def nbytes(self) -> int:
        """How many bytes all leaves take together, as they are stored."""
        return sum(leaf.nbytes for _, leaf in self.items())

    def map(self, change: Callable[[str, Leaf], Leaf]) -> Params:
        """The same tree with every leaf replaced by ``change(name, leaf)``."""
        return self.from_leaves({name: change(name, leaf) for name, leaf in self.items()}, len(self.blocks))

    def kept_as(self, dtype: str | None) -> Params:
        """The values in floats that an engine computes with: every leaf as ``kept_leaf`` says, which may raise."""
        return self.map(lambda name, leaf: kept_leaf(name, leaf, dtype))


def dtype_name(dtype: np.dtype) -> str | None:
    """What a stored dtype is called here, "f32", "f16", "bf16" or "f64"; None for any other dtype."""
    return next((name for name, known in STORED_DTYPES.items() if known == dtype), None)


def widen(stored: Leaf, dtype: DTypeLike = np.float32) -> np.ndarray:
    """A stored array as plain floats; exact from any 16-bit dtype.

    Parameters
    ----------
    stored : ndarray or Encoded
        float16, bfloat16 (``BFLOAT16``), float32 or float64, or a matrix that decodes to one of them.
    dtype : dtype
        The floating dtype wanted.

    Returns
    -------
    ndarray
        Aligned, for NumPy multiplies unaligned matrices without its BLAS: slowly, and in another order. A copy, or
        ``stored`` itself where it already is as wanted.
    """
    if isinstance(stored, Encoded):
        stored = stored.rows(0, stored.shape[0])
    if stored.dtype == BFLOAT16:
        stored = (stored["bfloat16"].astype(np.uint32) << 16).view(np.float32)
    return np.require(stored.astype(dtype, copy=False), requirements="A")


def row_slices(leaf: Leaf) -> Iterator[np.ndarray]:
    """A leaf in pieces of whole rows, in order: a vector as one, a large matrix some megabytes at a time.

    Every piece but the last has a multiple of 64 rows, and so whole panels.
    """
    n_rows = max(64, SLICE // max(leaf.size // max(leaf.shape[0], 1), 1) // 64 * 64)
    for start in range(0, leaf.shape[0], n_rows):
        stop = min(start + n_rows, leaf.shape[0])
        yield leaf.rows(start, stop) if isinstance(leaf, Encoded) else leaf[start:stop]


def kept_leaf(name: str, leaf: Leaf, dtype: str | None) -> Leaf:
    """A leaf as an engine keeps it in memory.

    Parameters
    ----------
    dtype : "f16", "f32", "f64" or None
        "f16" rounds matrices to float16; the few vectors (biases, LayerNorms) keep what they have. "f32" and None round
        float64 to float32 and leave narrower floats alone, since widening them later is exact. "f64" changes nothing.

    Raises
    ------
    CheckpointError
        If the leaf holds a number that float16, or float32, cannot; ``name`` is its ``where``.
    """
    if dtype == "f16" and leaf.ndim == 2 and leaf.dtype != np.float16:
        return _narrowed(name, leaf, np.float16, "load with dtype='f32' (--dtype f32)")
    if dtype != "f64" and leaf.dtype == STORED_DTYPES["f64"]:
        fix = "load with dtype='f64' and backend='numpy' (--dtype f64 --backend numpy)"
        return _narrowed(name, leaf, np.float32, fix)
    return leaf


def _narrowed(name: str, leaf: Leaf, dtype: type[np.floating], fix: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = widen(leaf, dtype)
    if not np.isfinite(narrow).all():
        raise CheckpointError(
            f"holds numbers that {dtype.__name__} cannot",
            where=name,
            wanted=f"at most {np.finfo(dtype).max:g}",
            fix=fix,
        )
    return narrow


def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every leaf's name and shape, in the order of ``Params.items``."""
    c, f, v = config.d_model, config.d_ff, config.n_vocab
    block = {
        "ln_w": (c,),
        "ln_b": (c,),
        "wq": (c, c),
        "wk": (c, c),
        "wv": (c, c),
        "wo": (c, c),
        "w_in": (f, c),
        "b_in": (f,),
        "w_out": (c, f),
        "b_out": (c,),
    }
    shapes: dict[str, tuple[int, ...]] = {"wte": (v, c)}
    for i in range(config.n_layer):
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes | {"ln_w": (c,), "ln_b": (c,), "w_head": (v, c), "b_head": (v,)}


def check(
    params: Params,
    config: ModelConfig,
    names: Mapping[str, str] | None = None,
    where: object = None,
    fix: str = "use the config.json that came with these weights",
) -> None:
    """Compare every leaf with the configuration.

    Parameters
    ----------
    params : Params
    config : ModelConfig
    names : mapping of str to str, optional
        What the reader knows each leaf as; by default what ``Params.items`` calls it.
    where : object, optional
        Where the weights come from, for the error.
    fix : str, optional
        The way out.

    Raises
    ------
    CheckpointError
        One error that names every leaf of a wrong shape or dtype.
    """
    wanted = leaf_shapes(config)
    leaves = dict(params.items())
    faults = [f"{name} is missing" for name in wanted.keys() - leaves.keys()]
    faults += [f"{name} is one too many" for name in leaves.keys() - wanted.keys()]
    for name in leaves.keys() & wanted.keys():
        leaf, known_as = leaves[name], name if names is None else names[name]
        if dtype_name(leaf.dtype) is None:
            faults.append(f"{known_as} holds {leaf.dtype}, not floating-point numbers")
        if leaf.shape != wanted[name]:
            faults.append(f"{known_as} is {list(leaf.shape)}, the configuration says {list(wanted[name])}")
    if faults:
        raise CheckpointError(
            "the weights do not fit the configuration", where=where, got="; ".join(sorted(faults)), fix=fix
        )
