"""Checks of a prompt for every engine: at least one id, all ids exist, no more ids than the model has positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refgpt._common.arguments import floating_dtype, whole_number
from refgpt._common.errors import GenerationError, RefgptError
from refgpt.numbers.dtypes import DTypeLike
from refgpt.spec.config import AnyConfig


def check_ids(ids: Sequence[int] | np.ndarray, config: AnyConfig, prefix_len: int = 0) -> np.ndarray:
    """Check ids and return them as an array.

    Parameters
    ----------
    ids : sequence of int
        One token id per position.
    config : Config
        Says how many ids (``n_vocab``) and positions (``n_ctx``) there are.
    prefix_len : int
        Number of leading positions that see one another; 0 is the causal mask.

    Returns
    -------
    ndarray [t], int64

    Raises
    ------
    GenerationError
        Naming the first thing that is wrong with ``ids`` or ``prefix_len``.
    """
    array = check_tokens(ids, config)
    if array.size == 0:
        raise GenerationError("the prompt is empty", where="ids", fix="give at least one id")
    if array.size > config.n_ctx:
        raise GenerationError(
            "the prompt is longer than the model's context",
            where="ids",
            got=f"{array.size} ids",
            wanted=f"at most {config.n_ctx}",
            fix="shorten it, as truncate='left' (--truncate left) does for generate",
        )
    check_prefix(prefix_len, array.size, config)
    return array


def check_run(
    ids: Sequence[int] | np.ndarray, config: AnyConfig, prefix_len: int, dtype: DTypeLike
) -> tuple[np.ndarray, int]:
    """What a forward pass of the spec is given, once it is known to be usable: ids [t] and the prefix's length.

    Raises
    ------
    GenerationError
        If ``ids`` or ``prefix_len`` cannot be used.
    RefgptError
        If ``dtype`` is not a floating dtype.
    """
    floating_dtype("dtype", dtype, RefgptError)
    array = check_ids(ids, config)
    return array, check_prefix(prefix_len, len(array), config)


def check_prefix(prefix_len: int, n: int, config: AnyConfig) -> int:
    """How many of ``n`` positions see one another, as Python's own int.

    Raises
    ------
    GenerationError
        If there are not so many, or the model has local layers, whose queries do not see a whole prefix.
    """
    prefix_len = whole_number("prefix_len", prefix_len, 0, n, GenerationError)
    if prefix_len and config.window is not None:
        raise GenerationError(
            "a prefix mask does not go with local attention",
            where="prefix_len",
            got=f"{prefix_len}, and layers that see {config.window} keys",
            wanted="0",
        )
    return prefix_len


def check_tokens(ids: Sequence[int] | np.ndarray, config: AnyConfig) -> np.ndarray:
    """Check that each id exists, and return the ids as an array. There may be any number of them.

    Returns
    -------
    ndarray [n], int64

    Raises
    ------
    GenerationError
        Naming the first thing that is wrong with ``ids``.
    """
    array = check_flat(ids)
    outside = (array < 0) | (array >= config.n_vocab)
    if outside.any():
        t = int(outside.argmax())
        raise GenerationError(
            "the id does not exist in this vocabulary",
            where=f"ids[{t}]",
            got=array[t],
            wanted=f"0 to {config.n_vocab - 1}",
            fix="encode the text with the tokenizer that came with the model",
        )
    return array.astype(np.int64)


def check_flat(ids: Sequence[int] | np.ndarray) -> np.ndarray:
    """Whole numbers as an array [n] of some integer dtype; a GenerationError if ``ids`` are anything else."""
    try:
        array = np.asarray(ids)
    except (ValueError, TypeError, OverflowError):
        raise GenerationError("ids are not one flat list of numbers", where="ids", got=type(ids).__name__) from None
    if array.ndim != 1:
        raise GenerationError("ids are not one flat list", where="ids", got=f"{array.ndim} dimensions", wanted="1")
    if array.size and array.dtype.kind not in "iu":
        raise GenerationError("ids are not whole numbers", where="ids", got=array.dtype, wanted="integers")
    return array


def check_cut(n: int, length: int, prefix_len: int) -> int:
    """Check that a sequence may be cut to its first ``n`` tokens, and return ``n`` as a Python int.

    The tokens of a prefix have all seen each other, so part of a prefix is not the same as a shorter prefix: a prefix
    is kept whole or dropped whole. The same holds for sharing: if a sequence cannot be cut at a place, its beginning up
    to there cannot be shared with another sequence.

    Parameters
    ----------
    n, length, prefix_len : int
        Number of tokens to keep, length of the sequence, and length of its prefix.

    Raises
    ------
    GenerationError
        If ``n`` is larger than ``length``, or would cut a prefix.
    """
    n = whole_number("n", n, 0, length, GenerationError)
    if 0 < n < prefix_len:
        raise GenerationError(
            "would cut a prefix, whose tokens have all seen each other",
            where="n",
            got=n,
            wanted=f"0, or {prefix_len} to {length}",
            fix="prefill the shorter prompt anew",
        )
    return n
