"""The included model against PyTorch: the same tokens, the same logits, the same text."""

import numpy as np
import pytest

import refgpt
from tests import goldens

GOLDEN = goldens.HERE / "default_model.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def model():
    return refgpt.load()


def test_prompt_and_text_are_tokenised_as_in_training(golden, model):
    text, ids = str(golden["text"]), golden["ids"].tolist()
    assert model.tokenizer.decode(ids) == text
    prompt_ids = model.tokenizer.encode(str(golden["prompt"]))
    assert ids[: len(prompt_ids)] == prompt_ids


def test_the_spec_gives_pytorchs_float64_logits(golden):
    logits = refgpt.load(backend="numpy", dtype="f64").logits(golden["ids"])
    # Two float64 runs of the same weights: a few hundred roundings of 2^-53.
    assert np.abs(logits[golden["rows"]] - golden["logits_float64"]).max() <= 1e-12 * logits.std()


def test_the_kernels_are_no_further_from_the_spec_than_pytorch(golden, model):
    want = refgpt.load(backend="numpy", dtype="f64").logits(golden["ids"])
    error = np.abs(model.logits(golden["ids"]) - want).max() / want.std()
    assert error <= golden["torch_float32_error"]


def test_greedy_text_is_pytorchs(golden, model):
    prompt = str(golden["prompt"])
    n_prompt = len(model.tokenizer.encode(prompt))
    new = golden["ids"][n_prompt:]
    done = model.generate(prompt, max_new_tokens=len(new), temperature=0, ignore_eos=True)
    assert done.ids == new.tolist()
    assert prompt + done.text == str(golden["text"])


def test_the_model_has_learnt_its_language(model):
    ids = model.tokenizer.encode("The king said to his daughter, 'You shall marry the prince.'")
    logits = model.logits(ids[:-1]).astype(np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -log_p[np.arange(len(ids) - 1), ids[1:]].mean()
    assert nats < 4.5  # untrained: log(4096) = 8.3
