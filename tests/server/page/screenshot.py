"""Take the pictures of the page in ``docs/static``: ``python -m tests.server.page.screenshot``.

The texts are the same each time; the fonts are the machine's.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import refgpt
from tests.helpers import browser as browsers
from tests.helpers.paced_server import PacedServer, paced_serving
from tests.server.page.conftest import open_page

STATIC = Path(__file__).parents[3] / "docs" / "static"
WIDTH, HEIGHT = 1240, 730
#: The pictures by their names.
SCHEMES = {"page.png": "light"}


def take(browser: Any, server: PacedServer, directory: Path) -> None:
    """Write a tale with three branches, point at a token, and take the pictures."""
    page = open_page(browser, server, width=WIDTH, height=HEIGHT)
    page.write("Once upon a time there was a", max_tokens=60)
    for token, rank in ((14, 1), (20, 4)):
        page.js("scrollTo(0, 0)")  # a longer text has scrolled its beginning under the heading
        page.choose(token, rank)
    page.js("scrollTo(0, 0)")
    page.hover_token(44)
    for name, scheme in SCHEMES.items():
        page.scheme(scheme)
        page.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        browser.chrome.save_screenshot(str(directory / name))


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else STATIC
    with paced_serving(refgpt.load()) as server:
        for browser in browsers.start():
            take(browser, server, directory)
