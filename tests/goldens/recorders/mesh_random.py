"""Record keys, random words, Gumbel numbers and draws of JAX, as Mesh Transformer JAX asks for them.

Recorded with jax 0.10.2 and dm-haiku 0.0.17 (``pip install jax dm-haiku``) for tests/generation/test_mesh_random.py.
JAX's generator lays out its counters here as it did by default when that program was written.
"""

import haiku as hk
import jax
import numpy as np

from tests.goldens import HERE

SEEDS = [0, 1, 7, 2**31 + 5, 2**32 + 9, 2**60 - 3]
#: Batch, vocabulary, steps.
SHAPES = {"one": (1, 61, 40), "three": (3, 62, 20)}


def text_keys(seed: int, n_texts: int) -> list[jax.Array]:
    """What a batch of texts draws from: a key for each of Haiku's sequence, then the next one of that key."""
    next_key = hk.transform(hk.next_rng_key)
    return [next_key.apply({}, key) for key in hk.PRNGSequence(seed).take(n_texts)]


def draws(key: jax.Array, rows: np.ndarray, temperature: float) -> list[int]:
    """A token a row: each step splits the key into one to draw with and one to go on with."""
    found = []
    for row in rows:
        to_draw, key = jax.random.split(key)
        found.append(int(jax.random.categorical(to_draw, row[None] / np.float32(temperature), -1)[0]))
    return found


def main() -> None:
    jax.config.update("jax_threefry_partitionable", False)
    rng, arrays = np.random.default_rng(0), {}
    arrays["seeds"] = np.array(SEEDS, np.uint64)
    arrays["keys"] = np.array([text_keys(seed, 1)[0] for seed in SEEDS])
    arrays["keys of three"] = np.array([text_keys(seed, 3) for seed in SEEDS])
    arrays["places"] = np.sort(rng.permutation(50400)[:400])
    for n in (1, 2, 7, 50400, 50401):
        bits, numbers = (draw(jax.random.PRNGKey(7), (1, n))[0] for draw in (jax.random.bits, jax.random.gumbel))
        places = arrays["places"] if n > 400 else np.arange(n)
        arrays[f"bits {n}"], arrays[f"gumbel {n}"] = np.array(bits)[places], np.array(numbers)[places]
    for name, (n_texts, n_vocab, n_steps) in SHAPES.items():
        logits = (2 * rng.standard_normal((n_texts, n_steps, n_vocab))).astype(np.float32)
        arrays[f"{name}: logits"] = logits
        for seed in SEEDS:
            keys = text_keys(seed, n_texts)
            found = [draws(key, rows, 0.75) for key, rows in zip(keys, logits, strict=True)]
            arrays[f"{name}: draws of {seed}"] = np.array(found)
    np.savez_compressed(HERE / "mesh_random.npz", **arrays)
