"""Batches of prompts: each record says what the model says to that prompt alone, and a killed run goes on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import refgpt
from refgpt import DataError, GenerationError, GenerationParams
from refgpt.batches import run_batch
from refgpt.batches.lines import Line
from refgpt.batches.requests import Settings, request_of
from refgpt.batches.running import in_order, run_requests
from refgpt.runtime import Runtime
from tests.helpers.tiny import random_params, tiny_config

PARAMS = GenerationParams(max_new_tokens=6, seed=1)


@pytest.fixture(scope="module")
def model():
    return refgpt.load(threads=2)


def write_requests(path: Path, requests: list[object]) -> Path:
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in requests))
    return path


def records_in(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answered(model, folder: Path, requests: list[object], **options) -> list[dict]:
    """The records of some requests."""
    path, output = write_requests(folder / "prompts.jsonl", requests), folder / "out.jsonl"
    run_batch(model, path, output, PARAMS, **options)
    assert sorted(os.listdir(folder)) == ["out.jsonl", "prompts.jsonl"]
    return records_in(output)


def test_every_record_says_what_the_model_says_to_its_prompt(model, tmp_path):
    ids = model.tokenizer.encode("The king said")
    requests = [
        {"prompt": "Once upon a time"},
        {"prompt": ids, "id": "king", "temperature": 0, "max_tokens": 40, "metadata": {"a": [1]}},
        {"prompt": "Once", "n": 2, "seed": 5, "logprobs": 1},
        {"prompt": "The end", "num_beams": 3, "num_return_sequences": 2},
        {"prompt": "", "stop": [" "], "ignore_eos": True},
    ]
    first, king, several, beams, empty = answered(model, tmp_path, requests, max_slots=3)
    want = model.generate("Once upon a time", PARAMS)
    assert first == {"id": 1, "n_prompt": 4, "text": want.text, "finish_reason": want.finish_reason, "n_new": 6}
    want = model.generate(ids, PARAMS, temperature=0, max_new_tokens=40)
    assert (king["id"], king["metadata"], king["text"]) == ("king", {"a": [1]}, want.text)
    texts = model.generate("Once", PARAMS, n=2, seed=5, logprobs=1)
    for found, text in zip(several["choices"], texts, strict=True):
        assert (found["text"], found["ids"], found["logprobs"]) == (text.text, text.ids, text.logprobs)
        assert found["top_logprobs"] == [{str(i): p for i, p in top.items()} for top in text.top_logprobs]
    texts = model.generate("The end", PARAMS, num_beams=3, num_return_sequences=2)
    assert [(one["text"], one["score"]) for one in beams["choices"]] == [(one.text, one.score) for one in texts]
    assert empty["text"] == model.generate("", PARAMS, stop=[" "], ignore_eos=True).text


def test_messages_become_prompts(model, tmp_path):
    messages = [{"role": "user", "content": "Who are you?"}]
    template = {"template": "gpt-jt"}
    own, asked = answered(
        model,
        tmp_path,
        [
            {"messages": messages, "stop": "x"},
            {
                "custom_id": "c",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"messages": messages, "seed": 1},
            },
        ],
        **template,
    )
    prompt = "Please answer the following question:\n\nQuestion: Who are you?\nAnswer:"
    assert own["text"] == model.generate(prompt, PARAMS, stop=["\n", "x"]).text.strip()
    (choice,) = asked["response"]["body"]["choices"]
    want = model.generate(prompt, seed=1, stop="\n", max_new_tokens=500)
    assert choice["message"]["content"] == want.text.strip() and choice["finish_reason"] == want.finish_reason


def test_openais_format_is_answered_in_its_own(model, tmp_path):
    def request(url: str, **body: object) -> dict:
        return {"custom_id": f"r{len(requests)}", "method": "POST", "url": url, "body": body}

    requests: list[dict] = []
    requests.append(request("/v1/completions", prompt=["Once", "The"], max_tokens=3, seed=2, n=2, model="mine"))
    requests.append(request("/v1/embeddings", input=["Once", "The king"]))
    requests.append(request("/v1/embeddings", input=5))
    requests.append(request("/v1/completions", prompt="Once", max_tokens=3, temperature=-1))
    requests.append(request("/v1/completions", prompt="x" * 5000))
    requests.append(request("/v1/completions", prompt="Once", stream=True))
    requests.append(request("/v1/images"))
    requests.append({"custom_id": 5, "url": "/v1/completions", "body": {}})
    records = answered(model, tmp_path, requests)
    assert [record["custom_id"] for record in records] == [request["custom_id"] for request in requests]
    assert len({record["id"] for record in records}) == len(records)
    body = records[0]["response"]["body"]
    assert records[0]["response"]["status_code"] == 200 and records[0]["error"] is None and body["model"] == "mine"
    want = [model.generate(p, seed=2, max_new_tokens=3, n=2) for p in ("Once", "The")]
    assert [choice["text"] for choice in body["choices"]] == [text.text for texts in want for text in texts]
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 12, "total_tokens": 14}
    vectors = [entry["embedding"] for entry in records[1]["response"]["body"]["data"]]
    assert np.array_equal(np.array(vectors, np.float32), model.embed(["Once", "The king"]))
    for record, param in zip(records[2:6], ["input", "temperature", "prompt", "stream"], strict=True):
        assert record["response"]["status_code"] == 400
        error = record["response"]["body"]["error"]
        assert error["type"] == "invalid_request_error" and (error["param"] == param or param == "prompt")
    for record in records[6:]:
        assert record["response"] is None and record["error"]["code"] == "bad_line"


def test_a_bad_request_has_a_record_that_says_why(model, tmp_path):
    requests = [
        "{",
        {"prompt": "x", "temprature": 1},
        {"prompt": "x", "messages": []},
        {"id": 7},
        {"prompt": True},
        {"prompt": [1, "x"]},
        {"prompt": "x " * 600},
        {"prompt": [10**6]},
        {"prompt": "x", "num_beams": 40},
        {"prompt": "good"},
        {"prompt": "x", "suppress_tokens": list(range(4096))},
        {"messages": [{"role": "cook", "content": "x"}]},
    ]
    records = answered(model, tmp_path, requests)
    assert [record["id"] for record in records] == [1, 2, 3, 7, 5, 6, 7, 8, 9, 10, 11, 12]
    assert ["error" in record for record in records] == [i != 9 for i in range(12)]
    told = ["JSON", "mean temperature", "messages", "messages", "True", "ids", "context", "1000000", "slots"]
    for record, why in zip(records, told, strict=False):
        assert why in record["error"] and "text" not in record
    assert "no token is left" in records[10]["error"] and "messages[0].role" in records[11]["error"]


def test_a_request_of_several_prompts_fails_as_a_whole_and_leaves_no_work(model, tmp_path):
    def request(prompts: list[object], **body: object) -> dict:
        return {"custom_id": "c", "url": "/v1/completions", "body": {"prompt": prompts, **body}}

    n_tokens: list[int] = []
    requests = [request(["Once", "x " * 600], max_tokens=50), request(["a", "b"], suppress_tokens=list(range(4096)))]
    records = answered(model, tmp_path, requests, on_tokens=n_tokens.append)
    assert [record["response"]["status_code"] for record in records] == [400, 400] and sum(n_tokens) == 0


def test_the_order_is_that_of_the_file_or_of_completion(model, tmp_path):
    requests = [{"prompt": "Once", "max_new_tokens": n, "ignore_eos": True} for n in (30, 2, 9, 4)]
    assert [one["n_new"] for one in answered(model, tmp_path, requests)] == [30, 2, 9, 4]
    assert [one["n_new"] for one in answered(model, tmp_path, requests, order="completion")] == [2, 4, 9, 30]
    with pytest.raises(GenerationError, match="order"):
        answered(model, tmp_path, requests, order="random")


def test_requests_are_read_only_as_there_is_room_for_them():
    config = tiny_config(eos_id=None)
    tiny = SimpleNamespace(engine=Runtime(random_params(config, 5), config, threads=1), tokenizer=None, mask="causal")
    n_read, ahead = 0, []

    def requests():
        nonlocal n_read
        for i in range(200):
            n_read += 1
            content = {"prompt": [1, i % 50], "max_new_tokens": 1 + i % 5}
            yield i, request_of(Line(i + 1, content), Settings(config.n_ctx))

    for n, record in enumerate(in_order(run_requests(tiny, requests(), max_slots=4))):
        assert record.index == n and record.content["id"] == n + 1
        ahead.append(n_read - n)
    assert len(ahead) == 200 and max(ahead) < 24


def test_a_run_that_was_interrupted_goes_on(model, tmp_path):
    path = write_requests(tmp_path / "p.jsonl", [{"prompt": f"{i}: Once upon"} for i in range(12)])
    output = tmp_path / "out.jsonl"
    run_batch(model, path, output, PARAMS)
    want = output.read_bytes()
    output.unlink()

    def stop_at(n: int):
        def stop(n_done: int, n_requests: int) -> None:
            assert n_requests == 12
            if n_done == n:
                raise KeyboardInterrupt

        return stop

    for n in (4, 9):
        with pytest.raises(KeyboardInterrupt):
            run_batch(model, path, output, PARAMS, on_record=stop_at(n), max_slots=2)
        assert not output.exists()
    with pytest.raises(DataError, match="another parameters"):
        run_batch(model, path, output, GenerationParams())
    summary = run_batch(model, path, output, PARAMS)
    assert (summary.n_requests, summary.n_errors, summary.n_earlier) == (12, 0, 9)
    assert output.read_bytes() == want


def test_a_batch_does_not_overwrite_its_own_input(model, tmp_path):
    path = write_requests(tmp_path / "p.jsonl", [{"prompt": "x"}])
    before = path.read_bytes()
    with pytest.raises(DataError, match="input"):
        run_batch(model, path, path)
    with pytest.raises(DataError, match="wanted a name in"):
        run_batch(model, path, tmp_path / "out.txt")
    assert path.read_bytes() == before
