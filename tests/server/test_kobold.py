"""KoboldAI's interface, as SillyTavern and other clients call it."""

from __future__ import annotations

import json
from time import sleep

import pytest

import refgpt
from tests.helpers.servers import Served

PROMPT = "Once upon a time"
#: What SillyTavern sends beside the prompt.
SILLY_TAVERN = {
    "use_story": False,
    "use_memory": False,
    "use_authors_note": False,
    "use_world_info": False,
    "max_context_length": 400,
    "max_length": 12,
    "rep_pen": 1.1,
    "rep_pen_range": 600,
    "rep_pen_slope": 0,
    "temperature": 0.8,
    "tfs": 0.9,
    "top_a": 0,
    "top_k": 40,
    "top_p": 0.95,
    "min_p": 0.01,
    "typical": 1,
    "sampler_order": [6, 0, 1, 3, 4, 2, 5],
    "singleline": False,
    "use_default_badwordsids": True,
    "mirostat": 0,
    "mirostat_eta": 0.1,
    "mirostat_tau": 5,
    "grammar": "",
    "sampler_seed": 7,
    "stop_sequence": ["\nYou:", "dragon", ""],
}


def wanted(model: refgpt.Model, prompt: object = PROMPT, **changes: object) -> refgpt.Generation:
    given = {"max_new_tokens": 12, "repetition_penalty": 1.1, "repeat_last_n": 600, "temperature": 0.8, "top_k": 40}
    given |= {"top_p": 0.95, "min_p": 0.01, "seed": 7, "stop": ["\nYou:", "dragon"]}
    given["suppress_tokens"] = [model.tokenizer.eos_id]
    return model.generate(prompt, **(given | changes))


def test_generate(server: Served, model: refgpt.Model) -> None:
    answer = server.post("/api/v1/generate", prompt=PROMPT, **SILLY_TAVERN)
    (result,) = answer["results"]
    assert result["text"] == wanted(model).text and result["completion_tokens"] == 12


def test_a_text_contains_its_stop_sequence(server: Served, model: refgpt.Model) -> None:
    text = wanted(model).text
    stop = text[10:14]
    body = SILLY_TAVERN | {"prompt": PROMPT, "stop_sequence": ["never", stop]}
    whole = text[: text.index(stop) + len(stop)]
    assert server.post("/api/v1/generate", **body)["results"][0]["text"] == whole
    trimmed = server.post("/api/v1/generate", **body, trim_stop=True)["results"][0]["text"]
    assert trimmed == text[: text.index(stop)]
    assert "".join(piece["token"] for piece in events(server, body)) == whole


def events(server: Served, body: dict) -> list[dict]:
    answer = server.ask("POST", "/api/extra/generate/stream", body)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.content.decode().strip("\n").split("\n\n")
    assert all(block.startswith("event: message\ndata: ") for block in blocks)
    return [json.loads(block.partition("data: ")[2]) for block in blocks]


def test_a_stream(server: Served, model: refgpt.Model) -> None:
    pieces = events(server, SILLY_TAVERN | {"prompt": PROMPT})
    assert "".join(piece["token"] for piece in pieces) == wanted(model).text
    assert [piece["finish_reason"] for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1]["finish_reason"] == "length"


def test_a_long_prompt_keeps_its_end(server: Served, model: refgpt.Model) -> None:
    prompt = "It rained all day. " * 200
    body = SILLY_TAVERN | {"max_context_length": 50}
    answer = server.post("/api/v1/generate", prompt=prompt, **body)
    ids = model.tokenizer.encode(prompt)[-(50 - 12) :]
    assert answer["results"][0]["text"] == wanted(model, prompt=ids).text


def test_a_top_p_of_nothing_takes_the_likeliest(server: Served, model: refgpt.Model) -> None:
    body = {"prompt": PROMPT, "max_length": 8, "top_p": 0, "rep_pen": 1}
    text = server.post("/api/v1/generate", **body)["results"][0]["text"]
    assert text == model.generate(PROMPT, max_new_tokens=8, temperature=0).text


