"""Lines and bars: their numbers, labels and legends."""

from __future__ import annotations

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from refgpt import plotting
from tests.helpers.pictures import Words, attribution, comparison, faults_of, tick_texts


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.mark.parametrize("shape", [(3, 2), (28, 16)])
def test_a_bar_for_each_head(shape):
    found = attribution(*shape)
    ax = plotting.attribution_bars(found, named=2, tokenizer=Words())
    heads, mlps, others = ax.containers
    assert np.allclose([bar.get_height() for bar in heads], found.heads.ravel())
    assert np.allclose([bar.get_height() for bar in mlps], found.mlps)
    assert np.allclose([bar.get_height() for bar in others], [found.embed, found.bias])
    assert np.isclose(sum(bar.get_height() for bar in ax.patches), found.total)
    centres = [bar.get_x() + bar.get_width() / 2 for bar in heads]
    assert centres == sorted(centres)  # layer by layer, head by head
    layers = np.arange(shape[0])
    assert (np.round(np.reshape(centres, shape)) == layers[:, None] + 1).all()
    assert all(1 + i - 0.5 < mlp.get_x() and mlp.get_x() + mlp.get_width() < 1.5 + i for i, mlp in enumerate(mlps))
    assert legend(ax) == ["heads", "MLP", "embedding, biases"]
    assert tick_texts(ax.xaxis) == ["embed", *map(str, layers), "bias"]
    assert ax.get_title() == r"logit of \$x\$: 1.25"
    largest = np.argsort(-np.abs(found.heads).ravel())[:2]
    assert [text.get_text() for text in ax.texts] == [f"head {i % shape[1]}" for i in largest]
    assert np.allclose([text.xy for text in ax.texts], [(centres[i], found.heads.ravel()[i]) for i in largest])
    assert [fault for fault in faults_of(ax.figure) if fault != "overlap"] == []


def test_a_bar_for_each_layer():
    found = attribution(against=10)
    ax = plotting.attribution_bars(found, by="layer")
    heads, mlps, _ = ax.containers
    assert np.allclose([bar.get_height() for bar in heads], found.heads.sum(1))
    assert np.allclose([bar.get_height() for bar in mlps], found.mlps)
    assert np.isclose(sum(bar.get_height() for bar in ax.patches), found.total)
    assert ax.get_title() == "logit of 3 less 10: 1.25"
    assert not ax.texts and legend(ax)[0] == "all heads"
    assert faults_of(ax.figure) == []


def test_errors_grow():
    ax = plotting.error_lines({"q8": comparison(), "q4": comparison(scale=1e-1)})
    assert [list(line.get_xdata()) for line in ax.lines] == [[0, 1, 2]] * 2
    assert np.allclose([line.get_ydata() for line in ax.lines], np.outer([1e-3, 1e-1], [3, 6, 9]))
    assert ax.get_yscale() == "log" and legend(ax) == ["q8", "q4"]
    assert ax.get_ylabel() == "relative error (rms) of resid_post"
    (one, two) = ax.lines
    assert to_hex(one.get_color()) != to_hex(two.get_color()) and one.get_linestyle() != two.get_linestyle()
    assert faults_of(ax.figure) == []


def test_errors_of_several_activations():
    both = {"a": comparison(), "b": comparison(scale=2e-3)}
    ax = plotting.error_lines(both, parts=["attn_out", "ln", "resid_post"], measure="rms")
    assert np.allclose([line.get_ydata()[0] for line in ax.lines], np.array([2, 1, 3, 4, 2, 6]) * 1e-2)
    assert legend(ax) == [f"{label}, {part}" for label in "ab" for part in ("attn_out", "ln", "resid_post")]
    assert len({line.get_color() for line in ax.lines}) == 2 and len({line.get_linestyle() for line in ax.lines}) == 3
    ax.figure.draw_without_rendering()
    box = ax.get_legend().get_window_extent()
    assert box.x0 > ax.bbox.x1 and box.x1 <= ax.figure.bbox.x1  # six lines would lie upon the others


def test_no_error_has_no_place_on_the_axis():
    exact = dataclasses.replace(comparison(), taps=comparison(scale=0.0).taps)
    ax = plotting.error_lines({"f16": exact, "q8": comparison()})
    assert np.isnan(ax.lines[0].get_ydata()).all()
    assert legend(ax) == ["f16 (no error)", "q8"]
    alone = plotting.error_lines(comparison())
    assert alone.get_legend() is None


def test_norms():
    norms = np.array([[9.0, 1, 2, 3], [90, 4, 5, 9]])
    ax = plotting.norm_lines(norms)
    assert [list(line.get_ydata()) for line in ax.lines] == [[1, 4], [2, 5], [3, 9], [2, 5], [9, 90]]
    assert legend(ax) == ["median of the other positions", "first position"]
    assert tick_texts(ax.xaxis) == ["embed", "0"] and ax.get_yscale() == "log"
    assert faults_of(ax.figure) == []
    assert len(plotting.norm_lines(norms[:, :1]).lines) == 1
    assert faults_of(plotting.norm_lines(np.ones((29, 64))).figure) == []


def test_numbers_by_token():
    ax = plotting.token_lines(np.array([1.0, np.nan, 3.0]), [" a", "\n", "c"], label="nats")
    assert np.array_equal(ax.lines[0].get_ydata(), [1, np.nan, 3], equal_nan=True)
    assert tick_texts(ax.xaxis) == ["␣a", "↵", "c"]
    assert ax.get_ylabel() == "nats" and ax.get_legend() is None
    several = plotting.token_lines({"x": [1, 2], "y": [3, 4]})
    assert [list(line.get_ydata()) for line in several.lines] == [[1, 2], [3, 4]]
    assert legend(several) == ["x", "y"] and several.get_xlabel() == "position"


def test_given_axes_are_used_and_new_ones_left_alone():
    figure, axes = plt.subplots(2, 2)
    other = plt.figure()
    for ax, draw in zip(
        axes.flat,
        [
            lambda ax: plotting.error_lines(comparison(), ax),
            lambda ax: plotting.norm_lines(np.ones((2, 3)), ax),
            lambda ax: plotting.token_lines([1, 2], ax=ax),
            lambda ax: plotting.attribution_bars(attribution(), ax),
        ],
        strict=True,
    ):
        assert draw(ax) is ax
        assert ax.lines or ax.patches
    assert figure.axes == list(axes.flat)
    assert plt.gcf() is other and not other.axes and len(plt.get_fignums()) == 2
