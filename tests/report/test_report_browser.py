"""The page in a browser: what is pointed at and what is shown then, beside what the model's trace says."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from refgpt import tracing
from refgpt.generation.sampling import log_softmax
from refgpt.inspect.labels import label
from tests.helpers.pages import paged, share, signed

#: Of what is shown with four decimals, stored in steps of 1/65535.
CLOSE = 0.00005 + 0.5 / 65535 + 1e-9


def shown(model, token_id):
    """A token as it stands on the page."""
    tokenizer = model.tokenizer
    raw = tokenizer.token_bytes(token_id) if token_id < tokenizer.n_vocab else b""
    return "".join(label(raw)) if raw else f"id {token_id}"


def likeliest(page, p, n):
    return [[shown(page.model, int(i)), "", share(float(np.float32(p[i])))] for i in np.argsort(-p, kind="stable")[:n]]


@pytest.mark.parametrize("name", ["tale", "both_ways"])
@pytest.mark.parametrize("how", ["mouse", "keys"])
def test_tokens_show_what_else_was_likely(browser, request, name, how):
    page = request.getfixturevalue(name)
    browser.open(page.path)
    items = browser.all("#token-strip [role=option]")
    assert len(items) == len(page.ids) + 1
    assert browser.rows("#token-panel") == likeliest(page, page.p[-1], 10)  # what comes next, to begin with
    if how == "keys":
        browser.focus(browser.one("#token-strip [tabindex='0']"))
        browser.press("HOME")
    for t, item in enumerate(items):
        if how == "mouse":
            browser.hover(item)
        elif t:
            browser.press("ARROW_RIGHT")
        assert item.get_attribute("aria-selected") == "true"
        if t == len(page.ids):
            assert browser.text("#token-panel h3") == "What comes next"
            continue
        token_id = page.ids[t]
        assert browser.js("return document.querySelector('#token-panel h3').textContent") == (
            f"Position {t}: {shown(page.model, token_id)}"
        )
        assert f"id {token_id}, bytes" in browser.text("#token-panel")
        if t == 0:
            assert browser.rows("#token-panel") == [] and "Nothing comes before it" in browser.text("#token-panel")
            continue
        p = page.p[t - 1]
        rank = 1 + int((page.trace["logits"][t - 1] > page.trace["logits"][t - 1, token_id]).sum())
        want = f"probability {share(float(np.float32(p[token_id])))}, rank {rank} of {len(p)}"
        assert want in browser.text("#token-panel")
        assert browser.rows("#token-panel") == likeliest(page, p, 10)
        shade = float(browser.js("return arguments[0].style.getPropertyValue('--shade')", item))
        assert abs(shade - np.sqrt(p[token_id])) < 1e-4
    assert len(browser.all("#token-strip [aria-selected=true]")) == len(browser.all("#token-strip [tabindex='0']")) == 1


def choose_head(browser, page, layer, head):
    heads = browser.all("#heads [role=radio]")
    assert len(heads) == page.model.config.n_layer * page.model.config.n_head
    browser.hover(heads[layer * page.model.config.n_head + head])
    assert browser.text("#head-name") == f"Layer {layer}, head {head}"
    return page.trace[f"blocks.{layer}.pattern"][head]


def check_looks(browser, page, pattern, query):
    """The panel's two lists, beside a row and a column of the pattern."""
    tables = [browser.rows(f"#attention-panel table:nth-of-type({n})") for n in (1, 2)]
    for rows, weights in zip(tables, (pattern[query], pattern[:, query]), strict=True):
        largest = np.sort(weights)[::-1]
        for i, (where, _, value) in enumerate(rows):
            t = int(where.split()[0])
            assert where.removeprefix(f"{t} ") == shown(page.model, page.ids[t])
            assert abs(float(value) - weights[t]) <= CLOSE and abs(float(value) - largest[i]) <= CLOSE


@pytest.mark.parametrize(("name", "layer", "head"), [("tale", 2, 1), ("tale", 5, 3), ("both_ways", 1, 2)])
def test_attention_of_a_head(browser, request, name, layer, head):
    page = request.getfixturevalue(name)
    browser.open(page.path)
    pattern = choose_head(browser, page, layer, head)
    assert browser.text("#head-tap") == f"blocks.{layer}.pattern [{head}]"
    items = browser.all("#attention-strip [role=option]")
    seen = page.p.shape[0], page.prefix_len
    for query in (0, 3, 6, 7, len(page.ids) - 1):
        browser.hover(items[query])
        check_looks(browser, page, pattern, query)
        sees = [s <= query or s < seen[1] for s in range(len(items))]
        assert [bool("hidden" in item.get_attribute("class").split()) for item in items] == [not may for may in sees]
        shades = browser.js("return arguments[0].map((item) => +item.style.getPropertyValue('--shade'))", items)
        assert np.abs(np.square(shades) - pattern[query]).max() <= 1e-5
    # The other way round: how much each looks at it.
    browser.one("input[value=to]").click()
    shades = browser.js("return arguments[0].map((item) => +item.style.getPropertyValue('--shade'))", items)
    assert np.abs(np.square(shades) - pattern[:, len(page.ids) - 1]).max() <= 1e-5


