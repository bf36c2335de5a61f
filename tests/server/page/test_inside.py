"""Look inside: the views of a token are what the model's own trace says."""

from __future__ import annotations

import numpy as np

import refgpt
from refgpt import tracing
from refgpt.inspect import gather
from tests.helpers.model_files import write_model
from tests.helpers.paced_server import paced_serving
from tests.helpers.pages import EVIL, EvilTokenizer, share, signed, with_tokenizer
from tests.helpers.tiny import random_params, tiny_config
from tests.server.page.conftest import open_page

CLOSE = 0.00005 + 0.5 / 65535 + 1e-9


def look_at(page, i):
    page.click(page.all("#paper .t")[i])
    page.act("Look inside")
    page.until("document.querySelector('#attention-panel table')")


def test_the_views_of_a_token(page):
    page.write("Once upon a time there was a")
    ids = page.model.tokenizer.encode("Once upon a time there was a")
    ids += page.expected(ids).ids
    place = 12
    look_at(page, place)
    before, token = ids[:place], ids[place]
    assert page.text_of("#inside-title").endswith(page.model.tokenizer.decode([token]).replace(" ", "␣"))
    # Attention, of the position that gave the token. It opens on a head of a known kind.
    first = gather(page.model, np.array(before), 0, verify=False, parts=["attention"])["heads"]["opening"]
    assert page.text_of("#head-name") == f"Layer {first['layer']}, head {first['head']}" and first["layer"] > 0
    assert page.text_of("#head-title").startswith("previous token head: ")
    page.click(page.all("#heads [role=radio]")[2 * 4 + 1])
    assert page.text_of("#head-name") == "Layer 2, head 1"
    pattern = page.model.trace(before)["blocks.2.pattern"][1]
    for where, _, value in page.rows("#attention-panel table:nth-of-type(1)"):
        assert abs(float(value) - pattern[place - 1, int(where.split()[0])]) <= CLOSE
    # The logit lens: the last column.
    page.click("#tab-lens")
    page.until("document.querySelector('#view-lens td')")
    lens = np.exp(tracing.logit_lens(page.model, before).astype(np.float64))
    last = lens[-1, -1] / lens[-1, -1].sum()
    rows = page.rows("#view-lens .panel table")
    assert rows[0][2] == share(float(np.float32(last.max())))
    hits = page.js(
        "return [...document.querySelectorAll('#view-lens .cells tbody tr')].map((r) => r.lastChild.className)"
    )
    assert [("hit" in name) for name in hits] == [int(layer[-1].argmax()) == token for layer in lens]
    # Attribution, of this token and not of the likeliest.
    page.click("#tab-attribution")
    page.until("document.querySelector('#view-attribution .bar')")
    found = tracing.logit_attribution(page.model, before, token=token)
    assert f"sum to {signed(found.total)}" in page.text_of("#view-attribution .sum")
    # The head stays chosen when another token is looked at.
    page.click("#tab-attention")
    look_at(page, place + 2)
    page.until("document.getElementById('inside-title').textContent.length > 0")
    assert page.text_of("#head-name") == "Layer 2, head 1"
    page.click("#inside-close")
    assert not page.one("#inside").is_displayed()
    assert page.js("return document.activeElement.classList.contains('t')")


def test_tabs_by_keyboard(page):
    page.write("Once upon a time", max_tokens=8)
    look_at(page, 6)
    assert page.js("return document.activeElement.id") == "tab-attention"
    page.press("ARROW_RIGHT")
    assert page.js("return document.activeElement.id") == "tab-lens"
    page.press("ARROW_LEFT", "ARROW_LEFT")
    assert page.js("return document.activeElement.id") == "tab-attribution"
    page.until("document.querySelector('#view-attribution .bar')")
    shown = "return [...document.querySelectorAll('#inside [role=tabpanel]')].map((panel) => !panel.hidden)"
    assert page.js(shown) == [False, False, True]


