"""The page of a real server in a real browser, and what the tests do with it."""

from __future__ import annotations

import contextlib
import json

import pytest

import refgpt
from tests.helpers import browser as browsers
from tests.helpers.paced_server import paced_serving

SEED, N = 7, 24


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """One browser for all tests of the page, with a folder for what it saves."""
    for browser in browsers.start():
        browser.downloads = tmp_path_factory.mktemp("downloads")
        behaviour = {"behavior": "allow", "downloadPath": str(browser.downloads)}
        browser.chrome.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
        yield browser


@pytest.fixture(scope="module")
def server():
    """The included model."""
    with paced_serving(refgpt.load()) as running:
        yield running


@pytest.fixture
def page(chromium, server):
    server.pace.release()
    return open_page(chromium, server)


def open_page(browser, server, **window):
    """A page as a reader meets it for the first time."""
    if browser.chrome.current_url.startswith(server.url):  # of an earlier test
        browser.js("sessionStorage.clear(); localStorage.clear()")
    browser.open(server.url, **window)
    page = Page(browser, server)
    browser.until("document.querySelectorAll('.preset').length === 4")
    return page


class Page:
    """What a reader does and sees, in words of the tests."""

    def __init__(self, browser, server):
        self.browser, self.server, self.model = browser, server, server.model

    def __getattr__(self, name):
        return getattr(self.browser, name)

    def set(self, **settings):
        """Settings by the names of their controls."""
        script = """const control = document.getElementById(arguments[0]);
            control.value = arguments[1];
            control.dispatchEvent(new Event("input", {bubbles: true}))"""
        for name, value in {"seed": SEED, "max_tokens": N, **settings}.items():
            self.js(script, name, str(value))

    def type(self, text):
        self.js("arguments[0].value = ''", self.one("#composer"))
        self.one("#composer").send_keys(text)

    def click(self, selector):
        """As a mouse does it, wherever the page is scrolled."""
        element = self.one(selector) if isinstance(selector, str) else selector
        self.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        element.click()

    def done(self):
        """Wait until nothing is written any more."""
        self.until("document.getElementById('stop').hidden && !document.querySelector('.writing')")

    def write(self, text="", **settings):
        """Write on to the end."""
        self.set(**settings)
        if text:
            self.type(text)
        before = self.js("return document.querySelectorAll('.t').length")
        self.click("#go")
        self.until("document.querySelectorAll('.t').length > arguments[0]", before)
        self.done()

    def tokens(self, selector=".t"):
        """What stands on the paper, without the marks for line breaks."""
        script = """return [...document.querySelectorAll(arguments[0])].map((token) => {
            const copy = token.cloneNode(true);
            copy.querySelectorAll('i').forEach((mark) => mark.remove());
            return copy.textContent; })"""
        return self.js(script, "#paper " + selector)

    @property
    def text(self):
        return "".join(self.tokens())

    def hover_token(self, i):
        """Point at a token and wait for its alternatives: [label, per cent] each."""
        token = self.all("#paper .t")[i]
        middle = """const box = arguments[0].getBoundingClientRect();
            const top = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
            return top !== null && document.getElementById('alternatives').contains(top);"""
        if self.js(middle, token):  # another token's window lies over it
            self.hover(self.one("#composer"))
            self.until("document.getElementById('alternatives').hidden")
        self.hover(token)
        self.until("!document.getElementById('alternatives').hidden")
        self.until("document.querySelectorAll('#paper .t')[arguments[0]].classList.contains('open')", i)
        return self.alternatives()

    def alternatives(self):
        script = """return [...document.querySelectorAll('#alternatives .choice-row')].map((row) =>
            [row.querySelector('.token').textContent, row.querySelector('.number').textContent])"""
        return [[token, share.replace("\xa0", " ")] for token, share in self.js(script)]

    def choose(self, i, rank):
        """Branch: at a token, the alternative of a rank."""
        self.hover_token(i)
        before = self.n_branches
        self.click(self.all("#alternatives .choice-row")[rank])
        self.until("document.querySelectorAll('#branches .drop').length > arguments[0]", before)
        self.done()

    def act(self, name):
        """One of the buttons below the alternatives."""
        self.click(next(button for button in self.all("#alternatives .row button") if button.text == name))

    @property
    def n_branches(self):
        return self.js("return document.querySelectorAll('#branches .drop').length")

    @property
    def problem(self):
        return "" if self.js("return document.getElementById('problem').hidden") else self.text_of("#problem")

    def text_of(self, selector):
        return self.browser.text(selector)

    def save(self):
        """The session as the browser saves it: path and content."""
        for old in self.downloads.iterdir():
            old.unlink()
        self.click("#save")
        for _ in range(1000):
            for path in self.downloads.glob("*.json"):
                with contextlib.suppress(json.JSONDecodeError):  # it has its name before it is whole
                    session = json.loads(path.read_text("utf-8"))
                    return path.rename(path.with_suffix(".saved")), session
            self.js("return new Promise((done) => setTimeout(done, 20))")
        raise AssertionError("nothing was saved")

    def load(self, path):
        """Open a session."""
        self.js("document.getElementById('file').hidden = false")
        self.one("#file").send_keys(str(path))
        self.js("document.getElementById('file').hidden = true")

    def expected(self, ids, **changes):
        """What the model writes after some ids with the settings of the page."""
        settings = {
            "max_new_tokens": N,
            "seed": SEED,
            "temperature": 0.7,
            "top_p": 0.9,
            "repetition_penalty": 1.15,
            "logprobs": 8,
            **changes,
        }
        return self.model.generate(ids, **settings)
