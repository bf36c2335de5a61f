"""Axes, colours that are distinguishable with colour blindness, and the import of matplotlib.

Given axes are used and returned. Nothing else is changed: no setting of matplotlib, no window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from refgpt._common.arguments import flag
from refgpt._common.errors import RefgptError
from refgpt._common.wording import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

#: Sequential: lightness increases monotonically, so it also works in grey and with any colour blindness.
SEQUENTIAL = "viridis"
#: Below and above 0: orange and violet, which no common colour blindness confuses (ColorBrewer).
DIVERGING = "PuOr"
#: Colours of lines and bars, of Okabe and Ito 2008 (https://jfly.uni-koeln.de/color/), so ordered that neighbours also
#: differ in lightness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7")
GREY = "#777777"
#: Line styles and markers that distinguish lines of the same colour.
STYLES = (("-", "o"), ("--", "s"), (":", "^"), ("-.", "D"), ("-", "v"), ("--", "P"))

POINTS = 72.0  # in an inch
LEAST_INCHES, MOST_INCHES = 2.8, 13.0
BAR_POINTS = 85.0  # a colour bar with its numbers and label
AROUND = 45.0  # title, or ticks and label of an axis


@dataclass(frozen=True)
class Room:
    """The size of one cell of a heat map, in points."""

    width: float
    height: float


def library() -> Any:
    """matplotlib's ``pyplot``.

    Raises
    ------
    RefgptError
        If it is not installed.
    """
    try:
        import matplotlib.pyplot
    except ImportError as fault:
        raise RefgptError(
            "pictures need matplotlib", where="refgpt.plotting", fix="pip install 'refgpt[plot]'"
        ) from fault
    return matplotlib.pyplot


def new_or_given(ax: Axes | None, width: float = 7.2, height: float = 3.6) -> Axes:
    """The given axes, or new ones in a figure of ``width`` x ``height`` inches.

    Raises
    ------
    RefgptError
        If matplotlib is not installed, or ``ax`` is something else.
    """
    plt = library()
    if ax is None:
        return plt.subplots(figsize=(width, height), layout="constrained")[1]
    from matplotlib.axes import Axes

    if not isinstance(ax, Axes):
        raise RefgptError(
            "is no axes",
            where="ax",
            got=type(ax).__name__,
            wanted="matplotlib's Axes, or None",
            fix="subplots(...) gives a figure and its axes: take the latter",
        )
    return ax


def cells(
    ax: Axes | None,
    n_x: int,
    n_y: int,
    cell: Room,
    *,
    bar: bool,
    square: bool = False,
    left: float = AROUND,
    below: float = AROUND,
) -> tuple[Axes, Room]:
    """Axes for a heat map, and the size of its cells.

    Parameters
    ----------
    ax : Axes or None
        New axes are large enough for cells of the requested size, up to ``MOST_INCHES``.
    n_x, n_y : int
        Columns and rows.
    bar : bool
        Whether to leave space for a colour bar.
    square : bool
        Whether cells are square.
    left, below : float
        Points for the labels of the rows and of the columns.
    """
    bar = flag("bar", bar, RefgptError)
    beside = left + (BAR_POINTS if bar else 15)
    if ax is None:
        width = min(n_x * cell.width, MOST_INCHES * POINTS - beside)
        height = min(n_y * cell.height, MOST_INCHES * POINTS - below - AROUND)
        room = _room(width, height, n_x, n_y, square)
        inches = (
            max(LEAST_INCHES, (room.width * n_x + beside) / POINTS),
            max(LEAST_INCHES, (room.height * n_y + below + AROUND) / POINTS),
        )
        return new_or_given(None, *inches), room
    ax = new_or_given(ax)
    width, height = extent(ax)
    return ax, _room(width * (0.8 if bar else 1), height, n_x, n_y, square)


def extent(ax: Axes) -> tuple[float, float]:
    """Width and height of axes in points."""
    box: Any = ax.get_window_extent()
    scale = POINTS / ax.figure.dpi
    return box.width * scale, box.height * scale


def _room(width: float, height: float, n_x: int, n_y: int, square: bool) -> Room:
    w, h = width / n_x, height / n_y
    return Room(min(w, h), min(w, h)) if square else Room(w, h)


def heat(
    ax: Axes,
    values: np.ndarray,
    *,
    upwards: bool,
    square: bool = False,
    bar: str | None = None,
    cmap: Any = None,
    limits: Mapping[str, Any],
) -> AxesImage:
    """Draw a heat map; NaN stays blank.

    Parameters
    ----------
    values : ndarray [rows, columns]
    upwards : bool
        Whether row 0 is the lowest.
    bar : str, optional
        Label of the colour bar; None for no bar.
    cmap : optional
        Colour map; by default ``SEQUENTIAL``.
    limits : mapping
        ``vmin`` and ``vmax``, or ``norm``.
    """
    image = ax.imshow(
        np.ma.masked_invalid(values),
        cmap=_colour_map(cmap),
        interpolation="nearest",
        origin="lower" if upwards else "upper",
        aspect="equal" if square else "auto",
        **limits,
    )
    ax.tick_params(length=2, pad=2)
    if bar is not None:
        ax.figure.colorbar(image, ax=ax, label=bar, aspect=30)
    return image


def _colour_map(value: Any) -> Any:
    from matplotlib import colormaps
    from matplotlib.colors import Colormap

    if value is None:
        return SEQUENTIAL
    if isinstance(value, Colormap) or (isinstance(value, str) and value in colormaps):
        return value
    raise RefgptError(
        "cannot be used", where="cmap", got=shown(value), wanted="a colour map of matplotlib or its name, as 'viridis'"
    )


def about_zero(values: np.ndarray) -> dict[str, float]:
    """Limits at the same distance on both sides of 0, so that the middle of a diverging map is 0."""
    most = float(np.abs(values[np.isfinite(values)]).max(initial=0)) or 1.0
    return {"vmin": -most, "vmax": most}


def up_from_zero(values: np.ndarray) -> dict[str, float]:
    """Limits from 0 to the largest."""
    return {"vmin": 0.0, "vmax": float(values[np.isfinite(values)].max(initial=0)) or 1.0}


def ink(image: AxesImage, value: float) -> str:
    """Black or white, whichever is readable on the colour of a value (relative luminance, as in WCAG 2)."""
    channels = np.array(image.to_rgba(np.array(value))[:3])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return "black" if linear @ (0.2126, 0.7152, 0.0722) > 0.18 else "white"


def whole_ticks(axis: Any) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def depth_names(n: int) -> list[str]:
    """Names of the positions along the residual stream: before the first block, and after each block."""
    return ["embed", *map(str, range(n - 1))]
