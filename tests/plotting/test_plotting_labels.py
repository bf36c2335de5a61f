"""Labels of tokens, and whether they can be read where there are many."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import refgpt
from refgpt import plotting
from refgpt.plotting.labels import fitting, text_width
from tests.helpers.pictures import LONG, Words, faults_of, lens_logits, patterns, tick_texts, trace


def test_tokens_become_labels():
    got = plotting.token_labels(Words(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 99])
    assert got == ["␣upon", "↵", "␣", "$x$", "\\xe2", "<5>", "extraordina…", "\\x07", "<end>", "<9>", "␣a", "<99>"]


def test_labels_stay_labels():
    for text in [" a b\n", "\x07", "extraordinarily", "$x$"]:
        label = plotting.readable(text)
        assert plotting.readable(label) == label
        assert len(label) <= 12


def test_labels_of_the_default_model():
    tokenizer = refgpt.load().tokenizer
    assert plotting.token_labels(tokenizer, [1, *tokenizer.encode("Once upon\na")]) == [
        "<end>",
        "Once",
        "␣upon",
        "↵",
        "a",
    ]


def test_a_text_is_cut_to_what_fits():
    width = text_width("wonder…", 8)
    assert fitting("wonderful", 8, width) == "wonder…"
    assert fitting("wonderful", 8, text_width("wonderful", 8)) == "wonderful"
    assert fitting("wonderful", 8, text_width("wo…", 8) - 0.01) == ""


PICTURES = {
    "attention": lambda ax, n: plotting.attention_map(patterns(n), LONG[:n], ax),
    "lens": lambda ax, n: plotting.lens_map(lens_logits(5, n), LONG[:n], ax, tokenizer=Words()),
    "lens of GPT-J's depth": lambda ax, n: plotting.lens_map(lens_logits(29, n), LONG[:n], ax, tokenizer=Words()),
    "lens down": lambda ax, n: plotting.lens_map(lens_logits(7, n), LONG[:n], ax, tokenizer=Words(), down=True),
    "deep lens down": lambda ax, n: plotting.lens_map(lens_logits(29, n), LONG[:n], ax, tokenizer=Words(), down=True),
    "causal": lambda ax, n: plotting.causal_map(trace(6, tuple(range(n))), LONG[:n], ax),
    "tokens": lambda ax, n: plotting.token_lines({"a": np.arange(n), "b": -np.arange(n)}, LONG[:n], ax),
}


@pytest.mark.parametrize("n", [1, 5, 20, 64])
@pytest.mark.parametrize("name", PICTURES)
def test_labels_do_not_meet_on_new_axes(name, n):
    ax = PICTURES[name](None, n)
    assert faults_of(ax.figure) == []
    axis = ax.yaxis if "down" in name else ax.xaxis
    assert tick_texts(axis) == [plotting.readable(token) for token in LONG[:n]]  # each token has its label


@pytest.mark.parametrize("size", [(7, 5), (4, 3), (12, 9)])
@pytest.mark.parametrize("name", PICTURES)
def test_labels_do_not_meet_on_given_axes(name, size):
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    assert PICTURES[name](ax, 64) is ax
    assert set(faults_of(figure)) <= ({"clipped"} if size == (4, 3) else set())
    shown, every = tick_texts(ax.yaxis if "down" in name else ax.xaxis), [plotting.readable(token) for token in LONG]
    assert len(shown) >= 5 and shown == every[:: every.index(shown[1])]  # thinned evenly


def test_labels_that_are_too_close_would_be_found():
    ax = plotting.attention_map(patterns(64), LONG)
    ax.tick_params(axis="x", labelsize=14)
    assert "overlap" in faults_of(ax.figure)


def test_dollars_are_no_formulas():
    ax = plotting.attention_map(patterns(2), ["$x$", "$\\frac$"])
    ax.figure.draw_without_rendering()  # a formula would be a ParseException
    assert tick_texts(ax.xaxis) == ["$x$", "$\\frac$"]
    assert not any(label.get_parse_math() for label in [*ax.get_xticklabels(), *ax.get_yticklabels()])