def test_heads_have_titles_and_the_best_is_open(browser, tale):
    browser.open(tale.path)
    scores = tracing.head_scores(tale.model, tale.ids).previous_token
    best = np.unravel_index(scores.argmax(), scores.shape)
    assert browser.text("#head-name") == "Layer {}, head {}".format(*best)
    assert browser.text("#head-title") == (
        f"previous token head: gives {share(scores.max())} of its attention to the position before"
    )
    titled = {tuple(place): scores[tuple(place)] for place in np.argwhere(scores >= 0.4)}
    order = sorted(titled, key=titled.get, reverse=True)
    buttons = browser.all("#head-titles button")
    assert [button.text for button in buttons] == ["{}.{}".format(*place) for place in order] and len(order) > 1
    names = browser.js("return [...document.querySelectorAll('#heads [role=radio]')].map((head) => head.ariaLabel)")
    assert [name.endswith(": previous token") for name in names] == (scores >= 0.4).ravel().tolist()
    buttons[-1].click()
    assert browser.text("#head-name") == "Layer {}, head {}".format(*order[-1])
    check_looks(browser, tale, tale.trace[f"blocks.{order[-1][0]}.pattern"][order[-1][1]], len(tale.ids) - 1)
    choose_head(browser, tale, 5, 3)
    assert browser.text("#head-title") == "of no known kind here"


def test_the_prompt_is_a_line_to_read_and_goes_on(browser, tale):
    browser.open(tale.path)
    text = tale.model.tokenizer.decode(tale.ids)
    going_on = tale.model.generate(tale.ids, temperature=0, max_new_tokens=12)
    shown = browser.js("return document.getElementById('prompt').textContent")
    assert shown == (text + going_on.text).replace("\n", "↵")
    assert browser.js("return document.querySelector('#prompt ins').textContent") == going_on.text.replace("\n", "↵")
    assert browser.text("#prompt-note").startswith("Underlined: the 12 tokens ")


def test_heads_and_queries_by_keyboard(browser, tale):
    browser.open(tale.path)
    browser.focus(browser.one("#heads [role=radio]"))
    browser.press("ARROW_DOWN", "ARROW_DOWN", "ARROW_RIGHT", "ARROW_RIGHT", "ARROW_UP", "ARROW_LEFT")
    assert browser.text("#head-name") == "Layer 1, head 1"
    browser.press("END", "ARROW_RIGHT")  # the last of its row, and no further
    assert browser.text("#head-name") == "Layer 1, head 3"
    browser.press("TAB")
    assert browser.js("return document.activeElement.id") == "map"
    browser.press("TAB")
    assert browser.js("return document.activeElement.name") == "direction"
    browser.press("TAB")
    browser.press("HOME", "ARROW_RIGHT", "ARROW_DOWN", "ARROW_RIGHT", "ARROW_UP")
    check_looks(browser, tale, tale.trace["blocks.1.pattern"][3], 2)
    # What has the focus can be seen.
    style = "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, parseFloat(s.outlineWidth)]"
    assert browser.js(style) == ["solid", 3]


