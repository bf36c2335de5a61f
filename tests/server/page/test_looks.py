"""The page by day and by night, on a telephone, by keyboard alone, and for those who listen."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import refgpt.server
from tests.helpers.axe import check_rules, needs_axe
from tests.helpers.contrast import COLOURS, contrast
from tests.server.page.conftest import open_page
from tests.server.page.screenshot import SCHEMES, STATIC, take

PAGE = Path(refgpt.server.__file__).parent / "page"
SOURCES = {path.name: path.read_text(encoding="utf-8") for path in PAGE.rglob("*") if path.is_file()}

OVER = """return [...document.querySelectorAll('body *')].filter((element) => {
    if (element.closest('.scroll') && !element.matches('.scroll')) return false;
    if (element.matches('.skip, .unseen') || element.closest('.tool') || !element.checkVisibility()) return false;
    const box = element.getBoundingClientRect();
    return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
}).map((element) => element.id || element.className || element.tagName)"""


def states(page):
    """What a reader sees on the way: each state by its name, after it was reached."""
    yield "empty"
    page.write("Once upon a time, there was a very old king\n\nwho had", max_tokens=40)
    yield "text"
    page.click(page.all("#paper .t")[20])
    yield "alternatives"
    page.click(page.all("#alternatives .choice-row:enabled")[2])
    page.until("document.querySelectorAll('.fork').length > 0")
    page.done()
    page.click("#retry")
    page.until("document.querySelectorAll('.fork').length > 1")
    page.done()
    yield "tree"
    page.click("#compare")
    yield "comparison"
    page.click("#compare")
    page.click(page.all("#paper .t")[20])
    page.act("Look inside")
    for view, found in (("attention", "#attention-panel table"), ("lens", "td"), ("attribution", ".bar")):
        page.click(f"#tab-{view}")
        page.until("document.querySelector(arguments[0])", f"#view-{view} {found}")
        yield view
    page.click("#inside-close")
    page.js("document.getElementById('composer').value = 'long '.repeat(520)")
    page.click("#go")
    page.until("!document.getElementById('problem').hidden")
    yield "problem"


def check_widths(page, state):
    for width in (360, 768):
        page.resize(width, 740)
        room, taken = page.js("const root = document.documentElement; return [root.clientWidth, root.scrollWidth]")
        assert (state, width, taken, page.js(OVER)) == (state, width, room, [])
    page.resize(1280)


def check_contrast(page, state):
    for scheme in ("light", "dark"):
        page.scheme(scheme)
        found = [(kind, contrast(*colours)) for kind, *colours in page.js(COLOURS)]
        assert (state, scheme, {kind: round(ratio, 2) for kind, ratio in found if ratio < 4.5}) == (state, scheme, {})
    page.scheme("light")


def test_every_state_fits_and_can_be_read(page):
    """On a telephone and a tablet nothing runs over the side; by day and by night every text stands out."""
    page.js("for (const details of document.querySelectorAll('details')) details.open = true")
    for state in states(page):
        check_widths(page, state)
        check_contrast(page, state)
    # Every step of the scale, whether the text had one or not.
    for scheme in ("light", "dark"):
        page.scheme(scheme)
        steps = page.js(COLOURS.replace('querySelectorAll("body *")', 'querySelectorAll(".legend li")'))
        assert len(steps) == 8 and min(contrast(*colours) for _, *colours in steps) >= 4.5


@needs_axe
def test_rules_of_axe(page):
    page.js("for (const details of document.querySelectorAll('details')) details.open = true")
    # By night colours alone are another matter, and on a telephone what moves to another place.
    also = {"text": "dark", "comparison": "dark", "attention": "dark", "alternatives": "narrow", "tree": "narrow"}
    found = {}
    for state in states(page):
        for look in ("light", also.get(state)):
            if look is None:
                continue
            page.scheme("dark" if look == "dark" else "light")
            page.resize(360 if look == "narrow" else 1280)
            violations = check_rules(page, ["color-contrast"] if look == "dark" else None)
            found |= {(state, look, rule): elements for rule, elements in violations.items()}
        page.scheme("light")
        page.resize(1280)
    assert found == {}


def test_by_keyboard_alone(page):
    page.set(max_tokens=12)
    page.press("TAB")
    assert page.js("return document.activeElement.className") == "skip"
    page.press("ENTER")
    assert page.js("return document.activeElement.id") == "composer"
    page.press(*"Once upon a time")
    page.press_with("CONTROL", "ENTER")
    page.until("document.querySelectorAll('.generated .t').length === 12")
    page.done()
    text = page.text
    # All tokens are one stop; arrows move by token and by line.
    page.focus(page.one("#composer"))
    page.press_with("SHIFT", "TAB")
    assert page.js("return document.activeElement.classList.contains('t')")
    page.press("HOME")
    place = "return [...document.querySelectorAll('#paper .t')].indexOf(document.activeElement)"
    page.press("ARROW_RIGHT", "ARROW_RIGHT", "ARROW_RIGHT", "ARROW_LEFT")
    assert page.js(place) == 2 and len(page.all("#paper .t[tabindex='0']")) == 1
    page.press(*["ARROW_RIGHT"] * 6)
    page.press("ENTER")
    assert page.js("return document.getElementById('alternatives').contains(document.activeElement)")
    name = page.chrome.switch_to.active_element.accessible_name
    assert re.fullmatch(r"[\w.,;:'\"!?-]+, [\d.]+\s% go on from it", name), name
    page.press("ESCAPE")
    page.js("return new Promise((done) => setTimeout(done, 200))")  # it stays closed
    assert page.js(place) == 8 and not page.one("#alternatives").is_displayed()
    page.press("ENTER", "ARROW_DOWN", "ENTER")
    page.until("document.querySelectorAll('.fork').length === 1")
    page.done()
    assert page.text != text and page.n_branches == 2
    page.press_with("CONTROL", "z")
    page.until("document.querySelectorAll('.fork').length === 0")
    assert page.text == text
    style = "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, parseFloat(s.outlineWidth)]"
    page.focus(page.one("#paper .t[tabindex='0']"))
    page.press("ARROW_LEFT")
    assert page.js(style) == ["solid", 3]


def test_the_list_of_branches_keeps_the_focus(page):
    page.write("Once upon a time", max_tokens=8)
    page.choose(7, 2)
    focused = "return document.activeElement.closest('li')?.textContent ?? document.activeElement.tagName"
    page.focus(page.all("#branches .limb")[1])
    page.press("ENTER")
    page.until("!document.querySelector('.chosen')")
    assert "branch 1" in page.js(focused)
    page.click("#compare")
    page.focus(page.one("#branches input"))
    page.press(" ")
    page.until("document.querySelectorAll('.column').length === 1")
    assert page.js("return document.activeElement.type") == "checkbox" and "branch 1" in page.js(focused)
    page.click("#compare")
    page.focus(page.one("#branches .drop"))
    page.press("ENTER")
    page.until("document.querySelectorAll('#branches .limb').length === 1")
    assert "branch 1" in page.js(focused)


def test_a_text_that_ends_closes_nothing(page):
    """Whoever reads the alternatives of a token, or goes through the text by key, is not disturbed."""
    page.server.pace.hold()
    page.set(max_tokens=8)
    page.type("Once upon a time")
    page.click("#go")
    page.server.pace.allow(6)
    page.until("document.querySelectorAll('.generated .t').length >= 4")
    page.click(page.all("#paper .t")[5])
    page.server.pace.release()
    page.done()
    assert page.one("#alternatives").is_displayed() and page.one("#paper .t.open").is_displayed()
    page.press("ESCAPE")
    page.choose(6, 3)  # and what is there can be worked with
    assert page.n_branches == 2


def test_escape_stops(page):
    page.server.pace.hold()
    page.set(max_tokens=200)
    page.type("Once upon a time")
    page.press_with("CONTROL", "ENTER")
    page.server.pace.allow(4)
    page.until("document.querySelectorAll('.generated .t').length > 1")
    page.press("ESCAPE")
    page.done()
    page.server.pace.release()
    assert page.text_of("#said").startswith(str(len(page.tokens(".generated .t"))))


def test_arrows_go_from_line_to_line(chromium, server):
    server.pace.release()
    page = open_page(chromium, server, width=360)
    page.write("Once upon a time", max_tokens=40)
    page.focus(page.one("#paper .t"))
    top = "return document.activeElement.getClientRects()[0].top"
    tops = [page.js(top)]
    for _ in range(3):
        page.press("ARROW_DOWN")
        tops.append(page.js(top))
    assert sorted(set(tops)) == tops
    page.press("ARROW_UP")
    assert page.js(top) == pytest.approx(tops[-2], abs=1)


def test_the_text_field_is_as_high_as_its_text(page):
    page.click(".preset")
    wide = page.js("return document.getElementById('composer').offsetHeight")
    page.resize(500)
    page.until("document.getElementById('composer').offsetHeight > arguments[0]", wide)
    page.resize(1280)
    page.until("document.getElementById('composer').offsetHeight === arguments[0]", wide)


def test_a_tap_on_a_telephone(chromium, server):
    page = open_page(chromium, server, width=360, height=740)
    page.write("Once upon a time", max_tokens=12)
    page.chrome.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        x, y = page.js("""const box = document.querySelectorAll('#paper .t')[7].getClientRects()[0];
            return [box.x + box.width / 2, box.y + box.height / 2]""")
        for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            page.chrome.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.until("!document.getElementById('alternatives').hidden")
        box = page.js("return document.getElementById('alternatives').getBoundingClientRect().toJSON()")
        assert box["width"] == 360 and box["bottom"] == pytest.approx(740, abs=1)  # at the foot
        assert min(row.size["height"] for row in page.all("#alternatives button")) >= 24  # WCAG 2.2, target size
        assert all(button.is_displayed() for button in page.all("#alternatives .row button"))
    finally:
        page.chrome.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_only_a_mouse_points(page):
    """A finger or a pen that passes over tokens neither opens the window of alternatives nor closes it."""
    page.write("Once upon a time", max_tokens=12)
    page.hover_token(7)
    # Timers of one delay run in the order in which they were set, so an event's own timer runs before this one.
    script = """return (async (kind, pointerType, i) => {
        const token = document.querySelectorAll('#paper .t')[i];
        token.dispatchEvent(new PointerEvent(kind, { pointerType, bubbles: true }));
        await new Promise((done) => setTimeout(done, 500));
        return [...document.querySelectorAll('#paper .t')].map((one) => one.classList.contains('open')).indexOf(true);
    })(...arguments)"""
    for kind in ("pointermove", "pointerout"):
        for pointer in ("touch", "pen", ""):
            assert page.js(script, kind, pointer, 9) == 7, (kind, pointer)
    assert page.js(script, "pointermove", "mouse", 9) == 9
    assert page.js(script, "pointerout", "mouse", 9) == -1


def test_motion_is_reduced_where_that_is_wished(page):
    page.server.pace.hold()
    page.type("Once upon a time")
    page.click("#go")
    page.server.pace.allow(3)
    page.until("document.querySelectorAll('.generated .t').length > 0")
    moves = """return [getComputedStyle(document.querySelector('.run:last-child'), '::after').animationName,
        getComputedStyle(document.documentElement).scrollBehavior]"""
    arrival = "return getComputedStyle(document.querySelector('.generated .ink')).animationName"
    page.scheme("light", motion="no-preference")
    assert page.js(moves) == ["blink", "smooth"] and page.js(arrival) == "arrive"
    page.scheme("light", motion="reduce")
    assert page.js(moves) == ["none", "auto"] and page.js(arrival) == "none"
    page.click("#stop")
    page.done()


def test_a_mouse_that_rests_opens_nothing(page):
    """A text that grows brings tokens under it."""
    page.write("Once upon a time", max_tokens=4)
    page.hover(page.one("#composer"))
    page.js("document.getElementById('paper').style.paddingBottom = '0px'")
    page.write(max_tokens=60)
    page.js("return new Promise((done) => setTimeout(done, 300))")
    assert not page.one("#alternatives").is_displayed()


def test_colours_end_where_words_do(page):
    """A blank before a word has no colour, for it may stand at the end of a line."""
    page.write("Once upon a time", max_tokens=40)
    inks = page.js("return [...document.querySelectorAll('#paper .generated .ink')].map((ink) => ink.textContent)")
    assert len(inks) == 40 and all(not ink.startswith(" ") or not ink.strip() for ink in inks)
    assert page.text == page.model.tokenizer.decode([token[0] for token in saved_tokens(page)])


def saved_tokens(page):
    _, saved = page.save()
    return [token for node in saved["nodes"] for token in node["tokens"]]


def test_the_pulse_shows_how_surprising_the_tokens_were(page):
    page.write("Once upon a time", max_tokens=24)
    script = """return [...document.querySelectorAll('#pulse i')].map((bar) =>
        [bar.className, Number(bar.style.getPropertyValue('--bits'))])"""
    bars = page.js(script)
    bits = [-token[2] / math.log(2) for token in saved_tokens(page) if token[2] is not None]
    assert [bar[1] for bar in bars] == pytest.approx([min(1, one / 12) for one in bits])
    assert {bar[0] for bar in bars} <= {f"h{step}" for step in range(8)}
    page.write(max_tokens=60)
    assert len(page.js(script)) == 64  # no more than fit a telephone


def test_the_text_field_stays_in_sight(chromium, server):
    server.pace.release()
    page = open_page(chromium, server, width=360, height=740)
    page.write("Once upon a time", max_tokens=200)
    box = "return document.getElementById('composer-form').getBoundingClientRect().toJSON()"
    page.js("scrollTo(0, 0)")
    field = page.js(box)
    assert page.js("return document.documentElement.scrollHeight") > 900 and field["bottom"] <= 741
    page.focus(page.one("#paper .t"))
    for _ in range(14):  # what is reached by key is not below it
        page.press("ARROW_DOWN")
        token = page.js("return document.activeElement.getBoundingClientRect().toJSON()")
        assert token["bottom"] <= page.js(box)["top"] + 20  # above which the field fades in
    page.resize(1280)


def test_it_asks_its_own_server_alone(page):
    page.write("Once upon a time", max_tokens=4)
    asked = [url for url in page.requests() if not url.startswith("blob:")]
    assert asked and all(url.startswith(page.server.url) for url in asked)
    assert page.complaints() == []


def test_names_and_roles(page):
    page.write("Once upon a time", max_tokens=8)
    unnamed = """return [...document.querySelectorAll('button, input, textarea, [role=button], [role=group], section')]
        .filter((e) => e.checkVisibility() && !e.hidden && !e.ariaLabel && !e.getAttribute('aria-labelledby')
            && !(e.labels && e.labels.length) && !e.textContent.trim()).map((e) => e.outerHTML)"""
    assert page.js(unnamed) == []
    ids = page.js("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))
    assert page.js("return [...document.querySelectorAll('h1, h2')].map((e) => e.tagName)")[0] == "H1"


def test_the_sources_are_plain():
    """No inline script or style, nothing from elsewhere, and no way for a text to become markup."""
    for name, text in SOURCES.items():
        assert [line for line in text.splitlines() if len(line) > 120 and not name.endswith(".svg")] == []
        outside = re.findall(r"https?://[^\"' ]*", text)
        assert set(outside) <= {"http://www.w3.org/2000/svg"}
        if name.endswith(".js"):
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text)
    html = SOURCES["index.html"]
    assert not re.search(r"<style|style=|\son\w+=|<script(?! type=\"module\" src=\"main.js\"></script>)", html)


def test_pictures_of_the_page(chromium, server, tmp_path):
    """They can be taken, and those that the documentation shows are small."""
    server.pace.release()
    take(chromium, server, tmp_path)
    for path in (*tmp_path.iterdir(), STATIC / "page.png"):
        assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size < 200_000
    assert {path.name for path in tmp_path.iterdir()} == {*SCHEMES}
