"""Which models may draft for which: ids have to mean the same."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from refgpt._common.errors import GenerationError
from refgpt.generation.drafting import check_same_ids
from tests.helpers.small_tokenizers import Letters


def config_of(n_vocab):
    return SimpleNamespace(n_vocab=n_vocab)


@pytest.mark.parametrize(
    "n_rows, tokenizer, n_draft_rows, draft_tokenizer",
    [
        (50400, Letters(50257), 50257, Letters(50257)),  # GPT-J and GPT-Neo
        (50257, Letters(50257), 50400, Letters(50400)),
        (50400, Letters(50400), 50257, Letters(50257)),
        (61, None, 61, Letters(61)),
        (61, None, 61, None),
    ],
)
def test_vocabularies_that_agree(n_rows, tokenizer, n_draft_rows, draft_tokenizer):
    check_same_ids(config_of(n_rows), tokenizer, config_of(n_draft_rows), draft_tokenizer)


@pytest.mark.parametrize(
    "n_rows, tokenizer, n_draft_rows, draft_tokenizer, said",
    [
        (61, Letters(61), 61, Letters(61, [(40, b"\x1b[2J")]), "first in the id 40.*got '.x1b.2J'; wanted 'Ĩ'"),
        (1000, Letters(1000), 500, Letters(500), "first in the id 500.*got no token"),
        (500, Letters(1000), 1000, Letters(1000), "first in the id 500"),
        (61, None, 62, Letters(62), "the model has no tokenizer.*got 62 ids; wanted 61"),
        (61, Letters(61), 62, None, "the draft model has no tokenizer"),
    ],
)
def test_vocabularies_that_differ_are_refused_with_the_first_difference(
    n_rows, tokenizer, n_draft_rows, draft_tokenizer, said
):
    with pytest.raises(GenerationError, match=f"^draft: .*{said}"):
        check_same_ids(config_of(n_rows), tokenizer, config_of(n_draft_rows), draft_tokenizer)