def test_one_line_and_no_end(server: Served, model: refgpt.Model) -> None:
    eos = model.tokenizer.eos_id
    body = {"prompt": PROMPT, "max_length": 200, "sampler_seed": 1, "use_default_badwordsids": True}
    answer = server.post("/api/v1/generate", **body)["results"][0]
    assert answer["completion_tokens"] == 200 and eos is not None
    line = server.post("/api/v1/generate", **body, singleline=True, trim_stop=True)["results"][0]["text"]
    assert "\n" not in line


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/api/v1/model", {"result": "refgpt-default"}),
        ("/api/v1/info/version", {"result": "1.2.5"}),
        ("/api/extra/version", {"result": "KoboldCpp", "version": "1.30"}),
        ("/api/v1/config/max_length", {"value": 512}),
        ("/api/v1/config/max_context_length", {"value": 512}),
        ("/api/extra/true_max_context_length", {"value": 512}),
    ],
)
def test_what_clients_ask_first(server: Served, path: str, answer: dict) -> None:
    assert server.ask("GET", path).json == answer


def test_abort_and_check(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = server.state.core._scheduler
    step = scheduler.step

    def slow_step() -> list:
        sleep(0.005)
        return step()

    monkeypatch.setattr(scheduler, "step", slow_step)
    body = {"prompt": PROMPT, "max_length": 480, "ban_eos_token": True, "sampler_seed": 1}
    named = server.send("/api/extra/generate/stream", **body, genkey="KCPP1")
    unnamed = server.send("/api/v1/generate", **body)
    server.wait_until(lambda: server.state.core.n_running == 2)
    server.wait_until(
        lambda: server.post("/api/extra/generate/check", genkey="KCPP1")["results"][0]["text"].count(" ") > 2
    )
    assert server.state.core.n_open == 2
    assert server.post("/api/extra/abort", genkey="another") == {"success": False, "done": False}
    assert server.post("/api/extra/abort", genkey="KCPP1")["success"] is True
    with named, named.makefile("rb") as answer:
        last = [line for line in answer.read().split(b"\n") if line.startswith(b"data:")][-1]
        assert json.loads(last[6:])["finish_reason"] == "length"
    assert server.state.core.n_open == 1
    assert server.ask("POST", "/api/extra/abort").json["success"] is True  # SillyTavern sends no body
    with unnamed, unnamed.makefile("rb") as answer:
        assert b" 200 " in answer.readline()
    server.wait_until(lambda: server.state.core.n_open == 0)
    server.wait_until(lambda: not server.state.kobold)


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": 5},
        {"max_length": 0},
        {"max_length": 513},
        {"max_length": "many"},
        {"max_length": 1.5},
        {"sampler_order": [0, 0, 1, 2, 3, 4, 5]},
        {"sampler_order": "012345"},
        {"temperature": -1},
        {"temperature": float("1e300")},
        {"top_p": 7},
        {"stop_sequence": [5]},
        {"n": 100},
        {"rep_pen": [1]},
    ],
    ids=str,
)
def test_errors_have_kobolds_form(server: Served, given: dict) -> None:
    answer = server.ask("POST", "/api/v1/generate", {"prompt": PROMPT} | given)
    assert answer.status == 422
    assert answer.json["detail"].keys() == {"msg", "type"} and next(iter(given)) in answer.json["detail"]["msg"]


def test_a_refused_request_leaves_nothing_behind(server: Served) -> None:
    for path in ("/api/v1/generate", "/api/extra/generate/stream"):
        answer = server.ask("POST", path, {"prompt": PROMPT, "trim_stop": "perhaps"})
        assert answer.status == 400 and "trim_stop" in answer.json["detail"]["msg"]
    assert not server.state.kobold and not server.state.core.n_open


def test_tokens_are_counted(server: Served, model: refgpt.Model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    assert server.post("/api/extra/tokencount", prompt=PROMPT) == {"value": len(ids), "ids": ids}
