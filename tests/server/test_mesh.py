"""The interfaces that GPT-J had first."""

from __future__ import annotations

import gc
from urllib.parse import urlencode

import pytest

import refgpt
from tests.helpers.servers import Served, serving

CONTEXT = "Once upon a time"


def test_complete(server: Served, model: refgpt.Model) -> None:
    answer = server.post("/complete", context=CONTEXT, top_p=0.9, temp="0.75", length=10, seed=3)
    want = model.generate(CONTEXT, max_new_tokens=10, top_p=0.9, temperature=0.75, seed=3)
    assert answer == {"completion": want.text}


@pytest.mark.parametrize("removes", [True, "true", False, None])
def test_completion(server: Served, model: refgpt.Model, removes: object) -> None:
    body = {"context": CONTEXT, "top_p": 0.9, "temp": 0.8, "response_length": 9, "remove_input": removes, "seed": 1}
    want = model.generate(CONTEXT, max_new_tokens=9, top_p=0.9, temperature=0.8, seed=1).text
    (answer,) = server.post("/completion", **body)
    assert answer == {"generated_text": want if removes in (True, "true") else CONTEXT + want}


def test_generate(server: Served, model: refgpt.Model) -> None:
    query = {"context": f"{CONTEXT} \u00e9", "token_max_length": 30, "temperature": 0.9, "top_p": 0.8, "seed": 4}
    want = model.generate(query["context"], max_new_tokens=30, top_p=0.8, temperature=0.9, seed=4, stop="the")
    answer = server.ask("POST", f"/generate?{urlencode(query | {'stop_sequence': 'the'})}").json
    assert answer.pop("compute_time") >= 0
    assert answer == {
        "model": "refgpt-default",
        "text": want.text + "the",
        "prompt": query["context"],
        "token_max_length": 30,
        "temperature": 0.9,
        "top_p": 0.8,
        "stop_sequence": "the",
    }


def test_predict(server: Served, model: refgpt.Model) -> None:
    numbers = [
        server.post("/model/predict", context=CONTEXT, temp=0.9, top_p=0.9, top_k=20, length=8, seed=seed)["qid"]
        for seed in (1, 2)
    ]
    for seed, number in zip((2, 1), reversed(numbers), strict=True):
        answer = server.post("/model/get_prediction", qid=number)
        want = model.generate(CONTEXT, max_new_tokens=8, temperature=0.9, top_p=0.9, top_k=20, seed=seed).text
        assert answer.pop("time") >= 0 and answer == {"context": CONTEXT, "completion": want}
    assert server.ask("POST", "/model/get_prediction", {"qid": numbers[0]}).status == 404
    assert not server.state.predictions


def test_predictions_that_nobody_fetches_are_forgotten(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from refgpt.server import predictions

    monkeypatch.setattr(predictions, "MOST_KEPT", 3)
    monkeypatch.setattr(predictions, "MOST_CHARACTERS", 6)
    kept = server.state.predictions

    def predict(context: str) -> int:
        number = server.post("/model/predict", context=context, length=1, seed=1)["qid"]
        server.wait_until(lambda: kept.get(number).done())
        return number

    numbers = [predict("x") for _ in range(3)]
    numbers.append(predict("x"))
    assert [kept.get(number) is not None for number in numbers] == [False, True, True, True]
    numbers.append(predict("xxxxx"))  # with one of the others, its prompt has the most characters that are kept
    assert [kept.get(number) is not None for number in numbers] == [False, False, False, True, True]
    assert server.ask("POST", "/model/get_prediction", {"qid": numbers[0]}).status == 404
    for number in numbers[3:]:
        server.post("/model/get_prediction", qid=number)
    assert not kept


def test_predictions_that_are_not_written_yet_are_not_forgotten(
    model: refgpt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refgpt.server import predictions

    monkeypatch.setattr(predictions, "MOST_KEPT", 1)
    with serving(model, speculate=0, max_slots=1) as server:
        connection = server.send("/v1/completions", prompt="x", max_tokens=480, ignore_eos=True, seed=1)
        server.wait_until(lambda: server.state.core.n_running == 1)
        number = server.post("/model/predict", context="x", length=1, seed=1)["qid"]  # waits for the slot
        assert server.ask("POST", "/model/predict", {"context": "x", "length": 1}).status == 429
        connection.close()
        assert server.post("/model/get_prediction", qid=number)["context"] == "x"


def test_a_prediction_is_kept_for_some_time(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from refgpt.server import predictions

    monkeypatch.setattr(predictions, "KEPT_SECONDS", 0.0)
    number = server.post("/model/predict", context="x", length=1, seed=1)["qid"]
    server.wait_until(lambda: not server.state.predictions)
    assert server.ask("POST", "/model/get_prediction", {"qid": number}).status == 404


def test_a_failed_prediction_that_nobody_fetches_is_no_fault_of_asyncio(
    server: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from refgpt.server import mesh, predictions

    async def failing(state: object, job: object, context: str) -> None:
        raise refgpt.GenerationError("the model has had enough")

    monkeypatch.setattr(mesh, "_prediction", failing)
    monkeypatch.setattr(predictions, "KEPT_SECONDS", 0.0)
    server.post("/model/predict", context="x", length=1, seed=1)
    server.wait_until(lambda: not server.state.predictions)
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]


def test_a_prediction_that_fails_says_so_once(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from refgpt.server import mesh

    async def failing(state: object, job: object, context: str) -> None:
        raise refgpt.GenerationError("the model has had enough")

    monkeypatch.setattr(mesh, "_prediction", failing)
    number = server.post("/model/predict", context="x", length=1, seed=1)["qid"]
    answer = server.ask("POST", "/model/get_prediction", {"qid": number})
    assert answer.status == 400 and "enough" in answer.json["error"]
    assert server.ask("POST", "/model/get_prediction", {"qid": number}).status == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/complete", {}),
        ("/complete", {"context": "x", "temp": "hot"}),
        ("/completion", {"context": "x", "response_length": 0}),
        ("/completion", {"context": "x", "remove_input": 7}),
        ("/model/predict", {"context": 5}),
        ("/model/predict", {"context": "x", "top_p": 0}),
        ("/generate?context=x&token_max_length=9999", None),
        ("/generate", None),
        ("/generate?context=%ff", None),
    ],
)
def test_errors(server: Served, path: str, body: dict | None) -> None:
    answer = server.ask("POST", path, body)
    assert answer.status == 400 and isinstance(answer.json["error"], str)


def test_a_long_context_keeps_its_end(server: Served, model: refgpt.Model) -> None:
    context = "It rained all day. " * 200
    want = model.generate(context, max_new_tokens=8, temperature=0.8, top_p=0.9, seed=1, truncate="left").text
    (answer,) = server.post("/completion", context=context, response_length=8, remove_input=True, seed=1)
    assert answer["generated_text"] == want