def test_pictures_follow_light_and_dark(page):
    page.write("Once upon a time", max_tokens=8)
    look_at(page, 6)
    dot = """const canvas = document.getElementById('map-canvas');
             return [...canvas.getContext('2d').getImageData(0, 0, 1, 1).data]"""
    light = page.js(dot)
    page.scheme("dark")
    page.until("getComputedStyle(document.body).backgroundColor === 'rgb(19, 21, 23)'")
    page.js("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert light == [0x4F, 0x9B, 0xD6, 255] and page.js(dot) == [0x25, 0x6A, 0xA4, 255]
    page.click("#theme")  # the reader's own choice goes before the system's
    assert page.text_of("#theme-name") == "Light" and page.js(dot) == light


def test_what_the_server_refuses_is_told(chromium):
    with paced_serving(refgpt.load(), max_inspect_tokens=5) as running:
        page = open_page(chromium, running)
        page.write("Once upon a time there was", max_tokens=8)
        page.click(page.all("#paper .t")[8])
        page.act("Look inside")
        page.until("document.querySelector('#inside .problem')")
        assert "5" in page.text_of("#inside .problem")


def test_what_the_server_does_not_do_is_not_offered(chromium, page):
    buttons = "return [...document.querySelectorAll('#alternatives .row button')].map((one) => one.textContent.trim())"
    hidden = "return ['stop-field', 'score-field'].map((id) => document.getElementById(id).hidden)"
    page.write("Once upon a time", max_tokens=8)
    assert len(page.hover_token(6)) == 8 and page.js(buttons)[-1] == "Look inside"
    assert page.js(hidden) == [False, False]
    switched_off = {"inspect": False, "max_stops": 0, "max_logprobs": 3, "max_tokens": 20}
    with paced_serving(refgpt.load(), **switched_off) as running:
        page = open_page(chromium, running)
        assert page.one("#max_tokens").get_property("value") == "20"
        page.js("document.getElementById('stop-strings').value = 'e'")
        page.write("Once upon a time", max_tokens=400)
        assert len(page.tokens(".generated .t")) == 20
        assert len(page.hover_token(6)) in (3, 4)
        assert page.js(buttons) == ["Again from here", "Write here"]
        assert page.js(hidden) == [True, False]


def test_a_model_whose_prompts_see_themselves(chromium, tmp_path):
    """GPT-JT: a token is looked at with the mask under which it was written, and its prompt has no colours."""
    config = tiny_config()
    model = refgpt.load(write_model(tmp_path / "both ways", config, random_params(config, seed=3), prefix=True))
    with paced_serving(with_tokenizer(model, EvilTokenizer())) as running:
        page = open_page(chromium, running)
        assert page.js("return document.getElementById('score-field').hidden")
        page.js("document.getElementById('composer').value = arguments[0]", EVIL[4].decode())
        page.set(max_tokens=12)
        page.click("#go")
        page.until("document.querySelectorAll('.generated .t').length > 6")
        page.done()
        page.write(max_tokens=4)  # reads all that as its prompt
        _, saved = page.save()
        first, second = saved["nodes"][1], saved["nodes"][2]
        assert (first["read"], second["read"]) == (1, 1 + len(first["tokens"]))
        assert page.all(".written [class*=' h']") == []
        ids = [token[0] for node in saved["nodes"] for token in node["tokens"]]
        for place, prefix_len in ((6, 1), (len(ids) - 1, second["read"])):
            look_at(page, place)
            page.click(page.all("#heads [role=radio]")[0])
            trace = model.trace(ids[:place], prefix_len)["blocks.0.pattern"][0]
            rows = page.rows("#attention-panel table:nth-of-type(1)")
            for where, _, value in rows:
                assert abs(float(value) - trace[place - 1, int(where.split()[0])]) <= CLOSE
            page.hover(page.one("#attention-strip [role=option]"))
            hidden = page.js("return document.querySelectorAll('#attention-strip .hidden').length")
            assert hidden == place - prefix_len
