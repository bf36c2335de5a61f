"""The list of adapters: the chosen one writes, scores and can be looked into, and every token remembers its adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

import refgpt
from refgpt import tracing
from tests.helpers.adapters import oz_and_law
from tests.helpers.axe import check_rules, needs_axe
from tests.helpers.paced_server import paced_serving
from tests.helpers.pages import signed
from tests.server.page.conftest import SEED, N, open_page

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return oz_and_law(tmp_path_factory.mktemp("adapters"), "a law, both ways")


@pytest.fixture(scope="module")
def adapted(paths):
    with paced_serving(refgpt.load(adapters=paths)) as running:
        yield running


@pytest.fixture
def pair(chromium, adapted):
    adapted.pace.release()
    return open_page(chromium, adapted)


def choose(page, name: str) -> None:
    """Choose an adapter, or none, as the arrow keys do in the list."""
    script = """const select = document.getElementById('adapter');
        select.value = arguments[0];
        select.dispatchEvent(new Event('change', {bubbles: true}))"""
    page.js(script, name)


def chosen(page) -> str:
    return page.js("return document.getElementById('adapter').value")


def expected(page, name: str | None, ids, **changes):
    model = page.model if name is None else page.model.adapters[name]
    settings = {"max_new_tokens": N, "seed": SEED, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.15}
    return model.generate(ids, **(settings | changes)).ids


def test_there_is_nothing_to_choose_without_adapters(page):
    page.write(PROMPT, max_tokens=4)
    assert not page.one("#adapter").is_displayed()
    _, saved = page.save()
    assert saved["adapter"] is None and all(node["adapter"] is None for node in saved["nodes"])


def test_the_chosen_adapter_writes_and_is_saved(pair):
    page = pair
    assert page.one("#adapter").is_displayed() and page.one("#adapter").accessible_name == "Adapter"
    options = page.js("return [...document.querySelectorAll('#adapter option')].map((one) => one.textContent)")
    assert options == ["none", "oz", "a law, both ways"]
    ids = page.model.tokenizer.encode(PROMPT)
    page.write(PROMPT)
    page.focus(page.one("#adapter"))
    page.press("ARROW_DOWN")
    assert chosen(page) == "oz"
    page.set()  # the same seed
    page.click("#retry")
    page.until("document.querySelectorAll('#branches .drop').length === 2")
    page.done()
    path, saved = page.save()
    assert saved["adapter"] == "oz"
    base, oz = [node for node in saved["nodes"] if node["kind"] == "generated"]
    assert (base["adapter"], oz["adapter"]) == (None, "oz")
    assert [token[0] for token in base["tokens"]] == expected(page, None, ids)
    assert [token[0] for token in oz["tokens"]] == expected(page, "oz", ids, seed=oz["seed"])
    # One sees which wrote what.
    assert page.hover_token(10) and "written with oz" in page.text_of("#alternatives .facts")
    assert page.js("return document.getElementById('branches').textContent").count("with oz") == 1
    page.click("#compare")
    terms = page.js("return [...document.querySelectorAll('.column dl')].map((one) => one.textContent)")
    assert [term.rpartition("adapter")[2] for term in terms] == ["none", "oz"]
    # It is chosen again when the page is loaded anew, and when the file is opened.
    page.js("location.reload()")
    page.until("document.querySelectorAll('.preset').length === 4")
    page.until("document.querySelectorAll('#paper .t').length > 10")
    assert chosen(page) == "oz" and page.problem == ""
    choose(page, "")
    page.load(path)
    page.until("document.getElementById('adapter').value === 'oz'")


def test_a_branch_keeps_the_adapter_of_its_token(pair):
    """The words that are chosen have the probabilities of the adapter that was asked for them."""
    page = pair
    choose(page, "oz")
    page.write(PROMPT, max_tokens=12)
    choose(page, "")
    page.choose(8, 2)
    _, saved = page.save()
    (word,) = [node for node in saved["nodes"] if node["kind"] == "chosen"]
    assert word["adapter"] == "oz" and saved["nodes"][-1]["adapter"] is None


def test_look_inside_shows_the_adapter_that_wrote(pair):
    page = pair
    ids = page.model.tokenizer.encode(PROMPT)
    totals = {}
    for name in (None, "oz"):
        choose(page, name or "")
        page.click("#new")
        page.write(PROMPT, max_tokens=8)
        ids_now = ids + expected(page, name, ids, max_new_tokens=8)
        choose(page, "" if name else "oz")  # what is chosen meanwhile changes nothing
        page.click(page.all("#paper .t")[7])
        page.act("Look inside")
        page.click("#tab-attribution")
        page.until("document.querySelector('#view-attribution .bar')")
        model = page.model if name is None else page.model.adapters[name]
        found = tracing.logit_attribution(model, ids_now[:7], token=ids_now[7])
        totals[name] = f"sum to {signed(found.total)}"
        assert totals[name] in page.text_of("#view-attribution .sum")
        assert page.text_of("#inside .facts").endswith("with the adapter oz" if name else "without an adapter")
        page.click("#inside-close")
    assert len({*totals.values()}) == 2


def test_an_adapter_has_its_own_mask(pair):
    page = pair
    hidden = "return document.getElementById('score-field').hidden"
    assert page.js(hidden) is False
    choose(page, "a law, both ways")
    assert page.js(hidden) is True
    page.write(PROMPT, max_tokens=8)
    assert page.all(".written [class*=' h']") == []
    page.click(page.all("#paper .t")[8])
    page.act("Look inside")
    page.until("document.querySelector('#attention-panel table')")
    page.click(page.all("#heads [role=radio]")[0])
    page.hover(page.one("#attention-strip [role=option]"))
    assert page.js("return document.querySelectorAll('#attention-strip .hidden').length") == 4  # the text's own tokens
    choose(page, "")
    assert page.js(hidden) is False


def test_an_adapter_that_is_not_served(pair, tmp_path):
    page = pair
    choose(page, "oz")
    page.write(PROMPT, max_tokens=8)
    path, _ = page.save()
    gone = tmp_path / "gone.json"
    gone.write_text(path.read_text("utf-8").replace('"oz"', '"<b>x</b>"'), "utf-8")
    page.load(gone)
    page.until("!document.getElementById('problem').hidden")
    assert "<b>x</b> is not served here" in page.problem and chosen(page) == ""
    page.click(page.all("#paper .t")[7])
    assert "Look inside" not in page.text_of("#alternatives .row")  # nobody can look into it
    page.press("ESCAPE")
    broken = tmp_path / "broken.json"
    broken.write_text(path.read_text("utf-8").replace('"adapter":"oz"', '"adapter":7'), "utf-8")
    page.load(broken)
    page.until("document.getElementById('problem').textContent.includes('adapter must be a name or null')")


def test_it_fits_a_telephone(pair):
    page = pair
    page.resize(360, 740)
    room, taken = page.js("const root = document.documentElement; return [root.clientWidth, root.scrollWidth]")
    box = page.js("return document.getElementById('adapter').getBoundingClientRect().toJSON()")
    assert taken == room and box["left"] >= 0 and box["right"] <= room and box["height"] >= 24
    page.resize(1280)


@needs_axe
def test_rules_of_axe_with_adapters(pair):
    page = pair
    choose(page, "oz")
    page.write(PROMPT, max_tokens=8)
    page.click(page.all("#paper .t")[7])
    page.act("Look inside")
    page.until("document.querySelector('#attention-panel table')")
    found = {}
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 360)):
        page.scheme(scheme)
        page.resize(width)
        found |= {(scheme, width, rule): elements for rule, elements in check_rules(page, None).items()}
    page.scheme("light")
    page.resize(1280)
    assert found == {}
