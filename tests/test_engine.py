"""The spec as an engine: its sessions, which keep nothing but ids."""

from __future__ import annotations

import numpy as np
import pytest

from refgpt._common.errors import GenerationError
from refgpt.runtime.spec_engine import SpecEngine
from refgpt.spec import forward
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(n_ctx=12)
PARAMS = random_params(CONFIG, seed=8)
ENGINE = SpecEngine(PARAMS, CONFIG)
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
GOING, BOTH_WAYS = 0, 1


@pytest.fixture
def session():
    session = ENGINE.session(2, CONFIG.n_ctx)
    session.prefill(GOING, IDS[:5])
    session.prefill(BOTH_WAYS, IDS[:5], 4)
    return session


@pytest.mark.parametrize("seq, prefix_len", [(GOING, 0), (BOTH_WAYS, 4)])
def test_extending_is_decoding_token_by_token(session, seq, prefix_len):
    rows = session.extend(seq, IDS[5:])
    for n, row in enumerate(rows, 6):
        assert (row == forward(PARAMS, CONFIG, IDS[:n], prefix_len, np.float32)[-1]).all()
    session.truncate(seq, 5)
    assert all((session.decode([seq], [new])[0] == row).all() for new, row in zip(IDS[5:], rows, strict=True))


def test_what_was_cut_is_forgotten(session):
    session.extend(GOING, [7, 7, 7])
    session.truncate(GOING, 5)
    session.truncate(BOTH_WAYS, 4)
    session.decode([BOTH_WAYS], IDS[4:5])
    for seq, prefix_len in ((GOING, 0), (BOTH_WAYS, 4)):
        want = forward(PARAMS, CONFIG, IDS[:6], prefix_len, np.float32)[-1]
        assert (session.decode([seq], IDS[5:6])[0] == want).all()
    session.truncate(BOTH_WAYS, 0)
    assert (session.extend(BOTH_WAYS, IDS[:3])[-1] == forward(PARAMS, CONFIG, IDS[:3], 0, np.float32)[-1]).all()
    session.truncate(BOTH_WAYS, 1)


@pytest.mark.parametrize(
    "ask, said",
    [
        (lambda s: s.truncate(BOTH_WAYS, 3), "n: would cut a prefix, .*; got 3; wanted 0, or 4 to 5"),
        (lambda s: s.truncate(GOING, 6), "n: cannot be used; got 6; wanted a whole number from 0 to 5"),
        (lambda s: s.truncate(GOING, -1), "n: cannot be used; got -1"),
        (lambda s: s.extend(GOING, []), "empty"),
        (lambda s: s.extend(GOING, [1, 61]), "does not exist"),
        (lambda s: s.extend(GOING, [1] * 8), "longer than the model's context"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_the_session_as_it_was(session, ask, said):
    with pytest.raises(GenerationError, match=said):
        ask(session)
    for seq, prefix_len in ((GOING, 0), (BOTH_WAYS, 4)):
        want = forward(PARAMS, CONFIG, IDS[:6], prefix_len, np.float32)[-1]
        assert (session.decode([seq], IDS[5:6])[0] == want).all()
