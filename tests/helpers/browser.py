"""A real browser for the tests of pages: Chromium without a window, which reaches nothing but this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.work import HANGS

try:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait
except ImportError:  # a test environment of one's own
    webdriver = None

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def start() -> Iterator[Browser]:
    """A browser, or a test that is skipped and says why."""
    if webdriver is None:
        pytest.skip("selenium is not installed")
    found, driver = next(filter(None, map(shutil.which, BROWSERS)), None), shutil.which("chromedriver")
    if found is None or driver is None:
        pytest.skip(
            f"there is no {'chromium' if found is None else 'chromedriver'} on this machine "
            "(Debian: apt-get install chromium chromium-driver)"
        )
    options = Options()
    options.binary_location = found
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, Service(driver))  # named, so that nothing is fetched
    try:
        yield Browser(chrome)
    finally:
        chrome.quit()


class Browser:
    """What the tests do with a page, in words of the tests."""

    def __init__(self, chrome: Any) -> None:
        self.chrome = chrome

    def open(self, page: Path | str, width: int = 1280, height: int = 900, scheme: str = "light") -> None:
        """A file or an address, in a window of a size and with light or dark as the reader's wish."""
        self.resize(width, height)
        self.scheme(scheme)
        self.chrome.get_log("browser"), self.chrome.get_log("performance")  # forget the last page
        self.chrome.get(page if isinstance(page, str) else page.as_uri())

    def resize(self, width: int, height: int = 900) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def scheme(self, name: str, motion: str = "reduce") -> None:
        """Light or dark; and little motion, for a page that still scrolls is hard to click on."""
        wishes = {"prefers-color-scheme": name, "prefers-reduced-motion": motion}
        features = [{"name": wish, "value": value} for wish, value in wishes.items()]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def js(self, script: str, *arguments: Any) -> Any:
        return self.chrome.execute_script(script, *arguments)

    def until(self, condition: str, *arguments: Any) -> Any:
        """Wait until an expression in JavaScript is true, and return what it is."""
        wait = WebDriverWait(self.chrome, HANGS / 30, poll_frequency=0.02)
        return wait.until(lambda _: self.js(f"return {condition}", *arguments), condition)

    def all(self, selector: str) -> list[Any]:
        return self.chrome.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        return self.chrome.find_element("css selector", selector)

    def check_policy(self) -> None:
        """Try what a token would try if it came to life: a script of its own, a picture, a style, a connection."""
        tried = self.js("""
            const broken = [];
            document.addEventListener("securitypolicyviolation", (event) => broken.push(event.effectiveDirective));
            const script = document.createElement("script");
            script.textContent = "window.taken = true";
            const image = document.createElement("img");
            image.src = "http://127.0.0.1:9/x.png";
            const style = document.createElement("style");
            style.textContent = "body { display: none }";
            document.body.append(script, image, style);
            return fetch("http://127.0.0.1:9/").catch(() => 0).then(() => new Promise((done) => setTimeout(done, 200)))
                .then(() => [broken.sort(), window.taken === undefined, getComputedStyle(document.body).display]);
        """)
        assert tried == [["connect-src", "img-src", "script-src-elem", "style-src-elem"], True, "block"]

    def text(self, selector: str) -> str:
        """What an element says, also where it is out of sight."""
        return " ".join(self.one(selector).get_property("textContent").split())

    def rows(self, selector: str) -> list[list[str]]:
        """The cells of a table."""
        script = """return [...document.querySelectorAll(arguments[0] + ' tbody tr')]
                    .map((row) => [...row.cells].map((cell) => cell.textContent))"""
        return self.js(script, selector)

    def hover(self, element: Any, x: float = 0, y: float = 0) -> None:
        """The mouse over an element, so far from its middle."""
        self.js("arguments[0].scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'})", element)
        mouse = ActionChains(self.chrome, duration=0)
        for off in (1, 0):  # a move even where scrolling has brought the element under the mouse
            mouse.move_to_element_with_offset(element, round(x) + off, round(y))
        mouse.perform()

    def focus(self, element: Any) -> None:
        self.js("arguments[0].focus()", element)

    def press(self, *names: str) -> None:
        """Keys by their names, or characters."""
        keys = (getattr(Keys, name, name) for name in names)
        ActionChains(self.chrome, duration=0).send_keys(*keys).perform()

    def press_with(self, modifier: str, name: str) -> None:
        """A key while another is held."""
        held = getattr(Keys, modifier)
        keys = ActionChains(self.chrome, duration=0).key_down(held).send_keys(getattr(Keys, name, name)).key_up(held)
        keys.perform()

    def complaints(self) -> list[str]:
        """What has been written to the console since the page was opened."""
        return [entry["message"] for entry in self.chrome.get_log("browser")]

    def requests(self) -> list[str]:
        """What has been asked for since then."""
        messages = [json.loads(entry["message"])["message"] for entry in self.chrome.get_log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
