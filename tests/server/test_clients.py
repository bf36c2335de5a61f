"""Clients that others have written, against a real server: openai's, and lm-eval's where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import refgpt
from tests.helpers.servers import Served, serving

PROMPT = "Once upon a time"


@pytest.fixture
def client(server: Served) -> Iterator[Any]:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def test_openai_completions(client: Any, model: refgpt.Model) -> None:
    answer = client.completions.create(model="refgpt-default", prompt=PROMPT, max_tokens=9, seed=1, logprobs=2)
    want = model.generate(PROMPT, max_new_tokens=9, seed=1, logprobs=2)
    (choice,) = answer.choices
    assert choice.text == want.text and choice.logprobs.token_logprobs == want.logprobs
    assert answer.usage.completion_tokens == 9


def test_openai_streams(client: Any, model: refgpt.Model) -> None:
    options = {"include_usage": True}
    chunks = list(
        client.completions.create(
            model="refgpt-default", prompt=PROMPT, max_tokens=9, seed=1, stream=True, stream_options=options
        )
    )
    text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
    assert text == model.generate(PROMPT, max_new_tokens=9, seed=1).text
    assert chunks[-1].usage.completion_tokens == 9


def test_openai_chats_and_embeddings(client: Any, model: refgpt.Model) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "seed": 1, "model": "refgpt-default"}
    whole = client.chat.completions.create(**body).choices[0].message.content
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**body, stream=True)]
    assert "".join(pieces) == whole
    found = client.embeddings.create(model="refgpt-default", input=["A king", "A queen"])
    assert [one.embedding for one in found.data] == model.embed(["A king", "A queen"]).tolist()
    assert client.models.list().data[0].id == "refgpt-default"


def test_openai_errors(client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError) as fault:
        client.completions.create(model="refgpt-default", prompt="word " * 600)
    assert fault.value.code == "context_length_exceeded" and fault.value.param == "prompt"
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="gpt-4", prompt="x")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="refgpt-default", prompt="x", suffix="y")


def test_openai_leaves_a_stream(client: Any, server: Served) -> None:
    stream = client.completions.create(model="refgpt-default", prompt=PROMPT, max_tokens=480, stream=True, seed=1)
    next(iter(stream))
    stream.close()
    server.wait_until(lambda: server.state.core.n_open == 0)


def test_openai_keys(model: refgpt.Model) -> None:
    openai = pytest.importorskip("openai")
    with serving(model, api_keys=("right",)) as server:
        for key, works in (("right", True), ("wrong", False)):
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as client:
                if works:
                    assert client.completions.create(model="refgpt-default", prompt="x", max_tokens=1).choices
                else:
                    with pytest.raises(openai.AuthenticationError):
                        client.completions.create(model="refgpt-default", prompt="x", max_tokens=1)


QUESTIONS = [
    ("The king had a", " crown"),
    ("The king had a", " daughter"),
    ("Once upon a time there was a", " little girl who lived in a house."),
    ("It rained, and so", " they went home."),
    ("", "Once upon a time"),
]


def lm_eval_model(server: Served, **options: Any) -> Any:
    pytest.importorskip("tenacity")  # which lm-eval's clients need, and its own package does not bring
    models = pytest.importorskip("lm_eval.models.openai_completions")
    return models.LocalCompletionsAPI(
        base_url=f"{server.url}/v1/completions", model="refgpt-default", max_length=500, max_gen_toks=8, **options
    )


def ask(kind: str, arguments: list[tuple]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, i, metadata=("task", i, 1)) for i, one in enumerate(arguments)]


@pytest.mark.parametrize(
    "options",
    [{"num_concurrent": 1}, {"num_concurrent": 3, "batch_size": 2}, {"tokenized_requests": False}],
    ids=str,
)
def test_lm_eval(server: Served, model: refgpt.Model, options: dict) -> None:
    """The model's own numbers to the last bit: alone, in batches and concurrently, from ids and from texts."""
    subject = lm_eval_model(server, **options)
    assert subject.tokenizer_backend == "remote"
    questions = QUESTIONS if options.get("tokenized_requests", True) else QUESTIONS[:-1]
    found = subject.loglikelihood(ask("loglikelihood", questions))
    for (logprob, greedy), (context, continuation) in zip(found, questions, strict=True):
        ids = model.tokenizer.encode(context) or [model.tokenizer.eos_id]
        whole = model.tokenizer.encode(context + continuation)
        following = whole[len(ids) :] if context else whole
        ((scores, likeliest),) = model.score(ids, [following], return_greedy=True)
        assert logprob == sum(scores.tolist()) and greedy == likeliest
    written = subject.generate_until(ask("generate_until", [(PROMPT, {"until": ["\n"]}), ("A dog", {"until": ["."]})]))
    for text, prompt, stop in zip(written, (PROMPT, "A dog"), ("\n", "."), strict=True):
        assert text == model.generate(prompt, max_new_tokens=8, temperature=0, stop=stop).text


def test_lm_eval_rolls_over_a_text(server: Served, model: refgpt.Model) -> None:
    text = "Once upon a time there was a king. " * 4
    (rolled,) = lm_eval_model(server).loglikelihood_rolling(ask("loglikelihood_rolling", [(text,)]))
    scores = model.score([model.tokenizer.eos_id], [model.tokenizer.encode(text)])[0]
    assert rolled == sum(scores.tolist())


def test_lm_eval_without_a_tokenizer(server: Served, model: refgpt.Model) -> None:
    """Texts instead of ids; lm-eval then does not know where a continuation begins, and only generates."""
    subject = lm_eval_model(server, tokenizer_backend="none", tokenized_requests=False)
    assert subject.generate_until(ask("generate_until", [(PROMPT, {"until": ["\n"]})])) == [
        model.generate(PROMPT, max_new_tokens=8, temperature=0, stop="\n").text
    ]
