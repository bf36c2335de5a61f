"""A tokenizer beside the model's own: another, none, or instead of a broken one."""

import io
import json
import logging
import sys

import numpy as np
import pytest

import refgpt
from refgpt import GenerationError, RefgptError, TokenizerError
from refgpt._open import open_model
from refgpt.cli import main
from refgpt.conversion import convert
from refgpt.inspect import build_report
from refgpt.tokenizers import load_tokenizer
from tests.helpers.model_files import write_model, write_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config(n_vocab=61, n_ctx=32, bos_id=0, eos_id=0)


@pytest.fixture
def bare(tmp_path):
    return write_model(tmp_path / "bare", CONFIG, random_params(CONFIG, seed=2))


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    return write_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def broken(bare):
    write_tokenizer(bare)
    (bare / "vocab.json").write_text('{"a": 0, "b"')
    return bare


def test_a_tokenizer_from_elsewhere(bare, tokenizer):
    for given in (tokenizer, str(tokenizer), tokenizer / "vocab.json", load_tokenizer(tokenizer)):
        model = refgpt.load(bare, tokenizer=given)
        assert model.tokenizer.encode("It") == load_tokenizer(tokenizer).encode("It")
        assert model.generate("It", max_new_tokens=2).text is not None
        assert model.tokenizer.n_rows == CONFIG.n_vocab


def test_no_tokenizer_at_all(broken, caplog):
    model = refgpt.load(broken, tokenizer=False)
    assert model.tokenizer is None and not caplog.records
    with pytest.raises(GenerationError, match="this model has no tokenizer"):
        model.generate("It")


@pytest.mark.parametrize("given", [True, 3, "no/such/place"])
def test_what_is_no_tokenizer_is_refused(bare, given):
    with pytest.raises(RefgptError):
        refgpt.load(bare, tokenizer=given)


def test_a_tokenizer_of_another_model_is_refused(bare, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "vocab.json").write_text(json.dumps({"a": 90, "b": 91}))
    (tmp_path / "t" / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(TokenizerError, match="no row for any token"):
        refgpt.load(bare, tokenizer=tmp_path / "t")


def test_a_broken_tokenizer_is_told_once_and_refuses_text(broken, caplog):
    model = refgpt.load(broken)
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "the model's tokenizer cannot be used" in record.getMessage() and "vocab.json" in record.getMessage()
    assert model.tokenizer is None and len(model.generate([3, 4], max_new_tokens=2).ids) <= 2
    calls = [
        lambda: model.generate("It"),
        lambda: model.generate([3], stop="a"),
        lambda: model.score("It", ["s"]),
        lambda: model.score([1], ["s"]),
        lambda: model.stream("It"),
        lambda: model.embed("It"),
        lambda: model.classify("It", ["a", "b"]),
        lambda: refgpt.Scheduler(model).add("It"),
        lambda: build_report(model, "It"),
    ]
    for call in calls:
        with pytest.raises(GenerationError, match=r"vocab\.json"):
            call()
    assert len(caplog.records) == 1
    assert np.isfinite(model.logits([1, 2])).all()


def test_a_broken_tokenizer_can_be_replaced(broken, tokenizer, caplog):
    assert refgpt.load(broken, tokenizer=tokenizer).generate("It", max_new_tokens=1).text is not None
    assert not caplog.records


def test_the_tokenizer_that_was_asked_for_is_the_one_converted(broken, tokenizer, tmp_path):
    for to in ("hf", "refgpt", "gguf"):
        convert(*open_model(broken, tokenizer=tokenizer), tmp_path / to, to)
        _, found = open_model(tmp_path / to)
        assert found is not None and found.encode("It is.") == load_tokenizer(tokenizer).encode("It is.")
        convert(*open_model(broken, tokenizer=False), tmp_path / f"{to}-none", to)
        assert open_model(tmp_path / f"{to}-none")[1] is None


def test_the_command_line(broken, tokenizer, capsys):
    assert main(["generate", "-m", str(broken), "--tokenizer", str(tokenizer), "--echo", "-n", "2", "It"]) == 0
    assert capsys.readouterr().out.startswith("It")
    assert main(["info", "-m", str(broken), "--tokenizer", "none"]) == 0
    assert "none: the model takes and returns token ids" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "It", "-n", "1"],
        ["generate", "It", "-n", "1", "--draft"],
        ["embed", "It"],
        ["inspect", "It", "--json"],
        ["verify", "--prompt", "It"],
        ["chat"],
    ],
)
def test_a_command_that_refuses_a_text_says_what_is_wrong_with_the_tokenizer(broken, command, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"It\n")))
    name, *options = command
    draft = [str(broken)] if options[-1:] == ["--draft"] else []
    assert main([name, "-m", str(broken), *options, *draft]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "this model's tokenizer cannot be used" in error and "vocab.json" in error and "give another" in error
