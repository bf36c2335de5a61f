"""Classification: what the scores of labels are, and what becomes of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

import refgpt
from refgpt._common.errors import GenerationError
from refgpt.evaluation import DEFAULT_TEMPLATE, Classifier
from refgpt.evaluation import classification as module
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=0, bos_id=0, n_ctx=160)
PARAMS = random_params(CONFIG, seed=9, dtype="f16")
LABELS = ["good", "quite bad", "so so"]
TEMPLATE = "Say what it is.\n\nT? {text}\nA! {label}"  # in letters that the tiny tokenizer has


@pytest.fixture(scope="module", params=["c", "numpy"])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    return refgpt.load(write_tokenizer(write_model(path, CONFIG, PARAMS, prefix=True)), backend=request.param)


def logprob(model, prompt, label):
    """By the whole text's forward pass, the prompt as its prefix."""
    encode = model.tokenizer.encode
    start, ids = encode(prompt), encode(label)
    rows = model.logits([*start, *ids], len(start))[len(start) - 1 : -1].astype(np.float64)
    rows -= np.log(np.exp(rows).sum(-1, keepdims=True))
    return rows[np.arange(len(ids)), ids]


def test_scores_are_log_likelihoods_of_the_labels(model):
    text, examples = "fine", [("fab", "good")]
    prompt = "Say what it is.\n\nT? fab\nA! good\n\nT? fine\nA!"
    each = [logprob(model, prompt, f" {label}") for label in LABELS]
    want = {
        "sum": [one.sum() for one in each],
        "mean": [one.mean() for one in each],
        "pmi": [one.sum() - logprob(model, "A!", f" {label}").sum() for one, label in zip(each, LABELS, strict=True)],
    }
    winners = set()
    for normalise, scores in want.items():
        got = model.classify(text, LABELS, TEMPLATE, examples, normalise=normalise)
        assert list(got.scores) == list(got.probabilities) == LABELS
        assert list(got.scores.values()) == pytest.approx(scores, abs=1e-4)
        assert got.label == LABELS[int(np.argmax(scores))]
        odds = np.exp(np.array(scores) - max(scores))
        assert list(got.probabilities.values()) == pytest.approx(odds / odds.sum(), abs=1e-4)
        winners.add(got.label)
    assert len(winners) > 1  # the normalisations differ here


def test_a_classifier_computes_what_no_text_tells_once(model, monkeypatch):
    asked = []
    right = module.score

    def score(model, prompt, continuations, prefix_cache):
        asked.append(model.tokenizer.decode(prompt))
        return right(model, prompt, continuations)

    monkeypatch.setattr(module, "score", score)
    classifier = Classifier(model, LABELS, TEMPLATE, normalise="pmi")
    for text in ("ab", "cd"):
        assert classifier.classify(text) == model.classify(text, LABELS, TEMPLATE, normalise="pmi")
    assert asked.count("A!") == 1 + 2


def test_the_prompts_mask_is_the_models(model):
    causal = SimpleNamespace(engine=model.engine, tokenizer=model.tokenizer, mask="causal")
    assert Classifier(causal, LABELS, TEMPLATE).classify("ab") != Classifier(model, LABELS, TEMPLATE).classify("ab")


def test_of_equal_labels_the_first_is_taken(model, monkeypatch):
    monkeypatch.setattr(module, "score", lambda *_, **__: [np.array([-1.0])] * 3)
    got = model.classify("ab", LABELS, TEMPLATE)
    assert got.label == "good" and list(got.probabilities.values()) == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"text": 5}, "text: cannot be used; got 5; wanted a text"),
        ({"text": "a" * 160}, "longer than the model's context"),
        ({"text": "a" * 129}, r"continuations\[1\]: is too long .*wanted at most 161 together"),
        ({"labels": ["a"]}, "labels: leave no choice"),
        ({"template": "T? {txt}"}, "template: has an unknown field {txt}"),
        ({"examples": [("a", "b")]}, r"examples\[0\]: has a label that is not among the labels; got 'b'"),
        ({"normalise": "median"}, "normalise: cannot be used; got 'median'; wanted 'sum', 'mean', 'pmi'"),
    ],
)
def test_what_cannot_be_classified_is_named(model, monkeypatch, change, said):
    monkeypatch.setattr(module, "score", lambda *_: pytest.fail("it was computed"))
    arguments = {"text": "ab", "labels": LABELS, "template": TEMPLATE}
    with pytest.raises(GenerationError, match=said):
        model.classify(**(arguments | change))


def test_pmi_needs_something_to_start_from(tmp_path):
    config = tiny_config()
    path = write_tokenizer(write_model(tmp_path, config, random_params(config, 1)))
    model = refgpt.load(path, backend="numpy")
    model.tokenizer.eos_id = None
    with pytest.raises(GenerationError, match="empty"):
        Classifier(model, ["a", "b"], "{text}", normalise="pmi")
    assert model.classify("x", ["a", "b"], "{text}").label in "ab"


def test_the_default_model_classifies_with_the_default_template():
    models = [refgpt.load(backend=backend) for backend in ("c", "numpy")]
    one, two = (model.classify("The king was merry.", ["king", "frog"]) for model in models)
    assert one.label == two.label == "king"
    assert one.scores == pytest.approx(two.scores, abs=1e-3)
    assert sum(one.probabilities.values()) == pytest.approx(1)
    assert models[0].classify("The king was merry.", ["king", "frog"], DEFAULT_TEMPLATE) == one
