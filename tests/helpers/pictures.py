"""What tests of pictures share: objects to draw, and what can be measured of a drawn figure."""

from __future__ import annotations

import numpy as np

from refgpt.tokenizers import Tokenizer
from refgpt.tracing import Attribution, CausalTrace, Comparison, Difference

RNG = np.random.default_rng(11)


class Words(Tokenizer):
    """Tokens of all kinds: long words, blanks, a dollar, half a character, one without text; id 9 is in a gap."""

    def __init__(self) -> None:
        texts = [b" upon", b"\n", b" ", b"$x$", b"\xe2", b"", b"extraordinarily", b"\x07", b"<eos>"]
        super().__init__({**dict(enumerate(texts)), 10: b" a"}, 8)

    def _encode(self, text: str, special: bool = True) -> list[int]:
        raise NotImplementedError


#: As wide as labels get, and so many that they crowd.
LONG = ["\n" if i % 7 == 3 else f" {'wonderful' if i % 2 else 'yes'}{i}" for i in range(64)]


def patterns(*shape: int, seed: int = 0) -> np.ndarray:
    """Causal attention [..., t, t]."""
    t = shape[-1]
    raw = np.random.default_rng(seed).random((*shape, t)) * np.tri(t)
    return (raw / raw.sum(axis=-1, keepdims=True)).astype(np.float32)


def lens_logits(n_depths: int, n: int, n_vocab: int = 11) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(n_depths, n, n_vocab)).astype(np.float32) * 3


def attribution(n_layer: int = 3, n_head: int = 2, against: int | None = None) -> Attribution:
    rng = np.random.default_rng(7)
    heads, mlps = rng.normal(size=(n_layer, n_head)), rng.normal(size=n_layer)
    return Attribution(3, against, 0.4, heads, mlps, np.zeros(n_layer), -0.3, 1.25)


def comparison(n_layer: int = 3, parts: tuple[str, ...] = ("ln", "attn_out", "resid_post"), scale: float = 1e-3):
    """Errors that are scale x (1 + layer) x (1 + which part); relative, rms and max_abs are 1, 10 and 100 of them."""
    taps = [Difference("embed", 0.0, 0.0, 0.0, 1.0)]
    for i in range(n_layer):
        for j, part in enumerate(parts):
            error = scale * (1 + i) * (1 + j)
            taps.append(Difference(f"blocks.{i}.{part}", 100 * error, 10 * error, error, 1.0))
    return Comparison(tuple(taps), np.zeros(4), 1.0)


def trace(n_layer: int = 3, positions: tuple[int, ...] = (1, 2, 4)) -> CausalTrace:
    restored = np.random.default_rng(3).normal(size=(n_layer, len(positions)))
    return CausalTrace(5, 6, np.array(positions), 2.0, -2.0, restored)


def image_of(ax) -> np.ndarray:
    (image,) = ax.get_images()
    return image.get_array()


def tick_texts(axis) -> list[str]:
    return [label.get_text() for label in axis.get_ticklabels()]


def boxes(artists):
    """Extents in pixels of the texts that are drawn."""
    return [text.get_window_extent() for text in artists if text.get_visible() and text.get_text()]


def overlaps(extents) -> list:
    """Pairs that share more than a hair."""
    return [
        (a, b)
        for i, a in enumerate(extents)
        for b in extents[i + 1 :]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 0.5 and min(a.y1, b.y1) - max(a.y0, b.y0) > 0.5
    ]


def faults_of(figure) -> list[str]:
    """What a reader would stumble over: labels upon one another, outside the figure, or too small."""
    figure.draw_without_rendering()
    found = []
    page = figure.bbox
    for ax in figure.axes:
        if not ax.get_visible() or not ax.axison:
            continue
        below, beside = ([tick.label1 for tick in axis._update_ticks()] for axis in (ax.xaxis, ax.yaxis))  # in view
        texts = [*below, *beside, ax.xaxis.label, ax.yaxis.label, ax.title, *ax.texts]
        for group in (below, beside, ax.texts):
            found += ["overlap"] * len(overlaps(boxes(group)))
        for box in boxes(texts):
            if box.x0 < page.x0 - 1 or box.y0 < page.y0 - 1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1:
                found.append("clipped")
        found += ["tiny" for text in texts if text.get_text() and text.get_fontsize() < 5.9]
    return found
