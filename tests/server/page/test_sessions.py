"""Sessions as files: what is saved is what is opened, and nothing in a file comes to life."""

from __future__ import annotations

import copy
import json

import pytest

import refgpt
from tests.helpers.model_files import write_model
from tests.helpers.paced_server import paced_serving
from tests.helpers.pages import EVIL, EvilTokenizer, with_tokenizer
from tests.helpers.tiny import random_params, tiny_config
from tests.server.page.conftest import open_page

MARKUP = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\"><b>\u202e"
#: What must not be in a page whose text is full of markup.
ALIVE = (
    "return document.querySelectorAll('#sheet img, #sheet b, iframe, object, embed, main script, #inside img').length"
)


def test_a_session_survives_a_file(page):
    page.write("Once upon a time")
    page.choose(8, 3)
    text, tokens = page.text, page.tokens(".generated .t")
    path, saved = page.save()
    assert saved["model"] == page.text_of("#model") and saved["settings"]["seed"] == 7
    assert len(saved["nodes"]) == 5 and path.name.startswith("refgpt-session-")
    page.click("#new")
    assert page.text == "" and page.n_branches == 0
    page.set(temperature="0.1", seed="")
    page.load(path)
    page.until("document.querySelectorAll('#paper .t').length > 0")
    assert page.text == text and page.tokens(".generated .t") == tokens and page.n_branches == 2
    assert page.one("#temperature").get_property("value") == "0.7" and page.one("#seed").get_property("value") == "7"
    page.write(max_tokens=3)  # the ids are there too
    ids = [token[0] for node in path_of(saved) for token in node["tokens"]]
    assert page.text == page.model.tokenizer.decode([*ids, *page.expected(ids, max_new_tokens=3).ids])
    page.click("#undo")
    page.click("#undo")
    assert page.text == ""
    assert json.loads(path.read_text(encoding="utf-8")) == saved


def path_of(saved):
    found, at = [], saved["current"]
    while at is not None:
        found.insert(0, saved["nodes"][at])
        at = found[0]["parent"]
    return found


def session(**changes):
    node = {"parent": None, "kind": "written", "ended": None, "seed": None, "read": None, "tokens": []}
    node["tokens"] = [[5, "a", None, []]]
    base = {"format": "refgpt session", "version": 1, "model": "x", "settings": {}, "current": 0, "nodes": [node]}
    return {**base, **changes}


def broken():
    """Files that are no sessions, and where they say so."""
    good = session()

    def with_node(**changes):
        return session(nodes=[{**good["nodes"][0], **changes}])

    def with_token(token):
        return with_node(tokens=[token])

    yield "not JSON", "it is not JSON"
    yield "", "it is not JSON"
    yield [], "not a session of this page"
    yield {"format": MARKUP}, "not a session of this page"
    yield session(version=2), "version must be 1"
    yield session(model=3), "model"
    yield session(settings=[]), "settings"
    yield session(nodes={}), "nodes"
    yield session(nodes=[None]), "nodes[0]"
    yield session(nodes=good["nodes"] * 5001), "nodes"
    yield session(current=1), "current"
    yield session(current=None), "current"
    yield session(current="0"), "current"
    yield with_node(parent=0), "nodes[0].parent"
    yield with_node(parent=-1), "nodes[0].parent"
    yield with_node(kind=MARKUP), "nodes[0].kind"
    yield with_node(kind="constructor"), "nodes[0].kind"
    yield with_node(ended=MARKUP), "nodes[0].ended"
    yield with_node(seed=1.5), "nodes[0].seed"
    yield with_node(read=-1), "nodes[0].read"
    yield with_node(tokens="aaaa"), "nodes[0].tokens"
    yield with_token([5, "a", None]), "nodes[0].tokens[0]"
    yield with_token([-5, "a", None, []]), "nodes[0].tokens[0]"
    yield with_token([5, {"toString": 1}, None, []]), "nodes[0].tokens[0]"
    yield with_token([5, "a", 3.0, []]), "nodes[0].tokens[0]"
    yield with_token([5, "a", "<b>", []]), "nodes[0].tokens[0]"
    yield with_token([5, "a", None, [[5, "b", None]]]), "nodes[0].tokens[0][3][0]"
    yield with_token([5, "a", None, [[5, "b", -1.0]] * 51]), "nodes[0].tokens[0]"
    yield with_token([5, "a" * 100_001, None, []]), "nodes[0].tokens[0]"


