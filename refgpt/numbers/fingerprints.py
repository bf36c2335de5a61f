"""Fingerprints of weights: which weights a model has, in the time that it takes to read them.

A change of any one word changes the fingerprint with certainty (``refgpt.numbers.checksums``), and it depends on the
numbers as an engine keeps them, not on the files they came from. It is no signature.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np

from refgpt.numbers.adapted import Adapted
from refgpt.numbers.checksums import checksum
from refgpt.numbers.leaves import Leaf, StoredRows, row_slices
from refgpt.numbers.panels import Panels
from refgpt.numbers.tree import ParamTree


def fingerprint(
    params: ParamTree,
    digests: Callable[[np.ndarray], np.ndarray],
    seen: Callable[[str, Leaf], object] | None = None,
) -> str:
    """The fingerprint of all leaves, with their names, shapes and kinds.

    Parameters
    ----------
    params : Params
    digests : callable
        ``refgpt.kernels.digests``, or the same in NumPy.
    seen : callable, optional
        Called with the name of each leaf and the leaf after it was read.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    found = hashlib.sha256()
    for name, leaf in params.items():
        for kind, stored in _stored(leaf):
            found.update(f"{name} {kind} {stored.dtype.str} {stored.shape} ".encode())
            found.update(checksum(digests(_words(stored))).encode())
        if seen is not None:
            seen(name, leaf)
    return found.hexdigest()


def _stored(leaf: Leaf) -> Iterator[tuple[str, np.ndarray]]:
    """The arrays that a leaf is made of, each with its kind."""
    if isinstance(leaf, Adapted):
        yield from _stored(leaf.base)
        yield from (("a", leaf.a), ("b", leaf.b), ("scale", np.array([leaf.scale], np.float64)))
    elif isinstance(leaf, Panels):
        yield f"{leaf.kind} {leaf.shape}", leaf.data
    elif isinstance(leaf, StoredRows):
        yield leaf.encoding, leaf.data
    elif isinstance(leaf, np.ndarray):
        yield "rows", leaf
    else:
        yield from ((leaf.encoding, rows) for rows in row_slices(leaf))


def _words(stored: np.ndarray) -> np.ndarray:
    """An array's bytes as words, with zeros for what the last one lacks."""
    raw = np.ascontiguousarray(stored).reshape(-1).view(np.uint8)
    n_left = len(raw) % 4
    whole = raw if not n_left else np.concatenate((raw, np.zeros(4 - n_left, np.uint8)))
    return np.require(whole, requirements="A").view(np.uint32)
