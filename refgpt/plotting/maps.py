"""Heat maps of numbers by layer and head, layer and position, or layer and activation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refgpt._common.arguments import flag
from refgpt._common.errors import RefgptError
from refgpt.generation.sampling import log_softmax
from refgpt.plotting.canvas import DIVERGING, Room, about_zero, cells, depth_names, heat, ink, up_from_zero
from refgpt.plotting.checks import as_many, instance, numbers, title, tokenizer_or_none
from refgpt.plotting.errors import ERRORS, error_table
from refgpt.plotting.labels import label_columns, label_rows, labels_or_numbers, token_labels, widest, write_cells
from refgpt.spec.ids import check_flat
from refgpt.tokenizers import Tokenizer
from refgpt.tracing import CausalTrace, Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


def head_map(
    scores: np.ndarray,
    ax: Axes | None = None,
    *,
    label: str = "score",
    signed: bool | None = None,
    bar: bool = True,
    cmap: Any = None,
) -> Axes:
    """One number for each head: a row of cells for each layer, the first layer at the bottom, with the numbers if they
    fit.

    Parameters
    ----------
    scores : ndarray [n_layer, n_head]
        A field of ``refgpt.tracing.HeadScores``, or ``heads`` of an ``Attribution``. NaN stays blank.
    ax : Axes, optional
        By default new ones.
    label : str
        Label of the numbers.
    signed : bool, optional
        Whether to use a diverging colour map around 0; by default if a number is negative.
    bar : bool
        Whether there is a colour bar.
    cmap : optional
        Another colour map.

    Returns
    -------
    Axes

    Raises
    ------
    RefgptError
        If the numbers have other axes, or matplotlib is not installed.
    """
    scores, label = numbers("scores", scores, "layer, head"), title("label", label)
    n_layer, n_head = scores.shape
    ax, room = cells(ax, n_head, n_layer, Room(30, 22), bar=bar)
    signed = bool((scores < 0).any()) if signed is None else flag("signed", signed, RefgptError)
    limits = about_zero(scores) if signed else up_from_zero(scores)
    cmap = DIVERGING if cmap is None and signed else cmap
    image = heat(ax, scores, upwards=True, bar=label if bar else None, cmap=cmap, limits=limits)
    write_cells(ax, image, scores, [[_brief(x) for x in row] for row in scores], room)
    label_columns(ax, list(map(str, range(n_head))), room.width)
    label_rows(ax, list(map(str, range(n_layer))), room.height)
    ax.set(xlabel="head", ylabel="layer")
    return ax


def lens_map(
    lens: np.ndarray,
    tokens: Sequence[str] | None = None,
    ax: Axes | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    targets: Sequence[int] | None = None,
    down: bool = False,
    bar: bool = True,
    cmap: Any = None,
) -> Axes:
    """The logit lens: the most likely next token at each depth and position, on the colour of its probability.

    Parameters
    ----------
    lens : ndarray [n_layer + 1, t, v]
        Logits, from ``refgpt.tracing.logit_lens``.
    tokens : sequence of str [t], optional
        Labels of the positions, as ``token_labels`` makes them.
    ax : Axes, optional
        By default new ones.
    tokenizer : Tokenizer, optional
        Used to write the most likely tokens; without it only colours are drawn.
    targets : sequence of int [t], optional
        The id that really follows each position, or -1. Cells that predict it as most likely are framed.
    down : bool
        Whether positions run downwards and depths to the right, which suits long texts.
    bar : bool
        Whether there is a colour bar.
    cmap : optional
        Another colour map.

    Returns
    -------
    Axes

    Raises
    ------
    RefgptError
        If shapes do not match, or matplotlib is not installed.
    """
    tokenizer, down = tokenizer_or_none(tokenizer), flag("down", down, RefgptError)
    try:
        shape = np.shape(lens)
    except ValueError:  # ragged
        shape = ()
    if len(shape) != 3 or not np.size(lens):
        raise RefgptError(
            "has other axes than can be drawn",
            where="lens",
            got=f"an array {list(shape)}",
            wanted="logits [depth, position, token]",
        )
    n_depths, n, _ = shape
    if targets is not None:
        as_many("targets", targets, n, "position")
        targets = check_flat(targets).tolist()
    labels = labels_or_numbers("tokens", tokens, range(n))
    depths = depth_names(n_depths)
    best = np.stack([np.argmax(depth, axis=-1) for depth in lens])  # [depth, t]
    # One depth at a time, because v is large.
    values = np.stack([np.exp(log_softmax(depth).max(axis=-1)) for depth in lens])
    names = [[""] * n] * n_depths if tokenizer is None else [token_labels(tokenizer, row) for row in best]
    hits = np.zeros_like(best, bool) if targets is None else best == np.array(targets)
    columns, rows = (depths, labels) if down else (labels, depths)
    if down:
        values, hits, names = values.T, hits.T, [list(row) for row in zip(*names, strict=True)]
    cell = Room(42 if down or n <= 24 else 16, 13 if down else 18)
    ax, room = cells(ax, len(columns), len(rows), cell, bar=bar, left=widest(rows) + 30, below=widest(columns) + 25)
    image = heat(
        ax, values, upwards=not down, bar="probability" if bar else None, cmap=cmap, limits={"vmin": 0, "vmax": 1}
    )
    write_cells(ax, image, values, names, room)
    _frame(ax, image, values, hits)
    label_columns(ax, columns, room.width)
    label_rows(ax, rows, room.height)
    ax.set(xlabel="after layer", ylabel="token") if down else ax.set(xlabel="token", ylabel="after layer")
    return ax


def causal_map(
    trace: CausalTrace,
    tokens: Sequence[str] | None = None,
    ax: Axes | None = None,
    *,
    bar: bool = True,
    cmap: Any = None,
) -> Axes:
    """Causal tracing: how much each state restores the clean answer, a row of cells for each layer.

    0 is the corrupt run, 1 the clean run; the colours diverge around 0.

    Parameters
    ----------
    trace : CausalTrace
        From ``refgpt.tracing.causal_trace``.
    tokens : sequence of str [n], optional
        Labels of the positions that were traced: ``[labels[i] for i in trace.positions]``.
    ax, bar, cmap
        As for ``head_map``.

    Raises
    ------
    RefgptError
        If shapes do not match, or matplotlib is not installed.
    """
    instance("trace", trace, CausalTrace, "causal_trace")
    recovered = numbers("trace", trace.recovered, "layer, position")
    n_layer, n = recovered.shape
    labels = labels_or_numbers("tokens", tokens, trace.positions)
    ax, room = cells(ax, n, n_layer, Room(26 if n <= 24 else 14, 18), bar=bar, below=widest(labels) + 25)
    image = heat(
        ax,
        recovered,
        upwards=True,
        bar="brought back" if bar else None,
        cmap=DIVERGING if cmap is None else cmap,
        limits=about_zero(recovered),
    )
    write_cells(ax, image, recovered, [[_brief(x) for x in row] for row in recovered], room)
    label_columns(ax, labels, room.width)
    label_rows(ax, list(map(str, range(n_layer))), room.height)
    ax.set(xlabel="token whose state is restored", ylabel="layer")
    return ax


def error_map(
    comparison: Comparison, ax: Axes | None = None, *, measure: str = "relative", bar: bool = True, cmap: Any = None
) -> Axes:
    """The error of every activation of every block: layers to the right, activations in the order of a block downwards.

    Colours are logarithmic. An error of 0 stays blank.

    Parameters
    ----------
    comparison : Comparison
        From ``refgpt.tracing.compare``.
    measure : "relative", "rms" or "max_abs"
        A field of ``refgpt.tracing.Difference``.
    ax, bar, cmap
        As for ``head_map``.

    Raises
    ------
    RefgptError
        If no block was compared, no error is above 0, or matplotlib is not installed.
    """
    parts, table = error_table("comparison", comparison, measure)
    ax, room = cells(ax, table.shape[1], len(parts), Room(34, 16), bar=bar, left=widest(parts) + 30)
    errors = np.where(table > 0, table, np.nan)
    if not np.isfinite(errors).any():
        raise RefgptError(
            "has no error to draw", where="comparison", got="0 everywhere", wanted="two models that differ"
        )
    from matplotlib.colors import LogNorm

    norm = LogNorm(np.nanmin(errors), max(np.nanmax(errors), np.nanmin(errors) * 1.01))
    image = heat(ax, errors, upwards=False, bar=ERRORS[measure] if bar else None, cmap=cmap, limits={"norm": norm})
    write_cells(ax, image, errors, [[f"{x:.0e}".replace("e-0", "e-") for x in row] for row in errors], room)
    label_columns(ax, list(map(str, range(table.shape[1]))), room.width)
    label_rows(ax, parts, room.height)
    ax.set(xlabel="layer")
    return ax


def _frame(ax: Axes, image: AxesImage, values: np.ndarray, hits: np.ndarray) -> None:
    """Frames around cells. hits bool [rows, columns]"""
    from matplotlib.patches import Rectangle

    for i, j in np.argwhere(hits):
        colour = ink(image, float(values[i, j]))
        ax.add_patch(Rectangle((j - 0.45, i - 0.42), 0.9, 0.84, fill=False, edgecolor=colour, linewidth=1.2))


def _brief(x: float) -> str:
    """A number in few characters."""
    text = f"{x:.2f}" if abs(x) < 9.995 else f"{x:.0f}"
    return text.replace("-0.00", "0.00").replace("0.", ".") if abs(x) < 0.995 else text
