"""The page as a file: one piece, the same each time, and nothing in it that a token could bring to life."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import refgpt
from refgpt.inspect import build_report
from refgpt.inspect.page import inert, page, program, style
from tests.helpers.model_files import write_model
from tests.helpers.pages import EVIL, EvilTokenizer, data_of, with_tokenizer
from tests.helpers.tiny import random_params, tiny_config

CONFIG = tiny_config()


@pytest.fixture(scope="module")
def evil(tmp_path_factory):
    """A model whose name and tokens are attacks."""
    name = "<img src=x onerror=alert(1)>&$data"
    model = refgpt.load(write_model(tmp_path_factory.mktemp("report") / name, CONFIG, random_params(CONFIG, seed=3)))
    return with_tokenizer(model, EvilTokenizer())


class Outline(HTMLParser):
    """The elements of a page with their attributes, and the text inside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.inside = [], {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, text):
        if self.cdata_elem is not None:
            self.inside.setdefault(self.cdata_elem, []).append(text)


INSPECT = Path(refgpt.inspect.__file__).parent
#: What the page is made of, by the paths below the package.
SOURCES = {
    path.relative_to(INSPECT).as_posix(): path.read_text(encoding="utf-8")
    for path in sorted(INSPECT.rglob("*"))
    if path.suffix in {".html", ".css", ".js"}
}


def test_no_token_becomes_markup(evil):
    tame = Outline(page({"model": "tame"}))
    outline = Outline(build_report(evil, list(range(len(EVIL)))))
    assert [tag for tag, _ in outline.elements] == [tag for tag, _ in tame.elements]
    assert outline.inside["style"] == [style()]
    assert [text for text in outline.inside["script"] if not text.startswith("{")] == [program()]
    for _, attributes in outline.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert set(attributes) & {"src", "href", "action", "srcset"} <= {"href"}
        assert attributes.get("href", "#").startswith("#")


def test_data_survive_the_way_into_a_script(evil):
    ids = list(range(len(EVIL)))
    found = build_report(evil, ids)
    tokens = data_of(found)["tokens"]
    for i, raw in enumerate(EVIL):
        assert tokens[str(i)][0] == (raw.hex(" ") if len(raw) <= 64 else raw[:64].hex(" ") + " …")
    data = {"a": "</script><!--<script>\u2028\u2029\u202e\u0000é&"}
    assert json.loads(inert(data)) == data
    assert re.fullmatch(r"[ -;=-~]*", inert(data))  # ASCII that can be printed, and no "<"
    with pytest.raises(ValueError):
        inert({"a": float("nan")})


def test_characters_that_mislead_an_eye_are_nowhere_in_the_file(evil):
    text = build_report(evil, list(range(len(EVIL))))
    assert not re.search("[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]", text)


def test_the_policy_allows_this_style_and_this_program_alone(evil):
    (policy,) = (
        a["content"]
        for tag, a in Outline(build_report(evil, [0])).elements
        if a.get("http-equiv") == "Content-Security-Policy"
    )
    digest = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in (("js", program()), ("css", style()))
    }
    assert policy == (
        f"default-src 'none'; script-src 'sha256-{digest['js']}'; style-src 'sha256-{digest['css']}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_nothing_of_the_sources_ends_them_or_fetches():
    assert not re.search(r"</(style|script)|<!--", style() + program(), re.IGNORECASE)
    both = style() + program() + SOURCES["report.html"]
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|import\(|WebSocket|sendBeacon", both)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", program())


def test_the_modules_become_one_script():
    """Every module is in it, after those it imports, and no name is declared twice."""
    scripts = [path for path in SOURCES if path.endswith(".js")]
    assert len(scripts) == 7
    places = {path: program().index(SOURCES[path].splitlines()[0]) for path in scripts}
    for path in scripts:
        for name in re.findall(r'^import .* from "\./(?:views/)?(.*)";$', SOURCES[path], re.MULTILINE):
            assert places[f"views/{name}"] < places[path]
    names = re.findall(r"^(?:async )?(?:const|let|function|class) (\w+)", program(), re.MULTILINE)
    assert len(names) == len(set(names)) > 30
    assert not re.search(r"^(import|export) ", program(), re.MULTILINE)


def test_the_same_model_and_prompt_give_the_same_page(evil):
    assert build_report(evil, [1, 2, 3]) == build_report(evil, [1, 2, 3])
    assert build_report(evil, [1, 2, 3]) != build_report(evil, [1, 2, 4])


def test_no_folder_of_the_machine_is_told(evil):
    path = evil.checkpoint.path
    assert str(path.parent) not in build_report(evil, [1])
    assert data_of(build_report(evil, [1]))["model"] == path.name
    assert data_of(build_report(refgpt.load(), [1]))["model"] == "refgpt's included model"
    cached = path.parent / "models--EleutherAI--gpt-j-6b" / "snapshots" / "0a1b2c"
    from_hub = dataclasses.replace(evil, checkpoint=dataclasses.replace(evil.checkpoint, path=cached))
    assert data_of(build_report(from_hub, [1]))["model"] == "EleutherAI/gpt-j-6b"


def test_a_folder_whose_name_is_no_text(evil):
    path = evil.checkpoint.path.with_name(os.fsdecode(b"a\xff\xe2\x80\xaeb \xc3\xa9"))
    found = build_report(dataclasses.replace(evil, checkpoint=dataclasses.replace(evil.checkpoint, path=path)), [1])
    assert "<h1>a\ufffd\ufffdb \u00e9</h1>" in found and found.encode()


def test_the_sources_are_kept_to_the_width_of_a_page():
    lines = [line for text in SOURCES.values() for line in text.splitlines()]
    assert [line for line in lines if len(line) > 120 or line != line.rstrip()] == []
