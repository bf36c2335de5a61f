"""A base and two adapters behind one server: the request's model chooses."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import refgpt
from refgpt._common.errors import ServerError
from tests.helpers.adapters import oz_and_law
from tests.helpers.servers import Served, serving

PROMPT = "Once upon a time"
BASE = "refgpt-default"
NAMES = (BASE, "oz", "law")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return oz_and_law(tmp_path_factory.mktemp("adapters"))


@pytest.fixture(scope="module")
def alone(paths: dict[str, Path]) -> dict[str, refgpt.Model]:
    """Each model as it is without the others."""
    return {BASE: refgpt.load(), **{name: refgpt.load(adapter=path) for name, path in paths.items()}}


@pytest.fixture(scope="module")
def server(paths: dict[str, Path]) -> Iterator[Served]:
    with serving(refgpt.load(adapters=paths), prefix_cache_bytes=1 << 22) as served:
        yield served


def test_all_of_them_are_listed(server: Served) -> None:
    listed = server.ask("GET", "/v1/models").json["data"]
    assert [one["id"] for one in listed] == [*NAMES]
    assert [one.get("parent") for one in listed] == [None, BASE, BASE]
    assert [one["mask"] for one in listed] == ["causal", "causal", "prefix"]
    assert server.ask("GET", "/v1/models/law").json == listed[2]
    refused = server.ask("GET", "/v1/models/Oz")
    assert refused.status == 404 and refused.json["error"]["code"] == "model_not_found"


def test_requests_at_the_same_time_have_the_texts_of_each_alone(server: Served, alone: dict) -> None:
    asked = [(NAMES[i % 3], PROMPT + " there was a king." * (i % 4), i) for i in range(24)]

    def write(one: tuple[str, str, int]) -> str:
        name, prompt, seed = one
        body = {"model": name, "prompt": prompt, "max_tokens": 12, "seed": seed, "temperature": 0.9}
        body["ignore_eos"] = True
        if seed % 2:
            events = server.stream("/v1/completions", **body, stream=True)
            assert {event["model"] for event in events[:-1]} == {name}
            return "".join(choice["text"] for event in events[:-1] for choice in event["choices"])
        answer = server.post("/v1/completions", **body)
        assert answer["model"] == name
        return answer["choices"][0]["text"]

    with ThreadPoolExecutor(24) as pool:
        texts = list(pool.map(write, asked))
    settings = {"max_new_tokens": 12, "temperature": 0.9, "ignore_eos": True}
    want = [alone[name].generate(prompt, seed=seed, **settings).text for name, prompt, seed in asked]
    assert texts == want
    lines = server.ask("GET", "/metrics").content.decode().splitlines()
    for name in ("oz", "law"):
        assert f'refgpt_adapter_tokens_total{{adapter="{name}"}} {12 * 8}' in lines
    assert len({alone[name].generate(PROMPT, max_new_tokens=12, seed=1).text for name in NAMES}) == 3


def test_chats_scores_and_embeddings_are_those_of_the_model_that_is_named(server: Served, alone: dict) -> None:
    for name in NAMES:
        messages = [{"role": "user", "content": "Tell me a tale."}]
        body = {"messages": messages, "max_tokens": 8, "temperature": 0}
        chat = server.post("/v1/chat/completions", model=name, **body)
        with serving(alone[name]) as other:
            assert chat["choices"] == other.post("/v1/chat/completions", **body)["choices"] and chat["model"] == name
        body = {"prompt": PROMPT, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
        (choice,) = server.post("/v1/completions", model=name, **body)["choices"]
        ids = alone[name].tokenizer.encode(PROMPT)
        first, *others = choice["logprobs"]["token_logprobs"][: len(ids)]
        assert first is None and others == alone[name].score(ids[:1], [ids[1:]])[0].tolist()
        embedded = server.post("/v1/embeddings", model=name, input="A king")
        assert embedded["data"][0]["embedding"] == alone[name].embed(["A king"])[0].tolist()
        assert embedded["model"] == name
        looked = server.post("/inspect", model=name, prompt=PROMPT, what=["lens"])
        with serving(alone[name]) as other:
            assert looked == other.post("/inspect", prompt=PROMPT, what=["lens"])


def test_a_field_of_the_request_chooses_too(server: Served, alone: dict) -> None:
    body = {"prompt": PROMPT, "max_tokens": 6, "seed": 3}
    answer = server.post("/v1/completions", adapter="oz", **body)
    assert answer["choices"][0]["text"] == alone["oz"].generate(PROMPT, max_new_tokens=6, seed=3).text
    assert answer["model"] == "oz"
    refused = server.ask("POST", "/v1/completions", {**body, "adapter": "Oz"})
    assert refused.status == 400 and refused.json["error"]["param"] == "adapter"
    assert "oz, law" in refused.json["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/embeddings", "/inspect"])
def test_an_unknown_model_is_not_found(server: Served, path: str) -> None:
    body = {"model": "Oz", "prompt": PROMPT, "input": PROMPT, "messages": [{"role": "user", "content": "x"}]}
    refused = server.ask("POST", path, body)
    assert refused.status == 404
    assert refused.json["error"]["code"] == "model_not_found" and "'oz', 'law'" in refused.json["error"]["message"]


def test_other_interfaces_use_the_base(server: Served, alone: dict) -> None:
    want = alone[BASE].generate(PROMPT, max_new_tokens=6, temperature=0, ignore_eos=False).text
    body = {"prompt": PROMPT, "max_length": 6, "temperature": 0, "rep_pen": 1, "adapter": "oz", "model": "oz"}
    assert server.post("/api/v1/generate", **body)["results"][0]["text"] == want


def test_an_adapter_is_not_called_like_the_model(paths: dict[str, Path]) -> None:
    model = refgpt.load(adapters=paths)
    with pytest.raises(ServerError, match="the same name; got oz"), serving(model, served_names=("gpt", "oz")):
        pass
