"""The random draws of Mesh Transformer JAX, GPT-J's original code: JAX's random number generator and its Gumbel draw.

A key is two words. The generator is Threefry-2x32 with 20 rounds over a counter (Salmon et al. 2011, Parallel random
numbers: as easy as 1, 2, 3, https://doi.org/10.1145/2063384.2063405). Until 2025, JAX laid its counters out in two
halves (``jax_threefry_partitionable=False``), and so does this module. Each text of a batch has its own key; each token
splits it into one key for this draw and one for the tokens after it, as in ``CausalTransformer.generate``.

JAX computes logarithms in float32, this module in float64: about one draw in a million differs, where two tokens are
within rounding of each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from refgpt.generation.processing import log_of

Key = tuple[int, int]
#: Draws one of the ids [m] in proportion to their weights [m]; the third argument is the number of all logits.
Draw = Callable[[np.ndarray, np.ndarray, int], int]

_ROTATIONS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = 0x1BD11BDA


def words(key: Key, n: int, at: np.ndarray) -> np.ndarray:
    """Some of the n random words of a key, by their places. at [m], 0 .. n - 1 -> [m] uint32."""
    half = (n + 1) // 2
    first = at % half  # counters i and i + half are encrypted together; an odd n is padded with a counter 0
    second = first + half
    x, y = first.astype(np.uint32), np.where(second < n, second, 0).astype(np.uint32)
    keys = np.array([*key, key[0] ^ key[1] ^ _PARITY], np.uint32)
    x, y = x + keys[0], y + keys[1]
    for i in range(5):
        for bits in _ROTATIONS[i % 2]:
            x = x + y
            y = (y << np.uint32(bits) | y >> np.uint32(32 - bits)) ^ x
        x, y = x + keys[(i + 1) % 3], y + keys[(i + 2) % 3] + np.uint32(i + 1)
    return np.where(at < half, x, y)


def split(key: Key, n: int) -> list[Key]:
    """``jax.random.split``."""
    pairs = words(key, 2 * n, np.arange(2 * n)).reshape(n, 2).tolist()
    return [(first, second) for first, second in pairs]


def mesh_draws(seed: int | None, text: int = 0, n_texts: int = 1) -> Iterator[Draw]:
    """The draws of text number ``text`` of a batch of ``n_texts``, token by token.

    Parameters
    ----------
    seed : int or None
        The low 32 bits are used, as in JAX. None takes a random seed.

    Yields
    ------
    callable
        Draws one of the ids [m] in proportion to their weights [m], as ``jax.random.categorical`` does; its third
        argument is the number of all logits.
    """
    word = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed & 0xFFFFFFFF
    key = split(split((0, word), 1 + n_texts)[1 + text], 2)[1]
    while True:
        to_draw, key = split(key, 2)
        yield partial(_drawn, key=to_draw)


def _drawn(ids: np.ndarray, weights: np.ndarray, n_rows: int, *, key: Key) -> int:
    possible = weights > 0
    ids, weights = ids[possible], weights[possible]
    return int(ids[np.argmax(log_of(weights) + gumbel(key, n_rows, ids))])


def gumbel(key: Key, n: int, at: np.ndarray) -> np.ndarray:
    """Some of the n numbers of ``jax.random.gumbel``, by their places. at [m], 0 .. n - 1 -> [m] float64."""
    bits = words(key, n, at) >> np.uint32(9) | np.uint32(0x3F800000)
    uniform = np.maximum(bits.view(np.float32) - np.float32(1), np.finfo(np.float32).tiny)
    return -log_of(-log_of(uniform.astype(np.float64)))
