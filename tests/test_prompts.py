"""Prompts that can be used and prompts that cannot."""

import numpy as np
import pytest

from refgpt._common.errors import GenerationError
from refgpt.spec.ids import check_ids
from tests.helpers.tiny import tiny_config

CONFIG = tiny_config(n_vocab=61, n_ctx=8)


@pytest.mark.parametrize("ids", [[0], [60, 0, 5], (1, 2), range(8), np.array([3, 4], dtype=np.uint16)])
def test_usable_ids_come_back_as_an_array(ids):
    array = check_ids(ids, CONFIG)
    assert array.dtype == np.int64
    assert array.tolist() == list(ids)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the prompt is empty"),
        ([0] * 9, r"longer than the model's context; got 9 ids; wanted at most 8; .*--truncate left"),
        ([5, 61], r"ids\[1\]: the id does not exist in this vocabulary; got 61; wanted 0 to 60"),
        ([5, 3, -1], r"ids\[2\]: .*got -1"),
        ([2**64 + 1], "not whole numbers"),
        ([2**63], "does not exist"),
        ([[1, 2]], "not one flat list"),
        (5, "not one flat list"),
        ([[1], [2, 3]], "not one flat list"),
        ([1.0, 2.0], "not whole numbers"),
        ([True, False], "not whole numbers"),
        (["1"], "not whole numbers"),
        ("text", "not one flat list"),
        ([None], "not whole numbers"),
        (None, "not one flat list"),
    ],
)
def test_unusable_ids_are_named(ids, message):
    with pytest.raises(GenerationError, match=message):
        check_ids(ids, CONFIG)


@pytest.mark.parametrize("prefix_len", [0, 1, 3, np.int64(2)])
def test_a_prefix_within_the_prompt_is_fine(prefix_len):
    assert check_ids([1, 2, 3], CONFIG, prefix_len).tolist() == [1, 2, 3]


@pytest.mark.parametrize("prefix_len", [-1, 4, 1.5, "2", None])
def test_a_prefix_outside_the_prompt_is_refused(prefix_len):
    with pytest.raises(GenerationError, match=r"^prefix_len: cannot be used; got .*a whole number from 0 to 3"):
        check_ids([1, 2, 3], CONFIG, prefix_len)
