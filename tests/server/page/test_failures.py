"""What the page says when something goes wrong, and what it keeps."""

from __future__ import annotations

import pytest

import refgpt
from tests.helpers.paced_server import paced_serving
from tests.server.page.conftest import open_page


@pytest.fixture
def mortal():
    """A server that a test may end."""
    with paced_serving(refgpt.load()) as running:
        yield running


def test_the_server_goes_in_the_midst_of_a_text(chromium, mortal):
    page = open_page(chromium, mortal)
    mortal.pace.hold()
    page.set(max_tokens=200)
    page.type("Once upon a time")
    page.click("#go")
    mortal.pace.allow(5)
    page.until("document.querySelectorAll('.generated .t').length >= 3")
    mortal.cut()
    page.until("!document.getElementById('problem').hidden")
    page.done()
    text, n = page.text, len(page.tokens(".generated .t"))
    assert n >= 3 and page.one("#problem").get_attribute("role") == "alert"
    assert "What has arrived is kept" in page.problem
    # It says so again, and loses nothing.
    page.click("#go")
    page.until("document.getElementById('problem').textContent.includes('cannot be reached')")
    assert page.text == text
    page.type("and own words")
    page.click("#go")
    page.until("document.getElementById('problem').textContent.includes('cannot be reached')")
    assert page.one("#composer").get_property("value") == "and own words"
    _, saved = page.save()
    assert saved["nodes"][1]["ended"] == "broken" and len(saved["nodes"][1]["tokens"]) == n


def test_a_prompt_that_is_too_long(page):
    """It is said, and the words stay where they can be shortened."""
    words = "Once upon a time " * 200
    page.js("document.getElementById('composer').value = arguments[0]", words)
    page.click("#go")
    page.until("!document.getElementById('problem').hidden")
    page.done()
    assert "512" in page.problem and "Error" not in page.problem
    assert page.tokens() == [] and page.one("#composer").get_property("value") == words
    assert not page.one("#undo").is_displayed()
    page.write("Once upon a time", max_tokens=4)  # and all is well
    assert len(page.tokens(".generated .t")) == 4 and page.problem == ""


def test_what_comes_to_nothing_is_taken_back(chromium, mortal):
    """A branch of which no token came leaves the text as it was."""
    page = open_page(chromium, mortal)
    page.write("Once upon a time")
    text, tokens = page.text, page.tokens(".generated .t")
    mortal.pace.hold()
    page.click("#retry")
    page.until("document.querySelector('.writing')")
    page.click("#stop")
    page.done()
    assert page.text == text and page.tokens(".generated .t") == tokens
    page.hover_token(8)
    page.click(page.all("#alternatives .choice-row:enabled")[0])
    page.until("document.querySelector('.writing')")
    mortal.cut()
    page.until("!document.getElementById('problem').hidden")
    page.done()
    assert page.text == text and page.n_branches == 0
    page.click("#undo")
    assert page.text == ""


def test_a_text_that_fills_the_context(page):
    text = "Once upon a time there was " * 70
    page.js("document.getElementById('composer').value = arguments[0]", text)
    page.js("document.getElementById('max_tokens').value = 80")
    assert 512 - 80 < len(page.model.tokenizer.encode(text)) < 512
    page.click("#go")
    page.until("document.querySelectorAll('.generated .t').length > 0")
    page.done()
    assert page.problem == "" and len(page.tokens(".t")) <= 512
    if len(page.tokens(".t")) == 512:
        page.click("#go")
        page.until("!document.getElementById('problem').hidden")
        assert "512" in page.problem


def test_settings_that_the_server_refuses(page):
    page.set(top_k=100000)
    page.js("document.getElementById('stop-strings').value = Array(40).fill('x').map((x, i) => x + i).join('\\n')")
    page.type("Once upon a time")
    page.click("#go")
    page.until("!document.getElementById('problem').hidden")
    assert "stop" in page.problem
    page.js("document.getElementById('stop-strings').value = ''")
    page.write(max_tokens=4)
    assert page.problem == "" and len(page.tokens(".generated .t")) == 4


def test_a_server_with_a_key(chromium):
    with paced_serving(refgpt.load(), api_keys=("a secret key",)) as running:
        chromium.open(running.url)
        chromium.until("document.getElementById('key-dialog').open")
        chromium.press(*"wrong", "ENTER")
        chromium.until("document.getElementById('key-dialog').open && document.getElementById('key').value === ''")
        chromium.press(*"a secret key", "ENTER")
        chromium.until("document.querySelectorAll('.preset').length === 4")
        assert not chromium.one("#key-dialog").is_displayed() and not chromium.one("#problem").is_displayed()
        assert "secret" not in chromium.js("return JSON.stringify([{...localStorage}, {...sessionStorage}])")
