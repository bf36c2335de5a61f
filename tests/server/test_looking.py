"""A look inside, vectors, and what a server says of itself."""

from __future__ import annotations

from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import refgpt
from refgpt.evaluation import DEMOS
from refgpt.inspect import gather, prompt_of
from tests.helpers.servers import Served, serving

PROMPT = "Once upon a time"


def test_inspect_shows_what_the_page_of_inspect_shows(server: Served, model: refgpt.Model) -> None:
    ids = prompt_of(PROMPT, model.config, model.tokenizer)
    want = gather(model, ids, 0, verify=False)
    found = server.post("/inspect", prompt=PROMPT)
    assert found.pop("position") == len(ids) - 1
    assert found == want | {"facts": [list(fact) for fact in want["facts"]]}
    assert server.post("/inspect", prompt=ids.tolist(), what=["lens"])["lens"] == want["lens"]


def test_a_part_of_the_inside(server: Served, model: refgpt.Model) -> None:
    found = server.post("/inspect", prompt=PROMPT, what=["attribution"], position=1, token=300)
    want = refgpt.tracing.logit_attribution(model, PROMPT, token=300, position=1)
    assert found["pattern"] is None and found["lens"] is None and found["predictions"] is None
    assert found["attribution"]["logit"] == want.logit and found["attribution"]["heads"] == want.heads.tolist()
    assert found["tokens"]["300"]


def test_a_prefix_that_sees_itself(server: Served, model: refgpt.Model) -> None:
    """As of a token that GPT-JT has written: its prompt saw itself, and what came after did not."""
    ids = prompt_of(PROMPT, model.config, model.tokenizer)
    found = server.post("/inspect", prompt=PROMPT, prefix_len=2, what=["attention"])
    assert found["prefix_len"] == 2 and found["pattern"] == gather(model, ids, 2, verify=False)["pattern"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "x " * 400}, "prompt"),
        ({"prompt": PROMPT, "what": "lens"}, "what"),
        ({"prompt": PROMPT, "what": []}, "what"),
        ({"prompt": PROMPT, "what": [{}]}, "what"),
        ({"prompt": PROMPT, "position": 99}, "position"),
        ({"prompt": PROMPT, "position": 1.0}, "position"),
        ({"prompt": PROMPT, "token": -1}, "token"),
        ({"prompt": PROMPT, "prefix_len": 99}, "prefix_len"),
        ({"prompt": PROMPT, "prefix_len": True}, "prefix_len"),
        ({"prompt": [99999]}, "prompt"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_looked_at(server: Served, body: dict, param: str) -> None:
    answer = server.ask("POST", "/inspect", body)
    assert answer.status == 400 and answer.json["error"]["param"] == param


def test_inspect_can_be_off(model: refgpt.Model) -> None:
    with serving(model, inspect=False) as server:
        assert server.ask("POST", "/inspect", {"prompt": PROMPT}).status == 404


def test_a_look_inside_harms_no_stream(server: Served, model: refgpt.Model) -> None:
    """Texts that are written meanwhile go on, and are the same."""
    want = model.generate(PROMPT, max_new_tokens=300, seed=5, ignore_eos=True).text
    body = {"prompt": PROMPT, "max_tokens": 300, "seed": 5, "ignore_eos": True}
    inside = server.post("/inspect", prompt=PROMPT)
    with ThreadPoolExecutor(6) as pool:
        texts = [pool.submit(server.post, "/v1/completions", **body) for _ in range(2)]
        looks = [pool.submit(server.post, "/inspect", prompt=PROMPT) for _ in range(4)]
        assert all(text.result()["choices"][0]["text"] == want for text in texts)
        assert all(look.result() == inside for look in looks)


@pytest.mark.parametrize("form", ["float", "base64"])
def test_embeddings(server: Served, model: refgpt.Model, form: str) -> None:
    texts = ["A king", model.tokenizer.encode("The sea")]
    answer = server.post("/v1/embeddings", input=texts, encoding_format=form, model="refgpt-default")
    want = model.embed(texts)
    rows = [one["embedding"] for one in answer["data"]]
    rows = [np.frombuffer(b64decode(row), "<f4") for row in rows] if form == "base64" else rows
    assert (np.array(rows, np.float32) == want).all()
    assert [one["index"] for one in answer["data"]] == [0, 1]
    assert answer["usage"]["prompt_tokens"] == sum(len(model.tokenizer.encode(text)) for text in ["A king", "The sea"])
    one = server.post("/v1/embeddings", input="A king", layer=2, pooling="last")
    assert (np.array(one["data"][0]["embedding"], np.float32) == model.embed(["A king"], 2, "last")[0]).all()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": 5},
        {"input": []},
        {"input": [99999]},
        {"input": "x", "encoding_format": "xml"},
        {"input": "x", "dimensions": 3},
        {"input": "x", "layer": 99},
        {"input": "x", "layer": "top"},
        {"input": "x", "pooling": []},
        {"input": ["x"] * 300},
        {"input": "x " * 600},
    ],
    ids=lambda value: str(value)[:40],
)
def test_embeddings_that_cannot_be_had(server: Served, body: dict) -> None:
    assert server.ask("POST", "/v1/embeddings", body).status == 400


