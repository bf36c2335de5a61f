"""The figures of the model's card: what is counted, and that the whole command prints them."""

from __future__ import annotations

import bz2
import importlib.util
import itertools
from pathlib import Path

import pytest

import refgpt

ROOT = Path(__file__).parent.parent
TEXT = ROOT / "tests" / "data" / "oz.txt"


@pytest.fixture
def measure(monkeypatch):
    """The script with two openings and short samples."""
    spec = importlib.util.spec_from_file_location("measure", ROOT / "weights" / "measure.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "OPENINGS", module.OPENINGS[:2])
    monkeypatch.setattr(module, "N_TOKENS", 30)
    return module


@pytest.fixture
def corpus(tmp_path):
    """A text, and its beginning held out."""
    text = TEXT.read_text(encoding="utf-8")
    (tmp_path / "train_more.txt").write_text(text[1_500:], encoding="utf-8")
    (tmp_path / "val_oz.txt").write_text(text[:1_500], encoding="utf-8")
    return tmp_path


def rows(text):
    """The rows of the tables by their first cell."""
    return {
        cells[0]: cells[1:]
        for line in text.splitlines()
        if line.startswith("| ")
        for cells in [[cell.strip() for cell in line.strip("|").split("|")]]
    }


def test_words_are_counted_without_quotation_marks(measure):
    assert measure.words_of("'Oh!' said the King's son, \"don't--\"") == ["oh", "said", "the", "king's", "son", "don't"]


def test_words_that_were_never_read(measure):
    assert measure.share_unknown([["a", "king"], ["a", "kigg"]], {"a", "king"}) == 1 / 4
    assert measure.share_unknown([[]], {"a"}) == 0


def test_runs_that_stood_earlier_in_the_same_text(measure):
    once, twice = list("abcdefg"), list("abcdabcd")
    assert measure.share_repeated([once, once]) == 0  # each text by itself
    assert measure.share_repeated([twice]) == 1 / 5
    assert measure.share_repeated([list("abc")]) == 0


def test_different_words_in_a_thousand(measure):
    assert measure.per_thousand([["a", "b"] * 250, ["c"] * 600]) == 3
    assert measure.per_thousand([["a"] * 1000, ["b", "c"] * 500]) == 1.5


def test_pieces_are_spread_over_the_text(measure):
    text = " ".join("abcdefghij")
    assert measure.pieces(text, 2, 3) == [["a", "b"], ["d", "e"], ["g", "h"]]
    assert measure.pieces(text, 4, 9) == [list("abcd"), list("efgh")]


def test_the_card(measure, corpus, capsys, run):
    measure.main([str(corpus), "--samples", "3"])
    out = capsys.readouterr().out
    held_out, shares = rows(out.partition("\n\n")[0]), rows(out.partition("\n\n")[2])
    text = (corpus / "val_oz.txt").read_bytes()
    bits, packed = map(float, held_out["val_oz.txt"])
    got = run("evaluate", "perplexity", "--data", corpus / "val_oz.txt")
    assert bits == pytest.approx(float(got.out.split("bits_per_byte  ")[1].split()[0]), abs=0.0051)  # of two decimals
    assert packed == pytest.approx(8 * len(bz2.compress(text)) / len(text), abs=1e-3)
    assert shares.keys() == {"", "---", "val_oz.txt", "`refgpt generate`"}
    assert shares["`refgpt generate`"][2] == "too few words"
    for seed in (1, 2, 3):
        said = run("generate", "Once upon a time", "--echo", "-n", "30", "--seed", seed).out.rstrip("\n")
        assert f"\nSeed {seed}:\n\n> " + "\n> ".join(said.split("\n")).replace("> \n", ">\n") in out


def test_samples_are_those_of_the_settings(measure):
    model = refgpt.load()
    params = measure.default_params()
    found = measure.sample(model, params, 3)
    want = [model.generate(opening, params, seed=seed) for seed in (1, 2) for opening in measure.OPENINGS]
    for words, done in zip(found, want, strict=False):
        whole = measure.words_of(done.text)
        assert words == (whole[:-1] if done.finish_reason == "length" else whole)
    assert len(found) == 3


def test_a_table_of_settings(measure, corpus, capsys, monkeypatch):
    monkeypatch.setattr(measure, "TEMPERATURES", (0.1, 2.0))
    monkeypatch.setattr(measure, "FILTERS", ({"top_p": 1.0}, {"min_p": 0.01}))
    measure.main([str(corpus), "--samples", "4", "--settings"])
    table = rows(capsys.readouterr().out)
    named = [
        f"temperature {t}, {kept}, repetition penalty {r}"
        for t, kept, r in itertools.product((0.1, 2.0), ("top_p 1.0", "min_p 0.01"), (1.0, 1.15))
    ]
    assert [name for name in table if name.startswith("temperature")] == named
    misspelt = [float(table[name][0].rstrip(" %")) for name in (named[0], named[4])]
    assert misspelt[0] < misspelt[1]  # a hot sample of the whole distribution is no English


def test_a_folder_without_texts_is_refused(measure, tmp_path):
    with pytest.raises(SystemExit, match=r"needs train_\*\.txt and val_\*\.txt"):
        measure.main([str(tmp_path)])
