"""The page in a browser: that it is inert and alone, and can be read by day, by night and on a telephone."""

from __future__ import annotations

import re

import pytest

from tests.helpers.axe import check_rules, needs_axe
from tests.helpers.contrast import COLOURS, contrast, luminance

PAGES = ("tale", "both_ways")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_every_text_stands_out(browser, request, name, scheme):
    browser.open(request.getfixturevalue(name).path, scheme=scheme)
    browser.js("for (const details of document.querySelectorAll('details')) details.open = true")
    found = browser.js(COLOURS)
    assert len(found) > 300
    assert {kind: round(ratio, 2) for kind, *colours in found if (ratio := contrast(*colours)) < 4.5} == {}


def test_dark_is_dark_and_comes_when_it_is_wished_for(browser, tale):
    browser.open(tale.path)
    ground = "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    dot = """const canvas = document.getElementById('map-canvas');
             return [...canvas.getContext('2d').getImageData(0, 0, 1, 1).data]"""
    assert luminance(browser.js(ground)) > 0.9
    browser.hover(browser.one("#heads [role=radio]"))
    light = browser.js(dot)  # the first token looks at itself alone: the dark end of the scale
    assert light == [0x4F, 0x9B, 0xD6, 255]
    browser.scheme("dark")
    browser.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert luminance(browser.js(ground)) < 0.02
    assert browser.js(dot) == [0x25, 0x6A, 0xA4, 255]


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_runs_over_the_side(browser, request, name, width):
    browser.open(request.getfixturevalue(name).path, width=width, height=800)
    browser.js("for (const details of document.querySelectorAll('details')) details.open = true")
    room, taken = browser.js("const root = document.documentElement; return [root.clientWidth, root.scrollWidth]")
    assert taken == room and width - 20 <= room <= width  # a desktop's scroll bar takes some
    over = browser.js("""return [...document.querySelectorAll('body *')].filter((element) => {
        if (element.closest('.scroll') && !element.matches('.scroll')) return false;
        if (element.matches('.skip')) return false;
        const box = element.getBoundingClientRect();
        return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
    }).map((element) => element.id || element.className || element.tagName)""")
    assert over == []
    # What is wider scrolls in a box of its own.
    wide = "return [...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
    assert browser.js(wide) > 0 or width > 360


@needs_axe
def test_rules_of_axe(browser, tale):
    for width, scheme in ((1280, "light"), (1280, "dark"), (360, "light")):
        browser.open(tale.path, width=width, scheme=scheme)
        browser.js("for (const details of document.querySelectorAll('details')) details.open = true")
        assert check_rules(browser) == {}, (width, scheme)


@pytest.mark.parametrize("height", [560, 800])
def test_on_a_telephone_nothing_covers_what_is_pointed_at(browser, tale, height):
    """Each panel is below what it speaks of, and both fit on the screen together."""
    browser.open(tale.path, width=360, height=height)
    for box, panel in (
        ("#token-strip", "#token-panel"),
        ("#lens-box", "#lens-panel"),
        ("#equality-box", "#equality-panel"),
    ):
        found = browser.js(
            """const [box, panel] = [...arguments].map((selector) => document.querySelector(selector));
            box.scrollIntoView({block: "start", behavior: "instant"});
            const at = box.getBoundingClientRect();
            const seen = [];
            for (let y = at.top + 2; y < Math.min(at.bottom, innerHeight) - 2; y += 7)
              for (let x = at.left + 2; x < at.right - 2; x += 11)
                seen.push(box.contains(document.elementFromPoint(x, y)));
            return [seen.length, seen.every(Boolean), panel.getBoundingClientRect().top - at.bottom, at.height]""",
            box,
            panel,
        )
        assert found[0] > 100 and found[1] and found[2] >= 0 and found[3] <= 0.56 * height, (box, found)


@pytest.mark.parametrize("name", PAGES)
def test_it_asks_for_nothing_and_complains_of_nothing(browser, request, name):
    page = request.getfixturevalue(name)
    browser.open(page.path)
    for selector in ("#heads [role=radio]", "#token-strip [role=option]", "#lens-box td", "#bars-box [role=option]"):
        browser.hover(browser.all(selector)[-1])
    assert browser.complaints() == []
    assert browser.requests() == [page.path.as_uri()]


def test_no_token_comes_to_life(browser, both_ways):
    browser.open(both_ways.path)
    for item in browser.all("#token-strip [role=option]"):
        browser.hover(item)
    assert browser.js("return document.title") == "<b>both ways: one forward pass"
    assert browser.js("return document.querySelectorAll('script').length") == 2
    assert browser.all("img, iframe, b:not(#legend b), object, embed, link") == []
    assert browser.text("h1") == "<b>both ways"
    text = browser.js("return document.getElementById('token-strip').textContent")
    assert "</script><script>document.title␣=␣'taken'</scri" in text and "$data␣${title}␣$$" in text
    assert not re.search("[\u0000-\u0009\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]", text)
    assert all(
        mark in text for mark in ("U+2028", "U+202E", "U+2066", "U+200B", "xE2x80", "xFF", "␣", "↵", "⇥", "U+0000")
    )


def test_the_policy_is_in_force(browser, tale):
    browser.open(tale.path)
    browser.check_policy()


@pytest.mark.parametrize("name", PAGES)
def test_names_and_roles(browser, request, name):
    """What assistive software is told: every widget has a name, every choice one chosen, each group one tab stop."""
    browser.open(request.getfixturevalue(name).path)
    groups = {
        "#token-strip": "aria-selected",
        "#attention-strip": "aria-selected",
        "#heads": "aria-checked",
        "#lens-box table": "aria-selected",
        "#bars-box .bars": "aria-selected",
    }
    for group, state in groups.items():
        assert browser.one(group).get_attribute("aria-label")
        assert len(browser.all(f"{group} [{state}=true]")) == len(browser.all(f"{group} [tabindex='0']")) == 1
        chosen = browser.one(f"{group} [{state}=true]")
        assert chosen.accessible_name and chosen.aria_role in {"option", "radio", "gridcell"}
    for element in browser.all("[role=option], [role=radio], [role=application], [role=region], section"):
        assert element.get_attribute("aria-label") or element.get_attribute("aria-labelledby")
    ids = browser.js("return [...document.querySelectorAll('[id]')].map((element) => element.id)")
    assert len(ids) == len(set(ids))
    levels = browser.js("return [...document.querySelectorAll('main h2, h1')].map((element) => element.tagName)")
    assert levels == ["H1", *["H2"] * 5]
    assert browser.js("return document.documentElement.lang") == "en"
    for link in browser.all("nav a"):
        assert link.get_attribute("href").rpartition("#")[2] in ids


def test_a_tap_on_a_telephone(browser, tale):
    browser.open(tale.path, width=360, height=800)
    browser.chrome.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        item = browser.all("#token-strip [role=option]")[5]
        browser.js("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", item)
        box = item.size
        x, y = browser.js(
            """const box = arguments[0].getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2]""",
            item,
        )
        for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            browser.chrome.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        assert box["width"] >= 24 and box["height"] >= 24  # WCAG 2.2, target size
        assert item.get_attribute("aria-selected") == "true"
        assert browser.text("#token-panel h3").startswith("Position 5:")
    finally:
        browser.chrome.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_a_reader_who_moves_nothing_chooses_nothing(browser, tale):
    """Scrolling brings other tokens under a mouse that rests, and those must not take the keyboard's choice away."""
    browser.open(tale.path, height=500)
    browser.hover(browser.all("#lens-box td")[3])
    browser.focus(browser.one("#lens-box [tabindex='0']"))
    for _ in range(20):
        browser.press("ARROW_RIGHT")
    assert browser.js("return [...document.querySelectorAll('#lens-box td')].indexOf(document.activeElement)") == 23
    assert browser.one("#lens-box [aria-selected=true]") == browser.chrome.switch_to.active_element
