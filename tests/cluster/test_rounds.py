"""When workers communicate."""

import pytest

from refgpt._common.errors import RefgptError
from refgpt.cluster.rounds import parse_sync


@pytest.mark.parametrize("name", ["every:1", "every:25", "random:0.04", "random:1"])
@pytest.mark.parametrize("n_steps", [1, 24, 25, 26, 500])
def test_rounds_cover_all_steps_once_and_in_order(name, n_steps):
    sync = parse_sync(name)
    rounds = sync.rounds(n_steps, seed=3)
    assert [step for steps in rounds for step in steps] == list(range(n_steps))
    assert all(rounds) and rounds == parse_sync(str(sync)).rounds(n_steps, seed=3)
    if sync.every is not None:
        assert [len(steps) for steps in rounds[:-1]] == [sync.every] * (len(rounds) - 1)
        assert len(rounds[-1]) <= sync.every


def test_random_rounds_are_as_long_as_the_probability_says_and_depend_on_the_seed():
    rounds = parse_sync("random:0.04").rounds(100_000, seed=1)
    # 4,000 rounds are expected, with a deviation of 62.
    assert abs(len(rounds) - 4000) < 6 * 62
    assert rounds != parse_sync("random:0.04").rounds(100_000, seed=2)
    assert len(parse_sync("random:1").rounds(1000, seed=1)) == 1000


@pytest.mark.parametrize(
    "name", ["", "every", "every:0", "every:-1", "every:1.5", "random:0", "random:2", "random:x", 5]
)
def test_unknown_rhythms_are_refused(name):
    with pytest.raises(RefgptError, match="there is no such rhythm"):
        parse_sync(name)
