"""Bars: where a logit comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from refgpt._common.arguments import one_of, whole_number
from refgpt._common.errors import RefgptError
from refgpt.plotting.canvas import COLOURS, GREY, extent, new_or_given
from refgpt.plotting.checks import instance, tokenizer_or_none
from refgpt.plotting.labels import LARGEST, label_columns, token_labels
from refgpt.tokenizers import Tokenizer
from refgpt.tracing import Attribution

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Of the room of a layer, what its bars take.
FILLED = 0.84


def attribution_bars(
    attribution: Attribution,
    ax: Axes | None = None,
    *,
    by: str = "head",
    named: int = 3,
    tokenizer: Tokenizer | None = None,
) -> Axes:
    """Direct logit attribution: a bar for each term of a logit, layer by layer, which together make it.

    Parameters
    ----------
    attribution : Attribution
        From ``refgpt.tracing.logit_attribution``.
    ax : Axes, optional
        By default new ones.
    by : "head" or "layer"
        A bar for each head, in order, or one for all heads of a layer; then one for attention's bias, in models that
        have it, and one for its MLP.
    named : int
        So many of the heads with the largest terms are named.
    tokenizer : Tokenizer, optional
        Names the token in the title.

    Returns
    -------
    Axes

    Raises
    ------
    RefgptError
        If an argument cannot be used, or matplotlib is not installed.
    """
    instance("attribution", attribution, Attribution, "logit_attribution")
    one_of("by", by, ("head", "layer"), RefgptError)
    tokenizer = tokenizer_or_none(tokenizer)
    named = whole_number("named", named, 0, None, RefgptError)
    heads = attribution.heads if by == "head" else attribution.heads.sum(axis=1, keepdims=True)  # [layer, bars]
    n_layer, n_bars = heads.shape
    n_others = 2 if attribution.attn_biases.any() else 1
    width = FILLED / (n_bars + n_others)
    places = np.arange(1, n_layer + 1)[:, None] - FILLED / 2 + width * (np.arange(n_bars + n_others) + 0.5)
    ax = new_or_given(ax, min(12.0, max(6.0, 1.2 + n_layer * max(0.35, 0.09 * (n_bars + n_others)))), 3.6)
    what = "heads" if by == "head" else "all heads"
    bars = {"width": width * 0.92}
    ax.bar(places[:, :n_bars].ravel(), heads.ravel(), color=COLOURS[0], label=what, **bars)
    if n_others == 2:
        ax.bar(places[:, -2], attribution.attn_biases, color=GREY, **bars)
    ax.bar(places[:, -1], attribution.mlps, color=COLOURS[1], label="MLP", **bars)
    ax.bar(
        [0, n_layer + 1],
        [attribution.embed, attribution.bias],
        color=GREY,
        label="embedding, biases",
        width=max(width, 0.25),
    )
    ax.axhline(0, color="black", linewidth=0.8)
    if by == "head":
        _name_largest(ax, places, heads, named)
    room = extent(ax)[0] / (n_layer + 2)
    label_columns(ax, ["embed", *map(str, range(n_layer)), "bias"], room)
    ax.set(xlabel="layer", ylabel="term of the logit", title=_title(attribution, tokenizer))
    ax.margins(y=0.12)
    ax.set_xlim(-0.7, n_layer + 1.7)
    low, high = ax.get_ylim()
    ax.set_ylim(low, high + 0.14 * (high - low))  # a line of room for the legend, above the names of heads
    ax.legend(loc="upper left", ncols=3, fontsize=LARGEST)
    return ax


def _name_largest(ax: Axes, places: np.ndarray, heads: np.ndarray, n: int) -> None:
    for flat in np.argsort(-np.abs(heads), axis=None, kind="stable")[:n]:
        layer, head = np.unravel_index(int(flat), heads.shape)
        term = heads[layer, head]
        ax.annotate(
            f"head {head}",
            (places[layer, head], term),
            xytext=(0, 2 if term >= 0 else -2),
            ha="center",
            va="bottom" if term >= 0 else "top",
            textcoords="offset points",
            fontsize=8,
        )


def _title(attribution: Attribution, tokenizer: Tokenizer | None) -> str:
    def name(token: int) -> str:
        text = str(token) if tokenizer is None else token_labels(tokenizer, [token])[0]
        return text.replace("$", r"\$")

    against = "" if attribution.against is None else f" less {name(attribution.against)}"
    return f"logit of {name(attribution.token)}{against}: {attribution.logit:.2f}"
