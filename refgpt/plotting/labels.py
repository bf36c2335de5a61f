"""Readable labels: tokens with visible blanks, as many as fit, and texts in cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from refgpt._common.arguments import collected, whole_number
from refgpt._common.errors import RefgptError
from refgpt._common.wording import VISIBLE_BLANKS
from refgpt.plotting.canvas import Room, ink, library
from refgpt.plotting.checks import texts, title, tokenizer_or_none
from refgpt.spec.config import LARGEST as LARGEST_SHAPE
from refgpt.tokenizers import Tokenizer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

#: Most characters of a token that are shown.
MOST_CHARACTERS = 12
#: Smallest readable and largest useful letter size, in points.
SMALLEST, LARGEST = 6.0, 9.0
#: Below this size, labels are rotated instead of made smaller.
LEAST_LEVEL = 7.5
#: Height of a line of text, in sizes of its letters.
LINE = 1.3


def readable(text: str, most: int = MOST_CHARACTERS) -> str:
    """A token as a label: blanks and newlines visible, what cannot be printed escaped, long ones cut with an ellipsis.

    A label stays as it is.
    """
    text, most = title("text", text), whole_number("most", most, 1, None, RefgptError)
    shown = "".join(VISIBLE_BLANKS.get(c) or (c if c.isprintable() else f"\\x{ord(c):02x}") for c in text)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def token_labels(tokenizer: Tokenizer, ids: Iterable[int]) -> list[str]:
    """A label for each id: its readable text, or its bytes if they are only part of a character.

    Ids without a text are shown in angle brackets: "<end>" for the end-of-text token, otherwise the number.

    Parameters
    ----------
    tokenizer : Tokenizer
        ``model.tokenizer``.
    ids : iterable of int

    Returns
    -------
    list of str

    Raises
    ------
    RefgptError
        If ``ids`` are not whole numbers, or ``tokenizer`` is not a tokenizer.
    """
    if tokenizer_or_none(tokenizer) is None:
        raise RefgptError("is no tokenizer", where="tokenizer", got=None, wanted="model.tokenizer")
    several = collected("ids", ids, "a list of ids", RefgptError)
    return [_label(tokenizer, whole_number("ids", i, 0, LARGEST_SHAPE["n_vocab"], RefgptError)) for i in several]


def _label(tokenizer: Tokenizer, token_id: int) -> str:
    text = tokenizer.token_bytes(token_id) if tokenizer.has(token_id) else b""
    if token_id == tokenizer.eos_id:
        return "<end>"
    if not text:
        return f"<{token_id}>"
    return readable(text.decode("utf-8", "backslashreplace"))


def labels_or_numbers(
    name: str, labels: Sequence[str] | None, places: Iterable[int], of: str = "position"
) -> list[str]:
    """The given labels, one for each place, made readable; without labels, the numbers of the places.

    Raises
    ------
    RefgptError
        If there are more or fewer, or some are no texts; ``name`` is what to call them, ``of`` what each stands for.
    """
    numbers = [str(place) for place in places]
    if labels is None:
        return numbers
    texts(name, labels, len(numbers), of)
    return list(map(readable, labels))


@lru_cache(maxsize=1 << 14)
def text_width(text: str, size: float) -> float:
    """Width of a text in the labels' font, in points."""
    library()
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    return float(text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0])


def widest(labels: Sequence[str], size: float = LARGEST) -> float:
    """Width of the longest label, in points."""
    return max((text_width(label, size) for label in labels), default=0.0)


def label_columns(ax: Axes, labels: Sequence[str], room: float) -> None:
    """Labels below the columns: horizontal if all fit, otherwise vertical, and only every n-th if necessary.

    Parameters
    ----------
    labels : sequence of str [n]
        At 0, 1, ...
    room : float
        Points from one column to the next.
    """
    shown = list(map(readable, labels))
    level = min(LARGEST, LARGEST * (room - 4) / (widest(shown) or 1))
    if level >= LEAST_LEVEL:
        _put(ax.xaxis, shown, 1, level, 0)
    else:
        size, step = _fitted(room)
        _put(ax.xaxis, shown, step, size, 90)


def label_rows(ax: Axes, labels: Sequence[str], room: float) -> None:
    """Labels beside the rows, all or every n-th. ``room`` is the distance between rows, in points."""
    size, step = _fitted(room)
    _put(ax.yaxis, list(map(readable, labels)), step, size, 0)


def all_fit(room: float) -> bool:
    """Whether every place can have a label."""
    return _fitted(room)[1] == 1


def _fitted(room: float) -> tuple[float, int]:
    """Size of the letters, and the number of places per label."""
    step = math.ceil(SMALLEST * LINE / room)
    return min(LARGEST, room * step / LINE), step


def _put(axis: Any, labels: Sequence[str], step: int, size: float, rotation: float) -> None:
    places = range(0, len(labels), step)
    # A dollar is a token, not the beginning of a formula.
    axis.set_ticks(list(places), [labels[i] for i in places], fontsize=size, rotation=rotation, parse_math=False)


def write_cells(ax: Axes, image: AxesImage, values: np.ndarray, texts: Sequence[Sequence[str]], room: Room) -> None:
    """Write a text into each cell of a heat map if it fits, shortened if necessary, in a readable colour.

    values and texts are [rows, columns] like the image; cells of NaN and empty texts stay empty. If most texts do not
    fit, none is written, because a few texts would seem to have a special meaning.
    """
    size = min(LARGEST, room.height / LINE)
    there = [(i, j, texts[i][j]) for i, j in np.argwhere(np.isfinite(values)).tolist() if texts[i][j]]
    fitted = [(i, j, fitting(text, size, room.width - 3)) for i, j, text in there]
    if size < SMALLEST or 2 * sum(bool(text) for _, _, text in fitted) < len(there):
        return
    for i, j, text in fitted:
        ax.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            fontsize=size,
            color=ink(image, float(values[i, j])),
            parse_math=False,
            clip_on=True,
        )


def fitting(text: str, size: float, width: float) -> str:
    """The text if it fits into ``width``, otherwise a shortened text with an ellipsis (at least two characters), or
    ""."""
    if text_width(text, size) <= width:
        return text
    cuts = (text[:n] + "…" for n in range(len(text) - 1, 1, -1))
    return next((cut for cut in cuts if text_width(cut, size) <= width), "")
