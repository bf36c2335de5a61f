"""Maps of attention patterns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from refgpt._common.arguments import flag
from refgpt._common.errors import RefgptError
from refgpt._common.wording import listed, shown
from refgpt.plotting.canvas import MOST_INCHES, Room, cells, heat, library, new_or_given, up_from_zero, whole_ticks
from refgpt.plotting.checks import numbers, positive
from refgpt.plotting.labels import all_fit, label_columns, label_rows, labels_or_numbers, text_width, widest

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Labels = Sequence[str] | None


def attention_map(
    pattern: np.ndarray,
    tokens: Labels = None,
    ax: Axes | None = None,
    *,
    queries: Labels = None,
    vmax: float | None = None,
    bar: bool = True,
    cmap: Any = None,
) -> Axes:
    """One head's attention: a row of cells for each query, first token on top, and a column for each key.

    Keys that a query may not see stay blank.

    Parameters
    ----------
    pattern : ndarray [t, s]
        Of one head: ``trace["blocks.0.pattern"][head]``.
    tokens : sequence of str [s], optional
        Labels of the keys, as ``token_labels`` makes them; of the queries too if there are as many.
    ax : Axes, optional
        By default new ones.
    queries : sequence of str [t], optional
        Labels of the queries, if only some positions were recorded.
    vmax : float, optional
        Value of the last colour; by default the largest weight. The first colour is 0.
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
    pattern = numbers("pattern", pattern, "query, key")
    bar, vmax = flag("bar", bar, RefgptError), positive("vmax", vmax)
    keys, rows = _labels(pattern.shape, tokens, queries)
    n = max(pattern.shape)
    cell = Room(*[18 if n <= 16 else 11 if n <= 40 else 8.5] * 2)
    ax, room = cells(
        ax, pattern.shape[1], len(pattern), cell, bar=bar, square=True, left=widest(rows) + 30, below=widest(keys) + 25
    )
    _draw(ax, pattern, vmax, "attention" if bar else None, cmap)
    label_columns(ax, keys, room.width)
    label_rows(ax, rows, room.height)
    ax.set(xlabel="key", ylabel="query")
    return ax


def attention_grid(
    patterns: np.ndarray | Mapping[str, np.ndarray],
    tokens: Labels = None,
    axes: Any = None,
    *,
    vmax: float | None = None,
    bar: bool = True,
    cmap: Any = None,
) -> np.ndarray:
    """Small maps of many heads, with one scale of colours: the heads of a layer, or a row of heads for each layer.

    Parameters
    ----------
    patterns : ndarray [h, t, s] or [layer, h, t, s], or mapping of str to ndarray [h, t, s]
        Patterns of one layer or several, or a result of ``refgpt.tracing.record``, whose "pattern" entries are drawn.
    tokens : sequence of str [s], optional
        Labels, shown if all of them fit; otherwise positions are numbered.
    axes : array of Axes, optional
        One for each head, in order; by default new ones, the first layer lowest.
    vmax, bar, cmap
        As for ``attention_map``; the one colour bar is for all.

    Returns
    -------
    ndarray of Axes
        [rows, columns] in the order of the page; in the given shape, if axes were given.

    Raises
    ------
    RefgptError
        If shapes do not match, or matplotlib is not installed.
    """
    names, stack = _stack(patterns)  # [layer, h, t, s]
    n_layer, n_head, n_queries, n_keys = stack.shape
    keys, rows = _labels((n_queries, n_keys), tokens, None)
    new = axes is None
    table = _new_axes(n_layer, n_head, n_queries, n_keys) if new else np.asarray(axes, object)
    places = _places(table, n_layer, n_head, new)
    vmax = up_from_zero(stack)["vmax"] if vmax is None else positive("vmax", vmax)
    bar = flag("bar", bar, RefgptError)
    for (layer, head), ax in np.ndenumerate(places):
        ax, room = cells(new_or_given(ax), n_keys, n_queries, Room(1, 1), bar=False, square=True)
        image = _draw(ax, stack[layer, head], vmax, None, cmap)
        ax.set_title(_name(names[layer], head, room.width * n_keys), fontsize=8)
        _label_small(ax, keys if tokens is not None else None, rows, room, outer=new)
    if bar:
        ax.figure.colorbar(image, ax=list(places.flat), label="attention", aspect=40, fraction=0.05, pad=0.02)
    return table


