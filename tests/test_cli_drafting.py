"""``--draft`` of ``refgpt generate`` and ``refgpt chat``: the same text, and mistakes found before weights are read."""

from __future__ import annotations

import io
import json
import sys

import pytest

import refgpt
from refgpt.cli import loading
from refgpt.generation.draft_pace import DraftPace
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(eos_id=0, bos_id=0)
SMALL = tiny_config(eos_id=0, bos_id=0, n_layer=1)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    model = write_tokenizer(write_model(root / "model", CONFIG, random_params(CONFIG, 2, "f16")))
    draft = write_tokenizer(write_model(root / "draft", SMALL, random_params(SMALL, 3, "f16")))
    return str(model), str(draft)


@pytest.fixture
def n_drafted(monkeypatch):
    """Three tokens before every pass, and a list of how many were checked."""
    found = []
    monkeypatch.setattr(DraftPace, "length", lambda self, room, n_texts=1: min(3, room))
    monkeypatch.setattr(DraftPace, "learn", lambda self, n_drafted, n_accepted: found.append(n_drafted))
    return found


@pytest.mark.parametrize("options", [[], ["--draft-dtype", "q8"], ["--backend", "numpy"], ["--temperature", 0]])
def test_a_drafted_text_is_printed_as_it_would_be(run, paths, n_drafted, options):
    model, draft = paths
    command = ["generate", "-m", model, "Once upon", "--seed", 5, "-n", 12, "--ignore-eos", "--speculate", 0, *options]
    want = run(*[one for one in command if one not in ("--draft-dtype", "q8")])
    assert not n_drafted
    assert run(*command, "--draft", draft) == want
    assert sum(n_drafted) > 8
    three = run(*command, "--draft", draft, "--num-return-sequences", 3)
    assert three.code == 0 and three.out.count("---\n") == 2 and three.out.startswith(want.out)


def test_answers_of_a_chat_can_be_drafted(run, n_drafted, monkeypatch):
    answers = []
    for more in ([], ["--draft", refgpt.load().checkpoint.path]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\nWho?\n")))
        answers.append(run("chat", "-n", 6, "--seed", 1, "--speculate", 0, *more))
    assert answers[0] == answers[1] and not answers[0].code
    assert n_drafted


@pytest.mark.parametrize(
    "options, said",
    [
        (["--draft", "nowhere/at-all/x"], "nowhere/at-all/x"),
        (["--num-beams", 2], "--draft: cannot be combined with beam search"),
        (["--draft-dtype", "f64"], "f64"),
    ],
)
def test_mistakes_are_found_before_the_weights_are_read(run, paths, monkeypatch, options, said):
    model, draft = paths
    monkeypatch.setattr(loading, "start", lambda *_, **__: pytest.fail("the weights are read"))
    draft = [] if "--draft" in options else ["--draft", draft]
    got = run("generate", "-m", model, "Once upon", *draft, *options)
    assert got.code and not got.out and said in got.err


def test_a_draft_model_of_another_vocabulary_is_refused(run, paths, monkeypatch, tmp_path):
    model, _ = paths
    other = write_tokenizer(write_model(tmp_path / "other", SMALL, random_params(SMALL, 3, "f16")))
    ids = json.loads((other / "vocab.json").read_text())
    (other / "vocab.json").write_text(json.dumps(ids | {"B": ids["C"], "C": ids["B"]}))
    monkeypatch.setattr(loading, "start", lambda *_, **__: pytest.fail("the weights are read"))
    got = run("generate", "-m", model, "Once upon", "--draft", other)
    assert (got.code, got.out) == (1, "")
    assert "--draft: the draft model's vocabulary differs from the model's, first in the id 4; got 'C'" in got.err
