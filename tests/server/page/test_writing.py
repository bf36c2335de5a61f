"""Writing on the page: what is streamed, stopped, branched and undone is what the model itself writes."""

from __future__ import annotations

import math

import pytest

from refgpt.evaluation.demos import DEMOS
from tests.server.page.conftest import SEED, N

BEGINNING = "Once upon a time there was a"
#: Where the steps of the page's colours begin.
STEPS = [0.8, 0.5, 0.25, 0.1, 0.03, 0.01, 0.001, 0]


def step(logprob):
    return next(i for i, least in enumerate(STEPS) if math.exp(logprob) >= least)


def shown(page, token_id):
    """A token by itself."""
    text = page.model.tokenizer.token_bytes(token_id).decode("utf-8", "replace")
    return text.replace(" ", "␣").replace("\n", "↵")


def encode(page, text):
    return page.model.tokenizer.encode(text)


def test_a_text_comes_token_by_token(page):
    page.server.pace.hold()
    page.set()
    page.type(BEGINNING)
    page.click("#go")
    ids = encode(page, BEGINNING)
    want = page.expected(ids)
    texts = [page.model.tokenizer.token_bytes(i).decode() for i in want.ids]
    page.until("document.querySelectorAll('.written .t').length > 0")
    assert page.tokens(".written .t") == [page.model.tokenizer.token_bytes(i).decode() for i in ids]
    for n in (1, 2, 3):
        page.server.pace.allow(1)
        page.until("document.querySelectorAll('.generated .t').length === arguments[0]", n)
        assert page.tokens(".generated .t") == texts[:n]
    assert page.one("#stop").is_displayed() and not page.one("#go").is_displayed()
    page.server.pace.release()
    page.done()
    assert page.tokens(".generated .t") == texts
    assert f"{len(ids)} + {N} tokens of 512" in page.text_of("#figures")
    assert "tokens/s" in page.text_of("#figures") and "first after" in page.text_of("#figures")
    assert page.text_of("#said").startswith(f"{N} tokens written")
    assert page.complaints() == []


def test_every_token_has_its_colour_and_its_alternatives(page):
    page.write(BEGINNING)
    ids = encode(page, BEGINNING)
    want = page.expected(ids)
    script = "return [...document.querySelectorAll(arguments[0])].map((e) => e.className.match(/h(\\d)/)?.[1] ?? null)"
    assert page.js(script, ".generated .t") == [str(step(p)) for p in want.logprobs]
    colours = page.js(script, ".written .t")
    assert colours[0] is None and all(colour is not None for colour in colours[1:])  # nothing comes before the first
    for i in (0, 5, N - 1):
        found = page.hover_token(len(ids) + i)
        top = {**want.top_logprobs[i], want.ids[i]: want.logprobs[i]}
        best = sorted(top, key=lambda one: -top[one])
        assert [label for label, _ in found] == [shown(page, one) for one in best]
        assert float(found[0][1].removesuffix(" %")) == pytest.approx(100 * math.exp(top[best[0]]), rel=0.1)
        here = page.js("return document.querySelector('#alternatives .here .token').textContent")
        assert here == shown(page, want.ids[i])
    labels = page.js("return [...document.querySelectorAll('.generated .t')].map((e) => e.ariaLabel)")
    assert all(label.endswith("%") for label in labels)


def test_stop_keeps_what_has_come(page):
    page.server.pace.hold()
    page.set(max_tokens=200)
    page.type(BEGINNING)
    page.click("#go")
    page.server.pace.allow(5)
    page.until("document.querySelectorAll('.generated .t').length >= 3")
    page.click("#stop")
    page.done()
    n = len(page.tokens(".generated .t"))
    assert 3 <= n <= 5
    page.server.pace.release()
    assert page.text_of("#said").startswith(f"{n} tokens written until it was stopped")
    while page.server.state.core.n_open:  # the server forgets it too
        page.js("return new Promise((done) => setTimeout(done, 10))")
    assert page.problem == ""
    # It goes on from there.
    want = page.expected([*encode(page, BEGINNING), *page.expected(encode(page, BEGINNING)).ids[:n]])
    page.write()
    assert page.tokens(".generated .t")[n:] == [page.model.tokenizer.token_bytes(i).decode() for i in want.ids]