def test_files_that_are_no_sessions_are_refused(page, tmp_path):
    """Each with its place, and nothing of the page changes."""
    page.write("Once upon a time", max_tokens=4)
    text = page.text
    check = """const { fromFile } = await import("/session.js");
        return arguments[0].map((text) => { try { fromFile(text); return "taken"; } catch (error) {
            return error.constructor.name + ": " + error.message; } })"""
    cases = list(broken())
    texts = [one if isinstance(one, str) else json.dumps(one) for one, _ in cases]
    found = page.js(f"return (async (...arguments) => {{ {check} }})(...arguments)", [json.dumps(session()), *texts])
    assert found[0] == "taken"
    for (_, where), message in zip(cases, found[1:], strict=True):
        assert message.startswith("SessionError: ") and where in message
    for text_of_file in (texts[0], texts[5]):
        path = tmp_path / "broken.json"
        path.write_text(text_of_file, encoding="utf-8")
        page.load(path)
        page.until("!document.getElementById('problem').hidden")
        assert "session" in page.problem and page.text == text
    assert page.js("return Object.prototype.polluted") is None


def test_settings_of_a_file_stay_within_bounds(page, tmp_path):
    settings = {"temperature": 1e9, "top_p": "<b>", "top_k": -3, "seed": 2**70, "max_tokens": 1.6, "stop": [MARKUP, 5]}
    settings["__proto__"] = {"polluted": True}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(session(settings=settings)), encoding="utf-8")
    page.load(path)
    page.until("document.querySelectorAll('#paper .t').length > 0")
    value = "return document.getElementById(arguments[0]).value"
    names = ("temperature", "top_k", "seed", "max_tokens")
    assert [page.js(value, name) for name in names] == ["2", "0", "4294967295", "2"]
    assert page.js(value, "top_p") != "<b>" and page.js(value, "stop-strings") == MARKUP
    assert page.js("return ({}).polluted") is None


def test_markup_in_a_file_is_text(page, tmp_path):
    token = [5, MARKUP, -1.0, [[5, MARKUP, -1.0], [6, "<img src=x onerror=alert(1)>", -2.0]]]
    nodes = session()["nodes"] + [
        {"parent": 0, "kind": "generated", "ended": "length", "seed": 1, "read": 1, "tokens": [token]},
        {"parent": 0, "kind": "generated", "ended": "stop", "seed": 2, "read": 1, "tokens": [token] * 2},
    ]
    path = tmp_path / "markup.json"
    path.write_text(json.dumps(session(nodes=nodes, current=2, model=MARKUP)), encoding="utf-8")
    page.load(path)
    page.until("document.querySelectorAll('#paper .t').length === 3")
    page.hover_token(1)
    assert "onerror" in page.text_of("#alternatives")
    page.click("#compare")
    assert "</script>" in page.text_of(".column-text") and "</script>" in page.text_of("#branches")
    assert page.js(ALIVE) == 0 and not page.js("return document.title").startswith("taken")
    assert "\u202e" not in page.js("return document.body.textContent")
    assert "another model" in page.problem
    assert [line for line in page.complaints() if "security" in line.lower()] == []


def test_ids_of_another_model_are_not_sent(page, tmp_path):
    nodes = copy.deepcopy(session()["nodes"])
    nodes[0]["tokens"] = [[4000, "Once", None, []], [4001, " upon a time", None, []]]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(session(nodes=nodes)), encoding="utf-8")
    page.load(path)
    page.until("document.querySelectorAll('#paper .t').length === 2")
    page.write(max_tokens=5)
    ids = page.model.tokenizer.encode("Once upon a time")
    assert page.text == page.model.tokenizer.decode([*ids, *page.expected(ids, max_new_tokens=5).ids])


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A server whose model's name and tokens are attacks."""
    folder = tmp_path_factory.mktemp("evil") / "<img src=x onerror=alert(1)>"
    config = tiny_config()
    model = refgpt.load(write_model(folder, config, random_params(config, seed=3)))
    with paced_serving(with_tokenizer(model, EvilTokenizer())) as running:
        yield running


def test_no_token_of_a_model_comes_to_life(chromium, evil):
    page = open_page(chromium, evil)
    assert "<img" in page.text_of("#model")
    page.set(max_tokens=24, temperature="2", top_p="1", seed=3)
    page.js("document.getElementById('composer').value = arguments[0]", EVIL[0].decode())
    page.click("#go")
    page.until("document.querySelectorAll('.generated .t').length > 2")
    page.done()
    for i in range(0, len(page.all("#paper .t")), 3):
        page.hover_token(i)
    page.click(page.all("#paper .t")[4])
    page.act("Look inside")
    for tab in ("attention", "lens", "attribution"):
        page.click(f"#tab-{tab}")
        page.until("document.querySelector(arguments[0])", f"#view-{tab} .panel")
    assert page.js(ALIVE) == 0 and not page.js("return document.title").startswith("taken")
    assert {"\u202e", "\u2066", "\x00", "\x1b"} & set(page.js("return document.body.textContent")) == set()


def test_the_policy_is_in_force(page):
    page.check_policy()
