"""The order of Mesh Transformer JAX's sampler, against a restatement token by token."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refgpt._common.errors import GenerationError
from refgpt.generation.sampling import Sampler, SamplingParams


def restated(logits: list[float], temperature: float, top_p: float, top_k: int | None) -> list[float]:
    """The distribution that its ``nucleaus_sample`` draws from, token by token.

    ``nucleaus_filter`` sorts the probabilities of all tokens (``jnp.argsort`` reversed, so that equals come with the
    higher id first), subtracts 1e10 times its id from what ranks after top_k, and 1e10 from what follows a sum above
    top_p. Only then is it divided by the temperature.
    """
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], -i))
    total = math.fsum(math.exp(one) for one in logits)
    masked, before = list(logits), 0.0
    for rank, i in enumerate(order):
        if top_k is not None and rank > top_k:
            masked[i] -= 1e10 * i
        if rank and before > top_p:
            masked[i] -= 1e10
        before += math.exp(logits[i]) / total
    best = max(masked)
    weights = [math.exp(max((one - best) / temperature, -800.0)) for one in masked]
    return [one / sum(weights) for one in weights]


@given(
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.3, 0.75, 1.0, 2.5]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.97, 1.0]),
    top_k=st.sampled_from([None, 1, 3, 20, 100]),
    tied=st.booleans(),
)
def test_the_distribution_is_that_of_the_restatement(seed, temperature, top_p, top_k, tied):
    row = np.random.default_rng(seed).normal(0, 2, 61)
    row = (row.round(0) + (row == row.max()) if tied else row).astype(np.float32)
    params = SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, sampler="mesh")
    ids, weights = Sampler(params).candidates(row)
    want = np.array(restated(row.tolist(), temperature, top_p, top_k))
    if top_p == 1:  # where the restatement's own rounding may drop the last of them
        want = np.array(restated(row.tolist(), temperature, 2.0, top_k))
    got = np.zeros(61)
    got[ids] = weights / weights.sum()
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-300)


def test_it_differs_from_transformers_where_it_should():
    row = np.log(np.array([0.01, 0.5, 0.3, 0.15, 0.04]))

    def kept(**params):
        return Sampler(SamplingParams(**params)).candidates(row)[0].tolist()

    assert kept(top_k=2) == [1, 2] and kept(top_k=2, sampler="mesh") == [0, 1, 2, 3]
    hot = {"temperature": 100.0, "top_p": 0.75}
    assert kept(**hot) == [1, 2, 3, 4] and kept(**hot, sampler="mesh") == [1, 2]
    assert kept(temperature=0, top_k=1, sampler="mesh") == [1]
    assert kept(top_k=1, suppress_tokens=[0], sampler="mesh") == [1, 2]  # what is banned stays banned
    with pytest.raises(GenerationError, match=r"^sampler: "):
        SamplingParams(sampler="jax")


def test_the_command_line(run):
    asked = ("generate", "Once", "--seed", 1, "-n", 8, "--temperature", 2, "--repetition-penalty", 1)
    assert run(*asked, "--sampler", "mesh").out != run(*asked).out