def test_another_token_makes_a_branch(page):
    page.write(BEGINNING)
    first = page.text
    ids = encode(page, BEGINNING)
    written = page.expected(ids)
    place = 6
    top = {**written.top_logprobs[place], written.ids[place]: written.logprobs[place]}
    best = sorted(top, key=lambda one: -top[one])
    rank = 0 if best[0] != written.ids[place] else 1
    page.choose(len(ids) + place, rank)
    prefix = [*ids, *written.ids[:place], best[rank]]
    want = page.expected(prefix)
    second = page.model.tokenizer.decode([*prefix, *want.ids])
    assert page.text == second and page.tokens(".chosen .t") == [page.model.tokenizer.decode([best[rank]])]
    assert page.n_branches == 2
    # Walk from one to the other, at the fork and in the list.
    page.click(".fork .turn")
    page.until("!document.querySelector('.chosen')")
    assert page.text == first and page.text_of(".fork .which") == "1/2"
    page.click(next(limb for limb in page.all("#branches .limb") if "branch 2" in limb.text))
    page.until("document.querySelector('.chosen')")
    assert page.text == second
    # Side by side.
    page.click("#compare")
    shared = page.model.tokenizer.decode([*ids, *written.ids[:place]])
    script = """return [...document.querySelectorAll('.column-text')].map((column) => {
        const copy = column.cloneNode(true);
        copy.querySelectorAll('i').forEach((mark) => mark.remove());
        return copy.textContent; })"""
    assert page.js(script) == [first[len(shared) :], second[len(shared) :]]
    figures = page.js("return [...document.querySelectorAll('.column dd')].map((e) => e.textContent)")
    assert figures[2] == f"{sum(written.logprobs[place:]):.1f}".replace("-", "−") and figures[0] == str(N - place)
    page.click(".column button")
    assert page.text == first


def test_retry_undo_and_redo(page):
    page.write(BEGINNING)
    first, ids = page.text, encode(page, BEGINNING)
    page.click("#retry")
    page.until("document.querySelectorAll('.fork').length === 1")
    page.done()
    second = page.text
    assert second == page.model.tokenizer.decode([*ids, *page.expected(ids, seed=SEED + 1).ids]) != first
    assert page.one("#seed").get_property("value") == str(SEED + 1)
    page.click("#undo")
    assert page.text == first and page.n_branches == 0
    page.click("#undo")
    assert page.text == "" and page.one("#start").is_displayed() and not page.one("#undo").is_enabled()
    page.click("#redo")
    page.click("#redo")
    assert page.text == second and not page.one("#redo").is_enabled()


def test_ones_own_words_go_on(page):
    page.write(BEGINNING, max_tokens=4)
    ids = [*encode(page, BEGINNING), *page.expected(encode(page, BEGINNING), max_new_tokens=4).ids]
    page.write("And then the dragon", max_tokens=4)
    own = encode(page, " And then the dragon")  # words do not run into one another
    want = page.expected([*ids, *own], max_new_tokens=4)
    assert page.text == page.model.tokenizer.decode([*ids, *own, *want.ids])
    assert [len(run.find_elements("css selector", ".t")) for run in page.all(".run")] == [len(ids) - 4, 4, len(own), 4]
    # Taken back into the text field, they can be changed.
    page.click(page.all(".written .t")[-1])
    page.act("Edit")
    assert page.one("#composer").get_property("value") == " And then the dragon" and len(page.tokens()) == len(ids)
    page.write(" But the knight", max_tokens=4)
    assert page.n_branches == 2 and " But the knight" in page.text


def test_text_can_be_written_by_hand_in_the_midst(page):
    page.write(BEGINNING)
    place = len(encode(page, BEGINNING)) + 5
    before = "".join(page.tokens()[:place])
    page.click(page.all("#paper .t")[place])
    page.act("Write here")
    assert page.text == before and page.js("return document.activeElement.id") == "composer"
    assert page.one("#composer").get_property("value") == " "  # the token's own
    page.write(" quite suddenly", max_tokens=3)
    assert page.text.startswith(before + " quite suddenly") and page.n_branches == 2


def test_stop_strings_and_settings_are_the_servers(page):
    page.js("document.getElementById('stop-strings').value = 'a\\\\nb\\n,'")
    page.write(BEGINNING, temperature=0)
    want = page.expected(encode(page, BEGINNING), temperature=0, stop=["a\nb", ","])
    assert page.tokens(".generated .t") == [page.model.tokenizer.token_bytes(i).decode() for i in want.ids]
    assert want.finish_reason == "stop" and "written to its end" in page.text_of("#said")


@pytest.mark.parametrize("name", DEMOS)
def test_presets(page, name):
    demo = DEMOS[name]
    place = list(DEMOS).index(name)
    page.click(page.all(".preset")[place])
    assert page.one("#composer").get_property("value") == demo.prompt()
    page.press(*"My own text")  # the example is selected, and is replaced
    prompt = page.one("#composer").get_property("value")
    assert prompt == demo.prompt("My own text")
    page.click("#go")
    page.until("document.querySelectorAll('.generated .t').length > 0")
    page.done()
    settings = {"temperature": 0.1, "top_k": 40, "top_p": 1, "seed": 42, "stop": "\n", "repetition_penalty": 1}
    want = page.expected(encode(page, prompt), max_new_tokens=10, **settings)
    assert page.tokens(".generated .t") == [page.model.tokenizer.token_bytes(i).decode() for i in want.ids]