@pytest.mark.parametrize("name", ["tale", "both_ways"])
def test_the_map(browser, request, name):
    page = request.getfixturevalue(name)
    browser.open(page.path)
    pattern, n = choose_head(browser, page, 1, 2), len(page.ids)
    area = browser.one("#map")
    cell = area.size["width"] / n

    def value(query, key):
        text = browser.text("#map-value")
        found = re.fullmatch(rf"query {query} (.*) to key {key} (.*?): ([\d.e-]+|hidden by the mask)", text)
        assert found, text
        return found[3]

    for query, key in [(9, 4), (4, 9), (2, 6), (n - 1, 0), (0, n - 1), (7, 7)]:
        browser.hover(area, (key + 0.5 - n / 2) * cell, (query + 0.5 - n / 2) * cell)
        may = key <= query or key < page.prefix_len
        got = value(query, key)
        assert abs(float(got) - pattern[query, key]) <= CLOSE if may else got == "hidden by the mask"
        check_looks(browser, page, pattern, query)
        chosen = (
            "return [...document.querySelectorAll('#attention-strip [aria-selected=true]')].map((e) => e.ariaLabel)"
        )
        assert [name.partition(":")[0] for name in browser.js(chosen)] == [f"position {query}"]
    browser.focus(area)
    browser.press("ARROW_DOWN", "ARROW_LEFT", "ARROW_LEFT", "ARROW_UP", "ARROW_UP")
    assert abs(float(value(6, 5)) - pattern[6, 5]) <= CLOSE
    # The browser's own shortcuts stay its own: "back" is one of them.
    for key in ("ctrlKey", "altKey", "metaKey"):
        kept = "return arguments[0].dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', cancelable: true, "
        assert browser.js(kept + f"{key}: true}}))", area)
    assert abs(float(value(6, 5)) - pattern[6, 5]) <= CLOSE

    # The picture: each dot between the ends of the scale, by the root of the weight; blank where the mask hides.
    dots = browser.js("""const canvas = document.getElementById('map-canvas');
        return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]""")
    dots = np.array(dots).reshape(n, n, 4)
    low, high = np.array([0xF7, 0xF9, 0xFB]), np.array([0x4F, 0x9B, 0xD6])
    want = low + np.sqrt(pattern)[..., None] * (high - low)
    may = np.tril(np.ones((n, n), bool)) | (np.arange(n) < page.prefix_len)
    assert (dots[..., 3] == np.where(may, 255, 0)).all()
    assert np.abs(dots[..., :3] - want)[may].max() <= 1
    # A thumb is the map in at most 32 dots, the darkest of each square.
    thumb = browser.js(
        """const canvas = document.querySelectorAll('#heads canvas')[arguments[0]];
        return [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]""",
        page.model.config.n_head + 2,
    )
    size = min(n, 32)
    thumb, edges = np.array(thumb).reshape(size, size, 4), [i * n // size for i in range(size + 1)]
    for row, column in [(0, 0), (9, 3), (size - 1, 5), (5, size - 1)]:
        square = np.where(may, pattern, -1)[edges[row] : edges[row + 1], edges[column] : edges[column + 1]].max()
        want = [*(low + np.sqrt(square) * (high - low)), 255] if square >= 0 else [0, 0, 0, 0]
        assert np.abs(thumb[row, column] - want).max() <= 1


@pytest.mark.parametrize("name", ["tale", "both_ways"])
def test_the_logit_lens(browser, request, name):
    page = request.getfixturevalue(name)
    browser.open(page.path)
    n, n_layer = len(page.ids), page.model.config.n_layer
    logits = tracing.logit_lens(page.model, page.ids, page.prefix_len)
    p = np.exp(log_softmax(logits))
    rows = browser.rows("#lens-box table")
    assert [row[0] for row in rows] == ["embed", *(f"block {i}" for i in range(n_layer))]
    assert [row[1:] for row in rows] == [[shown(page.model, int(i)) for i in row] for row in logits.argmax(-1)]
    hits = browser.js("return [...document.querySelectorAll('#lens-box td')].map((c) => c.classList.contains('hit'))")
    follows = [*page.ids[1:], -1]
    assert hits == (logits.argmax(-1) == follows).reshape(-1).tolist()
    cells = browser.all("#lens-box td")
    for layer, t in [(0, 0), (1, 4), (n_layer, n - 1)]:
        browser.hover(cells[layer * n + t])
        assert browser.rows("#lens-panel") == likeliest(page, p[layer, t], 5)
        assert browser.text("#lens-panel code") == (f"blocks.{layer - 1}.resid_post" if layer else "embed")
    browser.focus(cells[n + 4])
    browser.press("ARROW_UP", "ARROW_RIGHT", "ARROW_DOWN", "ARROW_DOWN", "ARROW_LEFT", "ARROW_LEFT")
    assert browser.rows("#lens-panel") == likeliest(page, p[2, 3], 5)
    assert f"position 3 {shown(page.model, page.ids[3])}" in browser.text("#lens-panel")


@pytest.mark.parametrize("name", ["tale", "both_ways"])
def test_the_attribution(browser, request, name):
    page = request.getfixturevalue(name)
    browser.open(page.path)
    found = tracing.logit_attribution(page.model, page.ids, prefix_len=page.prefix_len)
    token = shown(page.model, found.token)
    assert browser.text("#attribution-sum") == (
        f"The likeliest next token is {token}: its terms sum to "
        f"{signed(found.total)}; the engine computed {signed(found.logit)}."
    )
    terms = [("embedding", found.embed)]
    for layer, (heads, mlp) in enumerate(zip(found.heads, found.mlps, strict=True)):
        terms += [(f"layer {layer}, head {head}", value) for head, value in enumerate(heads)]
        terms += [(f"layer {layer}, MLP", mlp)]
    terms += [("biases of LayerNorm and head", found.bias)]
    bars = browser.all("#bars-box [role=option]")
    assert [bar.get_attribute("aria-label") for bar in bars] == [f"{term}: {signed(value)}" for term, value in terms]
    values = np.array([value for _, value in terms])
    assert abs(values.sum() - found.logit) < 1e-4
    # Heights, measured as they are drawn.
    boxes = browser.js(
        """return arguments[0].map((bar) => {
        const [whole, part] = [bar, bar.firstChild].map((e) => e.getBoundingClientRect());
        return [(part.top - whole.top) / whole.height, part.height / whole.height]; })""",
        bars,
    )
    top, span = max(0, values.max()), max(0, values.max()) - min(0, values.min())
    assert np.abs(np.array(boxes)[:, 0] - (top - np.maximum(values, 0)) / span).max() < 0.01
    assert np.abs(np.array(boxes)[:, 1] - np.abs(values) / span).max() < 0.01
    for i in (0, 3, len(bars) - 1):
        browser.hover(bars[i])
        assert browser.text("#attribution-panel h3") == terms[i][0]
        assert f"adds {signed(terms[i][1])} to the logit of {token}" in browser.text("#attribution-panel")
    browser.press("TAB")  # wherever the focus is, arrow keys begin at the chosen bar
    browser.focus(browser.one("#bars-box [tabindex='0']"))
    browser.press("HOME", "ARROW_RIGHT", "ARROW_RIGHT")
    assert browser.text("#attribution-panel h3") == "layer 0, head 1"
    table = browser.rows("#attribution-table")
    assert table[1] == ["0", *map(signed, found.heads[0]), signed(found.mlps[0]), signed(found.layers[0])]
    assert (table[0][-1], table[-2][-1], table[-1][-1]) == tuple(map(signed, (found.embed, found.bias, found.total)))


def test_the_equality_report(browser, tale):
    browser.open(tale.path)
    report = tale.model.verify(tale.ids)
    said = browser.text("#equality-sum")
    assert said.startswith(f"All {len(report.taps)} activations are within their bounds. ")
    taps = {tap.name: tap for tap in report.taps}
    cells = browser.all("#equality-box td")
    assert len(cells) == len(taps)
    for i, name in [(0, "blocks.0.ln"), (13 + 6, "blocks.1.pattern"), (len(cells) - 1, "logits")]:
        browser.hover(cells[i])
        tap = taps[name]
        shown = dict(browser.rows("#equality-panel"))
        assert browser.text("#equality-panel h3") == name
        assert float(shown["error nearest its bound"]) == pytest.approx(tap.error, rel=0.006)
        assert float(shown["that bound"]) == pytest.approx(tap.bound, rel=0.006)
        assert float(shown["largest error"]) == pytest.approx(tap.max_error, rel=0.006)
        assert float(shown["of the bound"].removesuffix(" %")) == pytest.approx(100 * tap.ratio, rel=0.1)
        assert (float(shown["cosine"]), shown["verdict"]) == (pytest.approx(tap.cosine, abs=1e-10), "within")
        assert len(browser.all("#equality-box [aria-selected=true]")) == 1
    browser.focus(cells[2])
    browser.press(*["ARROW_DOWN"] * tale.model.config.n_layer)  # below the blocks lies what is outside of them
    assert browser.text("#equality-panel h3") == "logits"
    assert len(browser.all("#equality-box [tabindex='0']")) == 1
    rows = browser.rows("#equality-table")
    assert [row[0] for row in rows] == list(taps) and {row[-1] for row in rows} == {"ok"}


def test_a_broken_engine_is_not_called_equal(browser, folder, both_ways):
    engine = both_ways.model.engine

    class Broken:
        def __getattr__(self, name):
            return getattr(engine, name)

        def logits(self, ids, prefix_len=0, tap=lambda name, value: value):
            def bend(name, value):
                return tap(name, value * np.float32(1.001) if name == "blocks.1.z" else value)

            bend.names = getattr(tap, "names", None)
            return engine.logits(ids, prefix_len, bend)

    page = paged(folder, "broken", dataclasses.replace(both_ways.model, engine=Broken()), [1, 2, 3])
    browser.open(page.path)
    assert browser.text("#equality-sum").startswith("1 of 29 activations are beyond their bounds, first blocks.1.z.")
    (broken,) = browser.all("#equality-box td.broken")
    browser.hover(broken)
    assert dict(browser.rows("#equality-panel"))["verdict"] == "BROKEN"
