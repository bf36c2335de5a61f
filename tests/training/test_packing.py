"""Which texts each step learns from."""

from __future__ import annotations

import numpy as np
import pytest

from refgpt.training.packing import pack_rows, plan_steps

LENGTHS = np.random.RandomState(0).randint(2, 30, 200).tolist()


@pytest.mark.parametrize("pack", [False, True])
def test_every_epoch_has_each_text_once_in_another_order(pack):
    steps = list(plan_steps(LENGTHS, 8, 32, pack, seed=3, n_epochs=2))
    epochs = [[i for step in steps if step.epoch == epoch for row in step.rows for i in row] for epoch in (0, 1)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(200)) and epochs[0] != epochs[1]
    assert all(len(step.rows) == 8 for step in steps[: len(steps) // 2 - 1])
    rows = [row for step in steps for row in step.rows]
    assert all(sum(LENGTHS[i] for i in row) <= 32 for row in rows)
    n_tokens = 2 * sum(LENGTHS)
    assert len(rows) == 400 if not pack else len(rows) < 1.1 * n_tokens / 32
    assert list(plan_steps(LENGTHS, 8, 32, pack, seed=3, n_epochs=2)) == steps
    assert list(plan_steps(LENGTHS, 8, 32, pack, seed=4, n_epochs=2)) != steps


def test_without_a_number_of_epochs_there_is_no_end():
    steps = plan_steps([3, 4], 1, 10, False, seed=0)
    assert [next(steps).epoch for _ in range(6)] == [0, 0, 1, 1, 2, 2]


def test_rows_are_filled_in_order_where_there_is_room():
    assert pack_rows([6, 5, 4, 5, 10, 1], range(6), 10) == [(0, 2), (1, 3), (4,), (5,)]
