"""Heat maps: the numbers of the images, their limits and what is written into them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import LogNorm, to_rgb

import refgpt
from refgpt import plotting, tracing
from tests.helpers.pictures import Words, comparison, faults_of, image_of, lens_logits, patterns, tick_texts, trace


def limits(ax):
    (image,) = ax.get_images()
    return image.get_clim()


def written(ax):
    """Texts by (row, column) of the image."""
    return {(round(y), round(x)): t.get_text() for t in ax.texts for x, y in [t.get_position()]}


def test_attention_is_drawn_as_it_is():
    pattern = patterns(6)
    ax = plotting.attention_map(pattern, list("abcdef"))
    drawn = image_of(ax)
    assert (drawn.mask == np.triu(np.ones((6, 6), bool), k=1)).all()  # the future is blank, and nothing else
    assert (drawn.filled(0) == pattern).all()
    assert limits(ax) == (0, pattern.max())
    assert tick_texts(ax.xaxis) == tick_texts(ax.yaxis) == list("abcdef")
    assert ax.yaxis_inverted()  # the first query on top
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("key", "query")
    assert len(ax.figure.axes) == 2  # and the colour bar
    assert ax.figure.axes[1].get_ylabel() == "attention"


def test_a_prefix_that_sees_itself_is_no_future():
    pattern = patterns(4)
    pattern[0, :2] = [0.75, 0.25]
    pattern[2, 1] = 0.0  # a weight that rounded to nothing is not hidden
    mask = image_of(plotting.attention_map(pattern)).mask
    assert not mask[0, 1] and mask[0, 2] and not mask[2, 1]


def test_some_queries_of_an_attention():
    pattern = patterns(6)[[2, 5]]
    ax = plotting.attention_map(pattern, list("abcdef"), queries=["c", "f"], vmax=1, bar=False)
    assert (image_of(ax) == pattern).all() and not np.ma.getmaskarray(image_of(ax)).any()
    assert limits(ax) == (0, 1)
    assert (tick_texts(ax.xaxis), tick_texts(ax.yaxis)) == (list("abcdef"), ["c", "f"])
    assert len(ax.figure.axes) == 1


def test_the_grid_of_a_layer():
    stack = patterns(5, 7) * np.linspace(0.2, 0.6, 5, dtype=np.float32)[:, None, None]  # each with another maximum
    axes = plotting.attention_grid(stack)
    assert axes.shape == (2, 3)
    for head, ax in enumerate(axes.flat[:5]):
        assert (image_of(ax).filled(0) == stack[head]).all()
        assert limits(ax) == (0, stack.max())  # one scale for all
        assert ax.get_title() == f"head {head}"
    assert not axes.flat[5].axison
    assert len(axes[0, 0].figure.axes) == 7  # one colour bar
    assert faults_of(axes[0, 0].figure) == []


@pytest.mark.parametrize("shape", [(2, 3, 8), (28, 16, 64)])
def test_the_grid_of_a_model(shape):
    stack = patterns(*shape)
    axes = plotting.attention_grid(stack, [str(i) for i in range(shape[-1])])
    assert axes.shape == shape[:2]
    for row in (0, 1, shape[0] - 1):
        layer = shape[0] - 1 - row  # the first layer lowest
        for head in (0, shape[1] - 1):
            assert (image_of(axes[row, head]).filled(0) == stack[layer, head]).all()
            assert axes[row, head].get_title() in (f"layer {layer}, head {head}", f"{layer}.{head}")
    if shape[0] < 28:  # laying 448 axes out takes a while
        assert faults_of(axes[0, 0].figure) == []


def test_the_grid_of_a_recording_on_given_axes():
    recording = {
        "embed": np.ones((4, 2)),
        "blocks.3.pattern": patterns(2, 4),
        "blocks.5.pattern": patterns(2, 4, seed=1),
    }
    figure, axes = plt.subplots(4, figsize=(4, 12))
    assert plotting.attention_grid(recording, axes=axes, bar=False) is axes
    assert [ax.get_title() for ax in axes] == [f"layer {i}, head {h}" for i in (3, 5) for h in (0, 1)]
    assert (image_of(axes[3]).filled(0) == recording["blocks.5.pattern"][1]).all()
    assert figure.axes == list(axes)


def test_head_scores():
    scores = np.array([[0.25, 0.5, np.nan], [0.0, 1.0, 12.5]])
    ax = plotting.head_map(scores, label="induction")
    assert (image_of(ax).mask == np.isnan(scores)).all() and (
        image_of(ax).filled(7) == np.nan_to_num(scores, nan=7)
    ).all()
    assert limits(ax) == (0, 12.5)
    assert not ax.yaxis_inverted()  # layer 0 lowest
    assert written(ax) == {(0, 0): ".25", (0, 1): ".50", (1, 0): ".00", (1, 1): "1.00", (1, 2): "12"}
    assert (tick_texts(ax.xaxis), tick_texts(ax.yaxis)) == (["0", "1", "2"], ["0", "1"])
    assert ax.figure.axes[1].get_ylabel() == "induction"
    colours = {t.get_text(): t.get_color() for t in ax.texts}
    assert colours[".00"] == "white" and colours["12"] == "black"  # on violet and on yellow


def test_signs_have_colours_on_both_sides_of_0():
    heads = np.array([[-0.5, 0.001], [2.0, -0.001]])
    ax = plotting.head_map(heads)
    (image,) = ax.get_images()
    assert (limits(ax), image.cmap.name) == ((-2, 2), "PuOr")
    assert written(ax) == {(0, 0): "-.50", (0, 1): ".00", (1, 0): "2.00", (1, 1): ".00"}
    assert limits(plotting.head_map(np.abs(heads), signed=True)) == (-2, 2)
    assert limits(plotting.head_map(heads, signed=False)) == (0, 2)
    assert plotting.head_map(heads, cmap="cividis").get_images()[0].cmap.name == "cividis"


def test_gptj_has_room_for_its_heads():
    heads = np.random.default_rng(0).normal(size=(28, 16))
    ax = plotting.head_map(heads)
    assert len(ax.texts) == 28 * 16
    assert faults_of(ax.figure) == []


@pytest.mark.parametrize("down", [False, True])
def test_the_lens(down):
    lens, words = lens_logits(3, 5), Words()
    targets = [int(lens[2, 0].argmax()), int(lens[0, 1].argmax()), -1, -1, -1]
    ax = plotting.lens_map(lens, list("abcde"), tokenizer=words, targets=targets, down=down)
    p = np.exp(lens.astype(np.float64))
    p = (p / p.sum(-1, keepdims=True)).max(-1)
    best = lens.argmax(-1)
    drawn = image_of(ax).T if down else image_of(ax)
    assert drawn.shape == (3, 5) and np.abs(drawn - p).max() < 1e-6
    assert limits(ax) == (0, 1)
    names = {(d, t): plotting.token_labels(words, [best[d, t]])[0] for d in range(3) for t in range(5)}
    got = {(x, y) if down else (y, x): text for (y, x), text in written(ax).items()}
    assert got.keys() == names.keys()
    for at, name in names.items():
        assert got[at] == name or (got[at].endswith("…") and name.startswith(got[at][:-1]))
    depths, tokens = (ax.xaxis, ax.yaxis) if down else (ax.yaxis, ax.xaxis)
    assert (tick_texts(depths), tick_texts(tokens)) == (["embed", "0", "1"], list("abcde"))
    assert ax.yaxis_inverted() == down
    frames = {(round(r.get_x() + 0.45), round(r.get_y() + 0.42)) for r in ax.patches}
    hits = {(t, d) for d, t in np.argwhere(best == np.array(targets))}
    assert len(hits) >= 2 and frames == ({(d, t) for t, d in hits} if down else hits)


def test_a_lens_without_room_or_names_has_no_texts():
    assert not plotting.lens_map(lens_logits(3, 5)).texts
    _, ax = plt.subplots(figsize=(3, 2))
    assert not plotting.lens_map(lens_logits(7, 40), ax=ax, tokenizer=Words()).texts


def test_causal_traces():
    found = trace()
    ax = plotting.causal_map(found, [" the", " king", " had"])
    assert np.abs(image_of(ax) - (found.restored + 2) / 4).max() < 1e-12
    low, high = limits(ax)
    assert -low == high == np.abs(found.recovered).max()
    assert tick_texts(ax.xaxis) == ["␣the", "␣king", "␣had"]
    assert not ax.yaxis_inverted()
    assert tick_texts(plotting.causal_map(found).xaxis) == ["1", "2", "4"]


def test_errors_by_activation_and_layer():
    ax = plotting.error_map(comparison())
    want = 1e-3 * np.outer([1, 2, 3], [1, 2, 3])
    assert np.allclose(image_of(ax), want, rtol=1e-12)
    (image,) = ax.get_images()
    assert isinstance(image.norm, LogNorm) and np.allclose(image.get_clim(), (1e-3, 9e-3))
    assert (tick_texts(ax.xaxis), tick_texts(ax.yaxis)) == (["0", "1", "2"], ["ln", "attn_out", "resid_post"])
    assert ax.yaxis_inverted()  # in the order of the block, downwards
    assert written(ax)[2, 1] == "6e-3"
    largest = plotting.error_map(comparison(), measure="max_abs")
    assert np.allclose(image_of(largest), 100 * want) and largest.figure.axes[1].get_ylabel() == "largest error"


def luminance(colour, cvd=None):
    return linear(colour, cvd) @ (0.2126, 0.7152, 0.0722)


#: Machado et al. 2009, "A physiologically-based model for simulation of color vision deficiency", severity 1.
BLINDNESS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def linear(colour, cvd=None):
    c = np.array(to_rgb(colour))
    c = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return np.clip(np.array(BLINDNESS[cvd]) @ c, 0, 1) if cvd else c


@pytest.mark.parametrize("cvd", [None, *BLINDNESS])
def test_colours_can_be_told_apart_by_everybody(cvd):
    viridis, purple_orange = plt.get_cmap(plotting.canvas.SEQUENTIAL), plt.get_cmap(plotting.canvas.DIVERGING)
    light = np.array([luminance(viridis(x), cvd) for x in np.linspace(0, 1, 33)])
    assert (np.diff(light) > 0).all()  # also in grey
    half = np.linspace(0, 0.5, 17)
    for side in (half, 1 - half):
        assert (np.diff([luminance(purple_orange(x), cvd) for x in side]) > 0).all()  # lighter towards 0
    for x in (0.1, 0.2, 0.3):
        below, above = linear(purple_orange(x), cvd), linear(purple_orange(1 - x), cvd)
        assert np.abs(below - above).max() > 0.15
    lines = [luminance(colour, cvd) for colour in plotting.canvas.COLOURS]
    assert np.abs(np.diff(lines)).min() > 0.05  # neighbours differ in grey


def test_pictures_of_the_default_model():
    model = refgpt.load()
    ids = model.tokenizer.encode("Once upon a time there was a king")
    labels = plotting.token_labels(model.tokenizer, ids)
    found = tracing.record(model, ids, names="blocks.*.pattern")
    axes = plotting.attention_grid(found, labels)
    assert axes.shape == (6, 4)
    assert (image_of(axes[0, 3]).filled(0) == found["blocks.5.pattern"][3]).all()
    lens = plotting.lens_map(tracing.logit_lens(model, ids), labels, tokenizer=model.tokenizer, targets=[*ids[1:], -1])
    top = plotting.token_labels(model.tokenizer, model.logits(ids).argmax(-1))
    assert [written(lens)[6, t] for t in range(len(ids))] == top
    ax = plotting.head_map(tracing.head_scores(model, ids).entropy)
    assert image_of(ax).shape == (6, 4)
    taken = tracing.logit_attribution(model, ids)
    bars = plotting.attribution_bars(taken, tokenizer=model.tokenizer)
    assert abs(sum(bar.get_height() for bar in bars.patches) - taken.logit) < 1e-3
    plotting.norm_lines(tracing.residual_norms(model, ids))
