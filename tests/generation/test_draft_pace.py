"""How long drafts are: they grow with their success, and become rare where they fail or cost too much."""

from __future__ import annotations

from refgpt.generation.draft_pace import MOST_CHECKED, DraftPace, pass_cost
from refgpt.generation.params import MOST_DRAFTED


def fared(pace, accepted, n_steps, n_texts=1):
    """The lengths of drafts of which so many tokens are accepted."""
    lengths = []
    for _ in range(n_steps):
        lengths.append(n := pace.length(99, n_texts))
        if n:
            pace.learn(n, min(n, accepted))
    return lengths


def test_drafts_grow_with_their_success_and_become_rare_without():
    assert fared(DraftPace(15, 0.05), 15, 60)[-1] == MOST_DRAFTED
    assert 2 <= fared(DraftPace(15, 0.05), 2, 60)[-1] <= 4
    lengths = fared(DraftPace(15, 0.05), 0, 400)
    assert sum(lengths[100:]) <= 6
    assert sum(lengths) < 40


def test_after_failures_one_success_is_enough_to_try_again():
    pace = DraftPace(15, 0.05)
    fared(pace, 0, 400)
    while not pace.length(99):
        pass
    pace.learn(1, 1)
    assert pace.length(99)


def test_a_draft_model_as_large_as_the_model_is_hardly_asked():
    assert sum(fared(DraftPace(15, 1.0), 0, 200)) < 12


def test_texts_together_share_the_rows_of_a_pass():
    for n_texts in range(1, 20):
        length = fared(DraftPace(15, 0.0), 15, 60, n_texts)[-1]
        assert n_texts * (length + 1) <= max(MOST_CHECKED, n_texts)
        assert length or n_texts > 3
    assert DraftPace(15, 0.0).length(3) <= 3
    assert DraftPace(15, 0.0).length(0) == 0


def test_the_cost_of_a_pass_grows_with_its_rows():
    costs = [pass_cost(n) for n in range(1, 17)]
    assert costs[0] == 1
    assert costs == sorted(costs)