def test_models_and_versions(server: Served, model: refgpt.Model) -> None:
    answer = server.ask("GET", "/v1/models").json
    (one,) = answer["data"]
    assert answer["object"] == "list"
    assert (one["id"], one["n_ctx"], one["family"]) == ("refgpt-default", model.config.n_ctx, "gptj")
    assert server.ask("GET", "/v1/models/refgpt-default").json == one
    assert server.ask("GET", "/version").json == {"version": refgpt.__version__}
    assert server.ask("GET", "/health").json == {"status": "ok"}


def test_a_model_can_have_other_names(model: refgpt.Model) -> None:
    with serving(model, served_names=("EleutherAI/gpt-j-6b", "gptj")) as server:
        for name in ("EleutherAI/gpt-j-6b", "gptj"):
            assert server.ask("GET", f"/v1/models/{name}").json["id"] == name
            assert (
                server.post("/v1/completions", model=name, prompt="x", max_tokens=1)["model"] == "EleutherAI/gpt-j-6b"
            )


def test_the_tokenizer(server: Served, model: refgpt.Model) -> None:
    text = "Ünï 漢 🙂 a</s>"
    ids = model.tokenizer.encode(text)
    answer = server.post("/tokenize", prompt=text, add_special_tokens=False)
    assert answer["tokens"] == ids and answer["count"] == len(ids) == len(answer["token_strs"])
    assert server.post("/detokenize", tokens=ids)["prompt"] == model.tokenizer.decode(ids)
    plain = server.post("/tokenize", content=text, parse_special=False)["tokens"]
    assert plain == model.tokenizer.encode(text, special=False)
    info = server.ask("GET", "/tokenizer_info").json
    eos = [model.tokenizer.eos_id]
    assert server.post("/tokenize", prompt=info["eos_token"])["tokens"] == eos == [info["eos_token_id"]]
    for path, body in (
        ("/tokenize", {"prompt": 5}),
        ("/detokenize", {"tokens": [1.5]}),
        ("/detokenize", {"tokens": [-1]}),
    ):
        assert server.ask("POST", path, body).status == 400


def test_presets(server: Served) -> None:
    presets = server.ask("GET", "/presets").json["presets"]
    assert [preset["name"] for preset in presets] == list(DEMOS)
    for preset in presets:
        template = preset["template"]
        shown = [
            f"{template['lead']}{one['text']}{template['between']}{one['label']}{template['tail']}"
            for one in preset["examples"]
        ]
        assert preset["prompt"].startswith(template["header"])
        assert all(one.strip() in preset["prompt"] for one in shown)
