"""The pages of the site: figures that follow light and dark, links from code to the reference, and looks in a browser.

The browser tests need a site that was built: ``REFGPT_SITE=build/site``. ``.ci/run`` builds one first.
"""

from __future__ import annotations

import io
import os
import re
from html import unescape
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers import browser as browsers

DOCS = Path(__file__).parents[2] / "docs"
SITE = Path(os.environ.get("REFGPT_SITE", "")).resolve()
needs_site = pytest.mark.skipif(
    not os.environ.get("REFGPT_SITE"), reason="REFGPT_SITE does not name the folder of a site (see CONTRIBUTING.md)"
)
ALL_PAGES = sorted(SITE.rglob("*.html")) if os.environ.get("REFGPT_SITE") else []
#: Without the sources of the package, which Sphinx links back to names that have no entry.
PAGES = [path for path in ALL_PAGES if "_modules" not in path.relative_to(SITE).parts]


def part(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the site."""
    pytest.importorskip("sphinx", reason='the site needs the extra "docs"')
    monkeypatch.syspath_prepend(str(DOCS))
    return import_module(name)


def drawn(draw: Any) -> str:
    """The SVG of a figure as a cell of a chapter would draw it."""
    matplotlib = pytest.importorskip("matplotlib", reason='figures need the extra "plot"')
    from matplotlib.figure import Figure

    with matplotlib.rc_context(fname=DOCS / "matplotlibrc"):
        figure = Figure()
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg")
    return out.getvalue()


def test_figures_take_the_colours_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = part("figures", monkeypatch)

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        left.plot([0, 1], color="#0072b2")
        left.axhline(0.5, color="black")
        left.set(title="a title & <more>", xlabel="steps")
        right.imshow([[0, 1], [1, 0]])
        right.axhline(0.5, color="black")
        right.text(0, 0, "0.25", color="black")

    raw = drawn(draw)
    got = figures.inline(raw)
    assert figures.DEFAULT in raw and figures.DEFAULT not in got and "#0072b2" in got
    left, right = got.split('axes_2">')
    assert "#000000" not in left and left.count("currentColor") > 10
    # On a map, whose cells keep their colours, black lines and letters do too.
    assert "stroke: #000000" in right
    assert 'aria-label="Figure: steps, a title &amp; &lt;more&gt;"' in got
    ids = re.findall(r'\bid="([^"]+)"', got)
    used = re.findall(r'(?:href="|url\()#([^")]+)', got)
    assert used and set(used) <= set(ids) and len(ids) == len(set(ids))
    other = figures.inline(drawn(lambda figure: figure.subplots().plot([1, 0])))
    assert not set(ids) & set(re.findall(r'\bid="([^"]+)"', other))
    assert re.search(
        r'^<svg [^>]* style="--wide: 518.4pt"', got
    )  # as wide as it was drawn, and no wider on a telephone
    assert "<style" not in got and "<metadata" not in got and got.startswith("<svg")


@pytest.mark.parametrize(("colours", "is_turned"), [("Blues", True), ("PuOr", True), ("viridis", False)])
def test_maps_that_begin_at_white_are_turned_on_a_dark_page(
    colours: str, is_turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(figure: Any) -> None:
        figure.colorbar(figure.subplots().imshow([[-1, 0.0], [0.5, 1]], colours))

    got = part("figures", monkeypatch).inline(drawn(draw))
    assert got.startswith(f'<svg class="figure{" light-map" * is_turned}"')


def test_names_in_code_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    book = part("book", monkeypatch)
    code = "%config x\nfrom refgpt import spec, tracing as look\nfrom refgpt.spec.gptj import mlp\nimport numpy as np\n"
    aliases = book.imported(code)
    assert aliases == {"spec": "refgpt.spec", "look": "refgpt.tracing", "mlp": "refgpt.spec.gptj.mlp"}
    found = book.used("y = mlp(spec.softmax(np.exp(x)), p)\nlook.logit_lens(model, ids)[0]", aliases)
    assert {"refgpt.spec.gptj.mlp", "refgpt.spec.softmax", "refgpt.tracing.logit_lens"} <= found
    assert not any("np" in name for name in found)
    assert book.imported("| a table |") == {} and book.used("not code", aliases) == set()


def test_long_lines_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    book = part("book", monkeypatch)
    short, long = '<span class="n">x</span> = 1\n', f'    <span class="n">x</span> = "{"a" * 60}"\n'
    assert book._line(short) == short
    assert book._line(long) == f'<span class="long" style="--at: 8">{long}</span>'
    assert book._line(f'<span class="hll">{long}') == f'<span class="hll">{long}'  # a part of a whole


class Page(HTMLParser):
    """The ids and the links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.n_to_reference = 0
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if tag == "a" and "href" in found else []
        self.n_to_reference += found.get("class") == "to-reference"


@needs_site
def test_every_link_of_the_site_leads_to_a_place() -> None:
    pages = {path: Page(path) for path in ALL_PAGES}
    broken = []
    for path in PAGES:
        for link in pages[path].links:
            name, _, place = unescape(link).partition("#")
            if re.match(r"[a-z]+:", name):
                continue
            target = (path.parent / name).resolve() if name else path
            known = target.exists() and (not place or target not in pages or place in pages[target].ids)
            broken += [] if known else [f"{path.name}: {link}"]
    assert broken == []
    chapters = [pages[path] for path in PAGES if path.name[0].isdigit()]
    assert len(chapters) > 10 and all(page.n_to_reference > 3 for page in chapters)
    reference = (SITE / "reference" / "inside.html").read_text(encoding="utf-8")
    assert reference.count('class="used-in"') > 5 and "../_modules/refgpt/spec/gptj.html#attention" in reference


@needs_site
def test_no_page_runs_over_the_side_and_figures_follow_the_dark() -> None:
    assert len(PAGES) > 25
    figures = 0
    for browser in browsers.start():
        for path in [*PAGES, SITE / "_modules" / "refgpt" / "spec" / "gptj.html"]:
            for width in (360, 1280):
                browser.open(path, width=width, scheme="dark")
                room, taken = browser.js("const e = document.documentElement; return [e.clientWidth, e.scrollWidth]")
                assert (path.name, width, taken) == (path.name, width, room)
            # Code wraps, tables that were printed are scrolled.
            wide = """return [...document.querySelectorAll("pre")].filter((pre) => pre.scrollWidth > pre.clientWidth + 1
                && !pre.closest(".printed-table")).map((pre) => pre.textContent.slice(0, 80))"""
            browser.resize(360)
            assert (path.name, browser.js(wide)) == (path.name, [])
            colours = """const found = document.querySelectorAll('svg.figure [style*="fill: currentColor"]');
                return [...found].map((letters) => [getComputedStyle(letters).fill,
                getComputedStyle(letters.closest("svg")).filter !== "none",
                getComputedStyle(letters.closest("svg").parentElement).color])"""
            for letters, is_turned, text in browser.js(colours):
                figures += 1
                least, most = (f(map(int, re.findall(r"\d+", letters)[:3])) for f in (min, max))
                assert most < 100 if is_turned else letters == text and least > 150
        browser.open(SITE / "index.html", width=1280)
        browser.chrome.get((SITE / "search.html").as_uri() + "?q=rotary")
        browser.until("document.querySelectorAll('#search-results li a').length > 3")
        assert [url for url in browser.requests() if not url.startswith(("file:", "data:"))] == []
    assert figures > 500
