"""Scores of heads, on patterns and texts whose scores can be told by hand, and on heads made to do one thing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import GenerationError
from refgpt.runtime import Runtime
from refgpt.tracing import (
    attention_entropy,
    duplicate_token_score,
    head_scores,
    induction_score,
    previous_token_score,
    record,
    repeated_ids,
)
from tests.helpers.tiny import random_params, tiny_config
from tests.helpers.tracing_models import ENGINES, IDS, Spelling, as_model

#: One head over five positions.
PATTERN = np.array(
    [
        [
            [1.00, 0.00, 0.00, 0.00, 0.00],
            [0.30, 0.70, 0.00, 0.00, 0.00],
            [0.20, 0.30, 0.50, 0.00, 0.00],
            [0.10, 0.60, 0.10, 0.20, 0.00],
            [0.05, 0.15, 0.20, 0.20, 0.40],
        ]
    ]
)


def test_by_hand():
    assert previous_token_score(PATTERN) == pytest.approx([(0.3 + 0.3 + 0.1 + 0.2) / 4])
    ids = [8, 9, 8, 8, 9]
    # Queries 2 (key 0), 3 (keys 0, 2), 4 (key 1) have met their token before.
    assert duplicate_token_score(PATTERN, ids) == pytest.approx([(0.2 + (0.1 + 0.1) + 0.15) / 3])
    # What followed: 2 -> key 1; 3 -> key 1 (key 3 is the query itself); 4 -> key 2.
    assert induction_score(PATTERN, ids) == pytest.approx([(0.3 + 0.6 + 0.2) / 3])
    # After a token said twice running, the second is itself what followed the first.
    assert induction_score(PATTERN, [1, 1, 2, 3, 4])[0] != induction_score(PATTERN, [1, 1, 2, 1, 4])[0]
    assert induction_score(PATTERN, [1, 1, 2, 1, 4]) == pytest.approx([0.6 + 0.1])


def test_where_there_is_nothing_to_look_at():
    assert np.isnan(previous_token_score(np.ones((2, 1, 1)))).all()
    assert np.isnan(duplicate_token_score(PATTERN, [1, 2, 3, 4, 5])).all()
    assert np.isnan(induction_score(PATTERN, [1, 2, 3, 4, 4])).all()  # its successor is the query


def test_entropy():
    assert attention_entropy(PATTERN)[0, 0] == 0
    assert attention_entropy(PATTERN)[0, 1] == pytest.approx(-0.3 * math.log(0.3) - 0.7 * math.log(0.7))
    uniform = np.full((3, 2, 7), 1 / 7, np.float32)
    assert attention_entropy(uniform) == pytest.approx(np.full((3, 2), math.log(7)), rel=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_scores_of_a_model_are_those_of_its_patterns(engine):
    trace = record(ENGINES[engine], IDS, 3)
    scores = head_scores(ENGINES[engine], IDS, 3)
    for i in range(2):
        pattern = trace[f"blocks.{i}.pattern"]
        assert (scores.previous_token[i] == previous_token_score(pattern)).all()
        assert (scores.duplicate_token[i] == duplicate_token_score(pattern, IDS)).all()
        assert (scores.induction[i] == induction_score(pattern, IDS)).all()
        assert (scores.entropy[i] == attention_entropy(pattern).mean(-1)).all()


def test_a_head_made_to_find_its_own_token_is_a_duplicate_token_head():
    """Queries and keys that do not turn (they lie beyond d_rotary), equal for equal tokens and at odds for others."""
    config = tiny_config(n_layer=1, n_head=2, d_model=64, d_rotary=2, n_vocab=32)
    params = random_params(config, 1)
    match = np.zeros((64, 64), np.float32)
    match[2:32, :30] = 12 * np.eye(30)  # head 0: the token itself; head 1: nothing, so every key alike
    wte = np.zeros((32, 64), np.float32)
    wte[np.arange(32), np.arange(32)] = 1
    blocks = (
        dataclasses.replace(
            params.blocks[0], wq=match, wk=match, ln_w=np.ones(64, np.float32), ln_b=np.zeros(64, np.float32)
        ),
    )
    params = dataclasses.replace(params, wte=wte, blocks=blocks)
    ids = [3, 7, 9, 3, 7, 9, 3, 7, 9]
    for engine in (Runtime(params, config, threads=1), refgpt.runtime.spec_engine.SpecEngine(params, config)):
        scores = head_scores(engine, ids)
        assert scores.duplicate_token[0, 0] > 0.5  # the rest it gives to itself
        assert scores.previous_token[0, 0] < 0.01 > scores.induction[0, 0]
        seen = [t // 3 / (t + 1) for t in range(3, 9)]
        assert scores.duplicate_token[0, 1] == pytest.approx(np.mean(seen), rel=1e-5)
        assert scores.entropy[0, 1] == pytest.approx(np.mean([math.log(t + 1) for t in range(9)]), rel=1e-5)


def test_a_repeated_text():
    config = tiny_config(bos_id=5)
    ids = repeated_ids(config, 20, seed=3)
    assert ids[0] == 5 and (ids[1:21] == ids[21:]).all() and len(set(ids[1:21].tolist())) > 10
    assert (repeated_ids(config, 20, seed=3) == ids).all() and (repeated_ids(config, 20, seed=4) != ids).any()
    assert len(repeated_ids(tiny_config(), 32)) == 64
    with pytest.raises(GenerationError, match="n: cannot be used; got 32; wanted a whole number from 1 to 31"):
        repeated_ids(config, 32)


@pytest.mark.parametrize("backend", ["c", "numpy"])
def test_the_default_model_has_a_head_that_looks_back(backend):
    model = refgpt.load(backend=backend)
    scores = head_scores(model, "Once upon a time there was a king, and the king had a daughter, and the king was old.")
    assert scores.previous_token.shape == (6, 4)
    assert scores.previous_token.max() > 0.4 > 4 * scores.previous_token.min()


def test_a_text():
    model = as_model(ENGINES["spec"], Spelling())
    assert (head_scores(model, "abab").induction == head_scores(ENGINES["spec"], [0, 1, 0, 1]).induction).all()