def _draw(ax: Axes, pattern: np.ndarray, vmax: float | None, bar: str | None, cmap: Any) -> Any:
    hidden = np.triu(pattern == 0, k=1) if pattern.shape[0] == pattern.shape[1] else np.zeros_like(pattern, bool)
    limits = up_from_zero(pattern) if vmax is None else {"vmin": 0.0, "vmax": vmax}
    return heat(ax, np.where(hidden, np.nan, pattern), upwards=False, square=True, bar=bar, cmap=cmap, limits=limits)


def _labels(shape: tuple[int, ...], tokens: Labels, queries: Labels) -> tuple[list[str], list[str]]:
    """Labels of keys and of queries."""
    n_queries, n_keys = shape
    keys = labels_or_numbers("tokens", tokens, range(n_keys), "key")
    if queries is None and n_queries == n_keys:
        return keys, keys
    return keys, labels_or_numbers("queries", queries, range(n_queries), "query")


def _stack(patterns: Any) -> tuple[list[str], np.ndarray]:
    """Names of layers ("" for an array of one) and patterns [layer, h, t, s]."""
    if not isinstance(patterns, Mapping):
        try:
            three = np.ndim(patterns) == 3
        except ValueError:  # ragged: the next line raises a clear error
            three = False
        array = numbers("patterns", patterns, "head, query, key" if three else "layer, head, query, key")
        return ([""], array[None]) if three else (list(map(str, range(len(array)))), array)
    named = {name if isinstance(name, str) else shown(name): x for name, x in patterns.items()}
    found = {name: numbers(name, x, "head, query, key") for name, x in named.items() if name.endswith(".pattern")}
    if not found:
        raise RefgptError(
            "there is no pattern in it",
            where="patterns",
            got=listed(named) or "nothing",
            fix="record(model, ids, names='blocks.*.pattern') gives them",
        )
    if len({x.shape for x in found.values()}) > 1:
        raise RefgptError(
            "patterns of one model and text have one shape",
            where="patterns",
            got=", ".join(f"{name} {list(x.shape)}" for name, x in found.items()),
        )
    return [name.split(".")[-2] for name in found], np.stack(list(found.values()))


def _new_axes(n_layer: int, n_head: int, n_queries: int, n_keys: int) -> np.ndarray:
    columns = n_head if n_layer > 1 or n_head <= 4 else math.ceil(math.sqrt(n_head))
    rows = n_layer if n_layer > 1 else math.ceil(n_head / columns)
    side = min((MOST_INCHES - 1) / columns, (MOST_INCHES - 1) / rows, 2.2 if n_layer == 1 else 1.5)
    size = (columns * side + 1, rows * (side * n_queries / n_keys + 0.25) + 0.5)
    return library().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)[1]


def _name(layer: str, head: int, room: float) -> str:
    """The longest title that fits into ``room`` points, if any does."""
    names = [f"layer {layer}, head {head}", f"{layer}.{head}"] if layer else [f"head {head}", str(head)]
    return next((name for name in names if text_width(name, 8) <= room), names[-1])


def _places(table: np.ndarray, n_layer: int, n_head: int, new: bool) -> np.ndarray:
    """The axes of each head. -> [layer, head]"""
    if not new and table.size != n_layer * n_head:
        raise RefgptError(
            "must have one for each head", where="axes", got=f"{table.size} axes", wanted=f"{n_layer * n_head}"
        )
    if any(ax is None for ax in table.flat):  # None would make a new figure for each
        raise RefgptError("is no axes", where="axes", got="None", wanted="matplotlib's Axes for each head")
    if not new:
        return table.reshape(n_layer, n_head)
    for ax in table.flat[n_layer * n_head :]:
        ax.set_axis_off()
    return table[::-1] if n_layer > 1 else table.reshape(1, -1)[:, :n_head]


def _label_small(ax: Axes, keys: list[str] | None, queries: list[str], room: Room, outer: bool) -> None:
    """Label with tokens if all fit, otherwise with numbers; in a grid of new axes only along its edges."""
    if keys is not None and all_fit(room.width * 0.8):
        label_columns(ax, keys, room.width * 0.8)
        label_rows(ax, queries, room.height * 0.8)
    else:
        whole_ticks(ax.xaxis)
        whole_ticks(ax.yaxis)
        ax.tick_params(labelsize=7)
    if outer:
        ax.label_outer()
