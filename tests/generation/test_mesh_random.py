"""The draws of the sampler "mesh" against those that JAX makes for Mesh Transformer JAX."""

from __future__ import annotations

import numpy as np
import pytest

from refgpt.generation.mesh_random import gumbel, words
from refgpt.generation.processing import log, log_of
from refgpt.generation.sampling import Sampler, SamplingParams
from tests.goldens import HERE

GOLDEN = np.load(HERE / "mesh_random.npz")
SEEDS = [int(seed) for seed in GOLDEN["seeds"]]
KEY = (0, 7)


@pytest.mark.parametrize("n", [1, 2, 7, 50400, 50401])
def test_random_words_and_gumbel_numbers_are_those_of_jax(n):
    places = GOLDEN["places"] if n > 400 else np.arange(n)
    assert np.array_equal(words(KEY, n, places), GOLDEN[f"bits {n}"])
    want = GOLDEN[f"gumbel {n}"]
    np.testing.assert_allclose(gumbel(KEY, n, places), want, rtol=1e-5, atol=1e-6)  # JAX's logarithms are float32


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("batch", ["one", "three"])
def test_equal_logits_and_an_equal_seed_give_the_tokens_of_the_original(batch, seed):
    texts, want = GOLDEN[f"{batch}: logits"], GOLDEN[f"{batch}: draws of {seed}"]
    params = SamplingParams(temperature=0.75, seed=seed, sampler="mesh")
    for i, rows in enumerate(texts):
        sampler = Sampler(params, stream=i, n_texts=len(texts))
        assert [sampler.choose(row).id for row in rows] == want[i].tolist()


def test_draws_agree_where_filters_leave_few_tokens_and_ids_are_missing():
    """A draw is decided by each token's own number, so that removing others changes nothing else."""
    texts, want = GOLDEN["one: logits"][0], GOLDEN[f"one: draws of {SEEDS[2]}"][0]
    exists = np.ones(61, bool)
    exists[np.setdiff1d(np.arange(61), want)] = False
    sampler = Sampler(SamplingParams(temperature=0.75, seed=SEEDS[2], sampler="mesh"), exists=exists)
    assert [sampler.choose(row).id for row in texts] == want.tolist()


def test_guesses_are_made_with_the_numbers_of_the_draws_to_come():
    rows, params = GOLDEN["one: logits"][0][:5], SamplingParams(temperature=0.75, seed=1, sampler="mesh")
    sampler = Sampler(params)
    guesses = [sampler.guess(row, [], n) for n, row in enumerate(rows)]
    assert [sampler.choose(row).id for row in rows] == guesses


def test_without_a_seed_two_texts_differ():
    rows, params = GOLDEN["one: logits"][0], SamplingParams(temperature=5.0, sampler="mesh")
    one, two = ([sampler.choose(row).id for row in rows] for sampler in (Sampler(params), Sampler(params)))
    assert one != two


def test_logarithms_of_many_are_those_of_each():
    x = np.concatenate([np.geomspace(5e-324, 1e308, 500), 1 - np.geomspace(1e-16, 0.9, 200)])
    assert log_of(x).tolist() == [log(float(one)) for one in x]
