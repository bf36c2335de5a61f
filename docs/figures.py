"""Puts the SVG figures that cells draw into the page itself, so that their lines and letters follow light and dark.

An image in a file of its own cannot use the colours of the page. Here lines and letters of the default colour (see
``matplotlibrc``) take the colour of the page's text. Black lines do so too, except on a map. Black letters stay black,
because they are on cells. A map with cells that are nearly white gets a class of its own, so that ``book.css`` can
exchange light and dark in it on a dark page.
"""

from __future__ import annotations

import re
from base64 import b64decode
from hashlib import sha256
from html import escape, unescape
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

#: The colour of lines and letters in ``matplotlibrc``: nearly black, and used for nothing else.
DEFAULT = "#1b1f24"
AXES = re.compile(r'<g id="axes_\d+">.*?(?=<g id="axes_\d+">|\Z)', re.DOTALL)
#: A map's cells, and those of its colour bar.
CELLS = re.compile(r'<image [^>]*href="data:image/png;base64,([^"]+)"')
#: The least of red, green and blue in a cell that glares on a dark page. Viridis, which begins dark, has none.
NEARLY_WHITE = 225
#: Text in the figure, as Matplotlib writes it in comments beside the outlines of its letters.
WORDS = re.compile(r"<!-- (.*?) -->")


def inline(svg: str) -> str:
    """The figure for use inside a page: its ids are unique there, and it has a label for screen readers."""
    own = "f" + sha256(svg.encode()).hexdigest()[:8]
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    words = dict.fromkeys(unescape(word) for word in WORDS.findall(svg) if re.search("[A-Za-z]{2}", word))
    svg = WORDS.sub("", svg)
    svg = AXES.sub(lambda axes: axes[0] if "<image" in axes[0] else _following(axes[0], "stroke: #000000"), svg)
    svg = _following(_following(svg, f"stroke: {DEFAULT}"), f"fill: {DEFAULT}")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{own}-\1"', svg)
    svg = re.sub(r'(href="|url\()#', rf"\1#{own}-", svg)
    label = escape("Figure: " + ", ".join(words) if words else "Figure")
    width = re.search(r'\bwidth="([\d.]+pt)"', svg)
    wide = f' style="--wide: {width[1]}"' if width else ""
    kind = "figure light-map" if _is_light(svg) else "figure"
    return f'<svg class="{kind}" role="img" aria-label="{label}"{wide}' + svg.removeprefix("<svg")


def _is_light(svg: str) -> bool:
    """Whether cells of a map are nearly white."""
    for cells in CELLS.findall(svg):
        pixels = np.asarray(Image.open(BytesIO(b64decode(cells))).convert("RGBA"))
        if (pixels[pixels[..., 3] > 127][:, :3].min(axis=1, initial=255) > NEARLY_WHITE).any():
            return True
    return False


def _following(svg: str, colour: str) -> str:
    return svg.replace(colour, f"{colour.partition(':')[0]}: currentColor")


class InlineFigures(SphinxTransform):
    """Replaces images of cells by their SVG, before Sphinx collects images."""

    default_priority = 900

    def apply(self, **_: Any) -> None:
        for node in list(self.document.findall(nodes.image)):
            path = Path(node["uri"])
            if path.suffix != ".svg" or "jupyter_execute" not in path.parts:
                continue
            if not path.is_absolute():
                path = Path(self.env.doc2path(self.env.docname)).parent / path
            node.replace_self(nodes.raw("", inline(path.read_text(encoding="utf-8")), format="html"))


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_transform(InlineFigures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
