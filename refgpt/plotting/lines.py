"""Line plots: errors by layer, norms of the residual stream by depth, numbers by token."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refgpt._common.arguments import collected, path_of
from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown
from refgpt.plotting.canvas import (
    COLOURS,
    GREY,
    POINTS,
    STYLES,
    depth_names,
    extent,
    library,
    new_or_given,
    whole_ticks,
)
from refgpt.plotting.checks import numbers, texts, title
from refgpt.plotting.errors import ERRORS, error_table
from refgpt.plotting.labels import label_columns, readable, widest
from refgpt.tracing import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: A legend with more lines than this is drawn beside the plot.
MOST_INSIDE = 4


def error_lines(
    comparisons: Comparison | Mapping[str, Comparison],
    ax: Axes | None = None,
    *,
    parts: str | Sequence[str] = "resid_post",
    measure: str = "relative",
) -> Axes:
    """How an error grows from layer to layer, on a logarithmic axis: a colour for each comparison.

    Parameters
    ----------
    comparisons : Comparison, or mapping of str to Comparison
        From ``refgpt.tracing.compare``; several with their names for the legend.
    ax : Axes, optional
        By default new ones.
    parts : str or sequence of str
        Activations of a block, by the last part of their names; a line style for each.
    measure : "relative", "rms" or "max_abs"
        A field of ``refgpt.tracing.Difference``. Errors of 0 have no place on the axis and are left out.

    Returns
    -------
    Axes

    Raises
    ------
    RefgptError
        If a part was not compared, or matplotlib is not installed.
    """
    several = comparisons if isinstance(comparisons, Mapping) else {"": comparisons}
    wanted = "parts of names, as 'resid_post'"
    parts = [parts] if isinstance(parts, str) else collected("parts", parts, wanted, RefgptError)
    if other := [part for part in parts if not isinstance(part, str)]:
        raise RefgptError("is no name", where="parts", got=shown(other[0]), wanted=wanted)
    if not several or not parts:
        raise RefgptError("leaves nothing to draw", where="parts" if several else "comparisons", got="none")
    tables = {label: error_table(label or "comparisons", one, measure) for label, one in several.items()}
    for label, (known, _) in tables.items():
        for part in parts:
            if part not in known:
                raise RefgptError(
                    "was not compared",
                    where=", ".join(filter(None, [label, "parts"])),
                    got=shown(part),
                    wanted=f"of {', '.join(known)}",
                )
    ax = new_or_given(ax)
    for n, (label, (known, table)) in enumerate(tables.items()):
        for m, part in enumerate(parts):
            errors = table[known.index(part)]
            style, marker = STYLES[(n if len(parts) == 1 else m) % len(STYLES)]
            name = ", ".join(filter(None, [label, part if len(parts) > 1 or not label else ""]))
            name += "" if (errors > 0).any() else " (no error)"
            ax.plot(
                np.where(errors > 0, errors, np.nan),
                color=COLOURS[n % len(COLOURS)],
                linestyle=style,
                marker=marker,
                markersize=4,
                label=name,
            )
    ax.set(yscale="log", xlabel="layer", ylabel=ERRORS[measure] + (f" of {parts[0]}" if len(parts) == 1 else ""))
    whole_ticks(ax.xaxis)
    ax.grid(axis="y", alpha=0.3)
    n_lines = len(tables) * len(parts)
    if n_lines > MOST_INSIDE:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    elif n_lines > 1:
        ax.legend()
    return ax


def norm_lines(norms: np.ndarray, ax: Axes | None = None) -> Axes:
    """Norms of the residual stream's vectors at each depth: a thin line for each position, and their median.

    The first position has a separate line: in many models its norm is far larger than the others.

    Parameters
    ----------
    norms : ndarray [n_layer + 1, t]
        From ``refgpt.tracing.residual_norms``.
    ax : Axes, optional
        By default new ones.

    Raises
    ------
    RefgptError
        If the numbers have other axes, or matplotlib is not installed.
    """
    norms = numbers("norms", norms, "depth, position")
    n_depths, n = norms.shape
    ax = new_or_given(ax)
    if n > 1:
        ax.plot(norms[:, 1:], color=GREY, alpha=max(0.15, min(0.6, 4 / n)), linewidth=0.8)
        ax.plot(np.median(norms[:, 1:], axis=1), color=COLOURS[0], linewidth=2.2, label="median of the other positions")
    ax.plot(norms[:, 0], color=COLOURS[1], linestyle="--", marker="o", markersize=4, label="first position")
    ax.set(yscale="log", xlabel="after layer", ylabel="length of the residual stream")
    label_columns(ax, depth_names(n_depths), extent(ax)[0] / n_depths)
    ax.legend()
    return ax


def token_lines(
    values: np.ndarray | Mapping[str, np.ndarray],
    tokens: Sequence[str] | None = None,
    ax: Axes | None = None,
    *,
    label: str = "",
) -> Axes:
    """A number for each token of a text, or several: surprise, entropy, divergence.

    Parameters
    ----------
    values : ndarray [t], or mapping of str to ndarray [t]
        As ``kl`` of a ``refgpt.tracing.Comparison``; several with their names for the legend. NaN leaves a gap.
    tokens : sequence of str [t], optional
        Labels of the positions, as ``token_labels`` makes them.
    ax : Axes, optional
        By default new ones.
    label : str
        Label of the numbers.

    Raises
    ------
    RefgptError
        If shapes do not match, or matplotlib is not installed.
    """
    several, label = values if isinstance(values, Mapping) else {"": values}, title("label", label)
    rows = {name: numbers(name or "values", row, "position") for name, row in several.items()}
    if len({len(row) for row in rows.values()}) != 1:
        got = ", ".join(f"{name}: {len(row)}" for name, row in rows.items()) or "none"
        raise RefgptError(
            "must have one number for each position", where="values", got=got, wanted="rows of one length"
        )
    n = len(next(iter(rows.values())))
    if tokens is not None:
        texts("tokens", tokens, n, "position")
    labels = None if tokens is None else list(map(readable, tokens))
    room = min(24.0, max(9.0, 640 / n))
    ax_given = ax is not None
    ax = new_or_given(ax, min(14.0, max(5.0, (n * room + 70) / POINTS)), 2.6 + widest(labels or []) / POINTS)
    if ax_given:
        room = extent(ax)[0] / n
    for m, (name, row) in enumerate(rows.items()):
        style, marker = STYLES[m % len(STYLES)]
        ax.plot(row, color=COLOURS[m % len(COLOURS)], linestyle=style, marker=marker, markersize=3, label=name or None)
    ax.set(xlim=(-0.5, n - 0.5), ylabel=label, xlabel="position" if labels is None else "token")
    ax.grid(axis="y", alpha=0.3)
    if labels is None:
        whole_ticks(ax.xaxis)
    else:
        label_columns(ax, labels, room * 0.93)
    if len(rows) > 1 or "" not in rows:
        ax.legend()
    return ax


def loss_lines(metrics: Sequence[Mapping[str, Any]], ax: Axes | None = None) -> Axes:
    """The loss of a training by step: that of each step, their running mean, and those of the evaluations.

    Parameters
    ----------
    metrics : sequence of mapping
        The lines of metrics.jsonl: ``step`` with ``loss``, ``valid_loss`` or ``test_loss``.
    ax : Axes, optional
        By default new ones.

    Raises
    ------
    RefgptError
        If there is no loss among them, or matplotlib is not installed.
    """
    found = {name: _losses(metrics, name) for name in ("loss", "valid_loss", "test_loss")}
    if not any(len(losses) for losses in found.values()):
        raise RefgptError("hold no loss to draw", where="metrics", got="none", wanted="lines with 'step' and 'loss'")
    ax = new_or_given(ax)
    steps = found["loss"]
    if len(steps):
        ax.plot(steps[:, 0], steps[:, 1], color=COLOURS[0], alpha=0.3, linewidth=0.8, label="loss of a step")
        smooth = steps[:, 1].copy()
        for i in range(1, len(smooth)):
            smooth[i] = 0.9 * smooth[i - 1] + 0.1 * smooth[i]
        ax.plot(steps[:, 0], smooth, color=COLOURS[0], linewidth=1.8, label="its running mean")
    for n, (name, label) in enumerate((("valid_loss", "validation"), ("test_loss", "test")), 1):
        if len(losses := found[name]):
            style, marker = STYLES[n]
            ax.plot(*losses.T, color=COLOURS[n], linestyle=style, marker=marker, markersize=4, label=label)
    ax.set(xlabel="step", ylabel="nats a token")
    whole_ticks(ax.xaxis)
    ax.grid(axis="y", alpha=0.3)
    ax.legend()
    return ax


def save_loss_lines(metrics: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Draw ``loss_lines`` into a file; nothing is shown, and no window is opened.

    Raises
    ------
    RefgptError
        If there is nothing to draw, matplotlib is not installed, or the file cannot be written.
    """
    place = path_of("path", path, RefgptError)
    library()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    loss_lines(metrics, figure.subplots())
    try:
        figure.savefig(place)
    except OSError as fault:
        raise RefgptError(f"cannot be written ({fault.strerror})", where=place) from fault


def _losses(metrics: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    """Step and loss of the lines that have one. -> [n, 2]"""
    rows = [(line["step"], line[name]) for line in metrics if name in line and "step" in line]
    return numbers(name, rows, "step, loss") if rows else np.empty((0, 2))
