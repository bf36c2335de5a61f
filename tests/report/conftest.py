"""Pages for the tests in a browser, and the browser: each made once for a file of tests."""

from __future__ import annotations

import pytest

import refgpt
from tests.helpers import browser as browsers
from tests.helpers.model_files import write_model
from tests.helpers.pages import EVIL, PROMPT, EvilTokenizer, paged, with_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config()
PARAMS = random_params(CONFIG, seed=3)


@pytest.fixture(scope="module")
def browser():
    yield from browsers.start()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def tale(folder):
    """The included model, which is causal."""
    model = refgpt.load()
    return paged(folder, "tale", model, model.tokenizer.encode(PROMPT))


@pytest.fixture(scope="module")
def both_ways(folder):
    """A tiny GPT-JT of evil tokens, seven of which see one another."""
    model = refgpt.load(write_model(folder / "<b>both ways", CONFIG, PARAMS, prefix=True))
    return paged(folder, "both_ways", with_tokenizer(model, EvilTokenizer()), [*range(len(EVIL)), 40, 50], 7)