def test_a_reload_loses_nothing(page):
    page.write(BEGINNING)
    page.choose(len(encode(page, BEGINNING)) + 3, 4)
    text = page.text
    page.chrome.refresh()
    page.until("document.querySelectorAll('#paper .t').length > 0")
    assert page.text == text and page.n_branches == 2
    assert page.one("#seed").get_property("value") == str(SEED)


def test_ids_of_alternatives_whose_text_is_a_number(page):
    """An object of JavaScript has its own order of such keys."""
    script = """return (async (logprobs) => {
        const { tokensOf } = await import("/api.js");
        return tokensOf({ logprobs })[0].top.map((one) => [one.text, one.id]); })(arguments[0])"""

    def found(top, ids):
        return page.js(script, {"tokens": ["a"], "token_ids": [1], "top_logprobs": [top], "top_token_ids": [ids]})

    assert found({"a": -1, "b": -2, "c": -2}, {"a": 1, "b": 2, "c": 3}) == [["a", 1], ["b", 2], ["c", 3]]
    ids = {"a": 1, "7": 2, "b": 3, "1": 4}
    assert found({"a": -1, "7": -2, "b": -3, "1": -4}, ids) == [["a", 1], ["7", 2], ["b", 3], ["1", 4]]
    assert sorted(found({"a": -1, "7": -2, "b": -2}, ids)) == [["7", 2], ["a", 1], ["b", 3]]
    assert found({"a": -1}, None) == [["a", None]]


def test_words_do_not_run_into_one_another(page):
    script = """return (async (pairs) => {
        const { joined } = await import("/composer.js");
        return pairs.map(([before, text]) => joined(before, text)); })(arguments[0])"""
    cases = {
        ("a king", "was"): " was",
        ("a king.", "He"): " He",
        ("a king", ", who"): ", who",
        ("a king ", "was"): "was",
        ("a king\n", "was"): "was",
        ("", "was"): "was",
        ("\u56fd\u738b", "\u8aac"): "\u8aac",
    }
    assert page.js(script, [list(pair) for pair in cases]) == list(cases.values())


def test_a_tree_remembers_where_one_was(page):
    script = """return (async () => {
        const { Tree } = await import("/tree.js");
        const tree = new Tree();
        const node = (text) => ({ kind: "written", tokens: [...text].map((one) => ({ id: 1, text: one })) });
        const said = [];
        const tell = () => said.push([tree.text(), tree.leaves.length]);
        const first = tree.add(0, node("abcd"));
        const below = tree.add(first, node("ef"));
        tree.remember();
        tree.add(tree.cut(first, 2), node("xy"));  // ab -> cd -> ef, ab -> xy
        tell();
        tree.walk(below);
        tell();
        tree.walk(first);  // to the leaf that was seen last
        tell();
        tree.stay(first);
        tell();
        tree.remember();
        tree.dropBranch(tree.leaves[0].id);
        tell();
        tree.undo();
        tree.undo();
        tell();
        tree.redo();
        tell();
        said.push([tree.cut(first, 0), tree.cut(first, 2) === first]);
        return said; })()"""
    assert page.js(script) == [
        ["abxy", 2],
        ["abcdef", 2],
        ["abcdef", 2],
        ["ab", 2],
        ["abxy", 1],
        ["abcdef", 1],
        ["ab", 2],
        [0, True],
    ]


def test_probabilities_are_written_in_as_many_digits_as_they_are_worth(page):
    script = """return (async (all) => {
        const { percent } = await import("/tokens.js");
        return all.map((p) => percent(p).replace("\\u00a0", " ")); })(arguments[0])"""
    written = {1: "100 %", 0.9996: "100 %", 0.314: "31 %", 0.0764: "7.6 %", 0.00941: "0.94 %", 0.00072: "0.07 %"}
    written |= {3.6e-6: "0.0004 %", 1e-9: "< 0.0001 %", 0: "< 0.0001 %"}
    assert page.js(script, list(written)) == list(written.values())


def test_a_text_can_be_copied(page):
    page.write("Once upon a time", max_tokens=6)
    page.js("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    page.click("#copy")
    page.until("window.copied")
    assert page.js("return window.copied") == page.text and page.text_of("#copy") == "Copied"
