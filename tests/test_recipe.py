"""The recipe of the included model: it runs, and a run that was cut off ends with the same bits."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

import refgpt

RECIPE = Path(__file__).parent.parent / "weights" / "train.py"
TEXT = Path(__file__).parent / "data" / "oz.txt"


@pytest.fixture
def recipe(monkeypatch):
    """The recipe with a short text, few steps and one block."""
    spec = importlib.util.spec_from_file_location("recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small = {"N_VOCAB": 400, "N_LAYER": 1, "TOKENS_PER_STEP": 512, "EVAL_EVERY": 3, "SAVE_EVERY": 2, "WARMUP": 2}
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "MATRICES", [name for name in module.MATRICES if ".h.0." in name])
    return module


@pytest.fixture
def corpus(tmp_path):
    """Two books for training, one of which has an index, and the beginning of another to judge by."""
    text = TEXT.read_text(encoding="utf-8")
    place = tmp_path / "corpus"
    place.mkdir()
    (place / "train_kids.txt").write_text(text[:9_000], encoding="utf-8")
    (place / "train_more.txt").write_text(text[9_000:17_000], encoding="utf-8")
    (place / "train_more_index.tsv").write_text(
        "file\tstart\tbytes\tsimple\ntrain_more.txt\t0\t7000\t0.9\n", encoding="utf-8"
    )
    (place / "val_oz.txt").write_text(text[17_000:], encoding="utf-8")
    return place


def test_a_run_that_was_cut_off_ends_with_the_same_bits(recipe, corpus, tmp_path, monkeypatch):
    recipe.train(corpus, tmp_path / "whole", tmp_path / "work", 5, 1)
    sample_windows = recipe.sample_windows

    def cut(books, shares, step, n_rows, n_cols):
        if step == 3:
            raise KeyboardInterrupt
        return sample_windows(books, shares, step, n_rows, n_cols)

    monkeypatch.setattr(recipe, "sample_windows", cut)
    with pytest.raises(KeyboardInterrupt):
        recipe.train(corpus, tmp_path / "cut", tmp_path / "again", 5, 2)
    monkeypatch.setattr(recipe, "sample_windows", sample_windows)
    recipe.train(corpus, tmp_path / "cut", tmp_path / "again", 5, 2)
    for name in ("model.safetensors", "tokenizer.model", "config.json", "training.json"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()

    figures = json.loads((tmp_path / "whole" / "training.json").read_text(encoding="utf-8"))
    assert figures["tokens_seen"] == 5 * 512 and figures["train_books"] == 2
    (step, first), (last_step, last) = figures["history"]
    assert (step, last_step) == (3, 5) and last < first
    assert figures["bits_per_byte"]["val_oz.txt"] == pytest.approx(last, rel=0.01)
    model = refgpt.load(tmp_path / "whole")
    assert len(model.generate("Once upon a time", max_new_tokens=5, temperature=0, ignore_eos=True).ids) == 5


def test_simple_books_are_sampled_more_often(recipe, corpus):
    (first, *_), (kids, *_) = recipe.find_books(corpus)
    assert (first, kids) == ("train_more.txt", "train_kids.txt")
    assert recipe.weight_of_book(0.93) == pytest.approx(2 * recipe.weight_of_book(0.9))


def test_a_folder_without_texts_is_refused(recipe, tmp_path):
    with pytest.raises(SystemExit, match=r"needs train_\*\.txt"):
        recipe.train(tmp_path, tmp_path / "out", tmp_path / "work", 5, 1)
