"""Completions and chat completions: their forms, and the same bits as ``Model.generate`` and ``Model.score``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import tokenizers

import refgpt
from refgpt.generation.chat_templates import TEMPLATES
from tests.helpers.servers import Served, serving

PROMPT = "Once upon a time"


def test_a_completion_is_that_of_generate(server: Served, model: refgpt.Model) -> None:
    answer = server.post("/v1/completions", prompt=PROMPT, max_tokens=12, seed=1, user="somebody", unknown={"x": 1})
    want = model.generate(PROMPT, max_new_tokens=12, seed=1)
    assert answer["choices"] == [{"index": 0, "text": want.text, "logprobs": None, "finish_reason": want.finish_reason}]
    assert answer["object"] == "text_completion" and answer["model"] == "refgpt-default"
    assert answer["id"].startswith("cmpl-") and isinstance(answer["created"], int)
    n = len(model.tokenizer.encode(PROMPT))
    assert answer["usage"] == {"prompt_tokens": n, "completion_tokens": 12, "total_tokens": n + 12}


def test_the_default_is_sixteen_tokens(server: Served) -> None:
    assert server.post("/v1/completions", prompt=PROMPT, ignore_eos=True)["usage"]["completion_tokens"] == 16


def test_several_prompts_and_texts(server: Served, model: refgpt.Model) -> None:
    prompts = [PROMPT, "There was a king", model.tokenizer.encode("The sea")]
    body = {"prompt": prompts, "max_tokens": 6, "seed": 4, "n": 2, "temperature": 0.8, "top_p": 0.9}
    choices = server.post("/v1/completions", **body)["choices"]
    want = model.generate(prompts, max_new_tokens=6, seed=4, n=2, temperature=0.8, top_p=0.9)
    assert [choice["index"] for choice in choices] == list(range(6))
    assert [choice["text"] for choice in choices] == [one.text for own in want for one in own]


@pytest.mark.parametrize(
    "given",
    [
        {"top_k": 5, "min_p": 0.05},
        {"typical_p": 0.9, "repetition_penalty": 1.2},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"logit_bias": {"262": 5, "300": -100}},
        {"temperature": 0},
        {"stop": ["the", "."], "ignore_eos": True},
        {"mask": "prefix"},
    ],
    ids=str,
)
def test_parameters_reach_the_engine(server: Served, model: refgpt.Model, given: dict) -> None:
    (choice,) = server.post("/v1/completions", prompt=PROMPT, max_tokens=20, seed=2, **given)["choices"]
    changed = dict(given)
    if "logit_bias" in changed:
        changed["logit_bias"] = {int(token): bias for token, bias in given["logit_bias"].items()}
    subject = refgpt.load(mask=changed.pop("mask")) if "mask" in given else model
    want = subject.generate(PROMPT, max_new_tokens=20, seed=2, **changed)
    assert (choice["text"], choice["finish_reason"]) == (want.text, want.finish_reason)


def test_a_stream_has_the_same_text(server: Served) -> None:
    body = {"prompt": [PROMPT, "A dog"], "n": 2, "max_tokens": 10, "seed": 3, "echo": True, "stop": ["dragon"]}
    whole = server.post("/v1/completions", **body)
    *events, last, done = server.stream("/v1/completions", **body, stream=True, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(event["usage"] is None and event["object"] == "text_completion" for event in events)
    assert len({event["id"] for event in events}) == 1
    texts = {choice["index"]: "" for choice in whole["choices"]}
    reasons = {}
    for event in events:
        (choice,) = event["choices"]
        assert choice["index"] not in reasons
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"] is not None:
            reasons[choice["index"]] = choice["finish_reason"]
    assert [texts[i] for i in range(4)] == [choice["text"] for choice in whole["choices"]]
    assert [reasons[i] for i in range(4)] == [choice["finish_reason"] for choice in whole["choices"]]


def test_a_stream_without_usage_says_nothing_of_it(server: Served) -> None:
    *events, done = server.stream("/v1/completions", prompt=PROMPT, max_tokens=2, seed=1, stream=True)
    assert done == "[DONE]" and all("usage" not in event for event in events)


@pytest.mark.parametrize("mask", ["causal", "prefix"])
@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_echoed_log_probabilities_are_those_of_score(server: Served, mask: str, max_tokens: int) -> None:
    subject = refgpt.load(mask=mask)
    text = "Once upon a time there was a king who had three sons. " * 6
    body = {"prompt": text, "max_tokens": max_tokens, "echo": True, "logprobs": 3, "seed": 1, "mask": mask}
    (choice,) = server.post("/v1/completions", **body)["choices"]
    found, ids = choice["logprobs"], subject.tokenizer.encode(text)
    want = subject.score(ids[:1], [ids[1:]])[0].tolist()
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert found["token_logprobs"][1 : len(ids)] == want  # to the last bit
    assert found["token_ids"][: len(ids)] == ids
    assert len(found["tokens"]) == len(ids) + max_tokens
    new = found["token_ids"][len(ids) :]
    if new:
        generated = subject.generate(text, max_new_tokens=max_tokens, seed=1, logprobs=3)
        assert new == generated.ids and found["token_logprobs"][len(ids) :] == generated.logprobs
    for token, logprob, top in zip(
        found["tokens"][1:], found["token_logprobs"][1:], found["top_logprobs"][1:], strict=True
    ):
        assert top[token] == logprob and 3 <= len(top) <= 4
    for offset, token in zip(found["text_offset"], found["tokens"], strict=True):
        assert choice["text"][offset:].startswith(token.strip() if offset == 0 else token)


def test_log_probabilities_in_a_stream(server: Served) -> None:
    body = {"prompt": PROMPT, "max_tokens": 8, "seed": 5, "echo": True, "logprobs": 2}
    whole = server.post("/v1/completions", **body)["choices"][0]["logprobs"]
    *events, _ = server.stream("/v1/completions", **body, stream=True)
    for name in whole:
        assert [one for event in events for one in event["choices"][0]["logprobs"][name]] == whole[name]
    assert sum(event["choices"][0]["token_ids"] != [] for event in events) == 8


def test_offsets_count_the_prompt_also_without_echo(server: Served) -> None:
    (choice,) = server.post("/v1/completions", prompt=PROMPT, max_tokens=3, seed=1, logprobs=0)["choices"]
    assert choice["logprobs"]["text_offset"][0] == len(PROMPT)
    assert all(len(top) == 1 for top in choice["logprobs"]["top_logprobs"])


def test_a_generated_end_of_text_has_entries(server: Served, model: refgpt.Model) -> None:
    eos = model.tokenizer.eos_id
    body = {"prompt": PROMPT, "max_tokens": 5, "logprobs": 1, "logit_bias": {str(eos): 100}}
    (choice,) = server.post("/v1/completions", **body)["choices"]
    assert choice["text"] == "" and choice["finish_reason"] == "stop"
    assert choice["logprobs"]["token_ids"] == [eos] and len(choice["logprobs"]["token_logprobs"]) == 1


def test_every_likely_token_has_its_own_key(server: Served, model: refgpt.Model) -> None:
    text = "Ünïcödé 漢字 🙂"
    (choice,) = server.post("/v1/completions", prompt=text, max_tokens=1, logprobs=50, echo=True, seed=1)["choices"]
    tops = choice["logprobs"]["top_logprobs"][1:]
    assert all(len(top) in (50, 51) for top in tops)
    ids = choice["logprobs"]["top_token_ids"]
    assert ids[0] is None and all(found.keys() == top.keys() for found, top in zip(ids[1:], tops, strict=True))
    assert all(len(set(found.values())) == len(found) for found in ids[1:])
    assert all(model.tokenizer.token_bytes(i) == key.encode() for key, i in ids[-1].items() if ":" not in key)
    assert any(re.fullmatch(r"(bytes:(\\x[0-9a-f]{2})+)", token) for token in choice["logprobs"]["tokens"])


def test_best_of_returns_the_likeliest(server: Served, model: refgpt.Model) -> None:
    body = {"prompt": PROMPT, "max_tokens": 6, "seed": 9, "ignore_eos": True}
    answer = server.post("/v1/completions", **body, n=2, best_of=6)
    drawn = model.generate(PROMPT, max_new_tokens=6, seed=9, n=6, logprobs=0, ignore_eos=True)
    best = sorted(drawn, key=lambda one: -sum(one.logprobs) / len(one.ids))[:2]
    assert [choice["text"] for choice in answer["choices"]] == [one.text for one in best]
    assert answer["usage"]["completion_tokens"] == 36
    refused = server.ask("POST", "/v1/completions", {**body, "n": 1, "best_of": 3, "stream": True})
    assert refused.status == 400 and refused.json["error"]["param"] == "best_of"


def test_an_echo_alone_needs_no_model(server: Served) -> None:
    (choice,) = server.post("/v1/completions", prompt=PROMPT, max_tokens=0, echo=True)["choices"]
    assert choice["text"] == PROMPT and choice["finish_reason"] == "length"


def test_special_tokens_in_a_prompt_are_text_unless_asked_for(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    library.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=letters, vocab_size=300)
    library.train_from_iterator(["some text"], trainer)
    library.save(str(tmp_path / "tokenizer.json"))
    model = refgpt.load(tokenizer=tmp_path)
    text = "a<|endoftext|>b"
    n_plain, n_special = len(model.tokenizer.encode(text, special=False)), len(model.tokenizer.encode(text))
    assert n_special == 3 < n_plain

    def n_read(server: Served, path: str = "/v1/completions", **body: object) -> int:
        given = {"prompt": text, "messages": [{"role": "user", "content": text}], "max_tokens": 1, "seed": 1}
        return server.post(path, **given, **body)["usage"]["prompt_tokens"]

    with serving(model) as server:
        assert n_read(server) == n_read(server, parse_special=False) == n_plain
        assert n_read(server, parse_special=True) == n_special
        chat = "/v1/chat/completions"
        assert n_read(server, chat) - n_read(server, chat, parse_special=True) == n_plain - n_special
        assert len(server.post("/tokenize", prompt=text)["tokens"]) == n_special
    with serving(model, parse_special=True) as server:
        assert n_read(server) == n_special and n_read(server, parse_special=False) == n_plain


def test_several_texts_share_a_scored_prompt(server: Served, model: refgpt.Model) -> None:
    text = "There was once a poor woman who lived in a wood. " * 12
    body = {"prompt": text, "max_tokens": 6, "seed": 8, "n": 3, "echo": True, "logprobs": 1}
    choices = server.post("/v1/completions", **body)["choices"]
    want = model.generate(text, max_new_tokens=6, seed=8, n=3, logprobs=1)
    ids = model.tokenizer.encode(text)
    prompt = [None, *model.score(ids[:1], [ids[1:]])[0].tolist()]
    for choice, one in zip(choices, want, strict=True):
        assert choice["text"] == text + one.text
        assert choice["logprobs"]["token_logprobs"] == prompt + one.logprobs


def test_a_chat_completion(server: Served, model: refgpt.Model) -> None:
    template = TEMPLATES["base"]
    messages = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day."},
        {"role": "user", "content": [{"type": "text", "text": "Who is the king?"}]},
    ]
    answer = server.post("/v1/chat/completions", messages=messages, max_tokens=20, seed=2)
    prompt = template.prompt([("Hello", "Good day.")], "Who is the king?")
    want = model.generate(prompt, max_new_tokens=20, seed=2, stop=template.stop)
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": want.text.strip(), "refusal": None}
    assert choice["finish_reason"] == want.finish_reason and answer["object"] == "chat.completion"
    *events, done = server.stream("/v1/chat/completions", messages=messages, max_tokens=20, seed=2, stream=True)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert done == "[DONE]" and deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == want.text.strip()
    assert events[-1]["choices"][0]["finish_reason"] == want.finish_reason
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_log_probabilities_of_a_chat(server: Served) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "seed": 1, "ignore_eos": True}
    answer = server.post("/v1/chat/completions", **body, logprobs=True, top_logprobs=2)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 5
    assert all(bytes(one["bytes"]).decode() == one["token"] and len(one["top_logprobs"]) == 2 for one in content)


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({}, 400, "prompt", None),
        ({"prompt": PROMPT, "suffix": "end"}, 400, "suffix", None),
        ({"prompt": PROMPT, "model": "gpt-4"}, 404, "model", "model_not_found"),
        ({"prompt": PROMPT, "temperature": "hot"}, 400, "temperature", None),
        ({"prompt": PROMPT, "max_tokens": -1}, 400, "max_tokens", None),
        ({"prompt": PROMPT, "top_p": 2}, 400, "top_p", None),
        ({"prompt": PROMPT, "n": 1000}, 400, "n", None),
        ({"prompt": PROMPT, "logprobs": 1000}, 400, "logprobs", None),
        ({"prompt": PROMPT, "stop": ["x" * 1000]}, 400, "stop", None),
        ({"prompt": [PROMPT] * 200}, 400, "prompt", None),
        ({"prompt": [4096]}, 400, "prompt", None),
        ({"prompt": PROMPT, "mask": "full"}, 400, "mask", None),
        ({"prompt": PROMPT, "logit_bias": {str(i): 1 for i in range(2000)}}, 400, "logit_bias", None),
        ({"prompt": PROMPT, "bad_words_ids": [[i] for i in range(2000)]}, 400, "bad_words_ids", None),
        ({"prompt": "word " * 600}, 400, "prompt", "context_length_exceeded"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_used_is_refused(server: Served, body: dict, status: int, param: str, code: str | None) -> None:
    answer = server.ask("POST", "/v1/completions", body)
    assert answer.status == status
    error = answer.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", param, code)


def test_a_failure_after_the_first_event_is_an_event(model: refgpt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from refgpt.generation.sequence import Continuation

    take = Continuation._take

    def fail_at_the_third(self, logits):
        if len(self.text) == self.n_prompt + 2:
            raise refgpt.GenerationError("the model has had enough")
        return take(self, logits)

    monkeypatch.setattr(Continuation, "_take", fail_at_the_third)
    with serving(model) as server:
        *_, error, done = server.stream("/v1/completions", prompt=PROMPT, max_tokens=9, seed=1, stream=True)
        assert done == "[DONE]" and "had enough" in error["error"]["message"]
        whole = server.ask("POST", "/v1/completions", {"prompt": PROMPT, "max_tokens": 9, "seed": 1})
        assert whole.status == 500 and whole.json["error"]["type"] == "server_error"
        assert server.state.core.n_open == 0


def test_json_is_utf8(server: Served) -> None:
    text = "é\u2028\x85\0\x1c\r\n"  # Python's splitlines ends lines at all but the first
    raw = server.ask("POST", "/v1/completions", {"prompt": text, "max_tokens": 0, "echo": True}).content
    assert "é".encode() in raw and json.loads(raw)["choices"][0]["text"] == text
    assert len(raw.decode().splitlines()) == 1


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ({"regex": r" [0-9]{3}\."}, r" [0-9]{3}\."),
        ({"grammar": 'start: " yes" | " no"'}, r" yes| no"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 7}}, r"[567]"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["a", "b"]}}}}, r'"[ab]"'),
        ({"response_format": {"type": "text"}, "max_tokens": 0, "echo": True}, PROMPT),
    ],
    ids=lambda value: str(value)[:40],
)
def test_constraints_hold(server: Served, given: dict, pattern: str) -> None:
    pytest.importorskip("llguidance")
    body = {"prompt": PROMPT, "max_tokens": 30, "seed": 1} | given
    assert re.fullmatch(pattern, server.post("/v1/completions", **body)["choices"][0]["text"])


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"regex": "("}, "regex"),
        ({"grammar": "nonsense"}, "grammar"),
        ({"json_schema": 7}, "json_schema"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format"),
        ({"regex": "a", "grammar": "b"}, "grammar"),
    ],
    ids=str,
)
def test_constraints_that_are_none_are_refused(server: Served, given: dict, param: str) -> None:
    pytest.importorskip("llguidance")
    answer = server.ask("POST", "/v1/completions", {"prompt": PROMPT, **given})
    assert answer.status == 400 and answer.json["error"]["param"] == param


def test_beams(server: Served, model: refgpt.Model) -> None:
    body = {"prompt": PROMPT, "max_tokens": 8, "num_beams": 4, "n": 2}
    choices = server.post("/v1/completions", **body)["choices"]
    want = model.generate(PROMPT, max_new_tokens=8, num_beams=4, n=2)
    assert [choice["text"] for choice in choices] == [one.text for one in want]
    *events, _ = server.stream("/v1/completions", **body, stream=True)
    assert "".join(event["choices"][0]["text"] for event in events if event["choices"][0]["index"] == 1) == want[1].text


def test_a_model_without_a_tokenizer_takes_ids() -> None:
    model = refgpt.load(tokenizer=False)
    with serving(model) as server:
        body = {"prompt": [5, 6, 7], "max_tokens": 4, "seed": 1, "logprobs": 2, "echo": True, "ignore_eos": True}
        (choice,) = server.post("/v1/completions", **body)["choices"]
        want = model.generate([5, 6, 7], max_new_tokens=4, seed=1, ignore_eos=True).ids
        assert choice["text"] == "" and choice["token_ids"] == [5, 6, 7, *want]
        assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
        messages = {"messages": [{"role": "user", "content": "x"}]}
        for path, wrong in (
            ("/v1/completions", {"prompt": "x"}),
            ("/v1/completions", {"prompt": [5], "stop": "x"}),
            ("/v1/chat/completions", messages),
            ("/v1/embeddings", {"input": "x"}),
            ("/tokenize", {"prompt": "x"}),
            ("/detokenize", {"tokens": [5]}),
            ("/api/v1/generate", {"prompt": "x"}),
        ):
            assert server.ask("POST", path, wrong).status == 400, path
        assert server.post("/v1/embeddings", input=[5, 6])["data"]
        assert server.ask("GET", "/tokenizer_info").json["eos_token"] is None


def test_an_empty_prompt_begins_a_text(server: Served, model: refgpt.Model) -> None:
    for prompt in ("", [""]):
        (choice,) = server.post("/v1/completions", prompt=prompt, max_tokens=6, seed=1)["choices"]
        assert choice["text"] == model.generate("", max_new_tokens=6, seed=1).text


def test_a_prompt_keeps_its_end_if_asked_to(server: Served, model: refgpt.Model) -> None:
    text = "It rained all day. " * 200
    answer = server.post("/v1/completions", prompt=text, max_tokens=6, seed=1, truncate="left")
    assert answer["choices"][0]["text"] == model.generate(text, max_new_tokens=6, seed=1, truncate="left").text
    assert answer["usage"]["prompt_tokens"] == model.config.n_ctx - 6


def test_large_answers_are_put_together_beside_the_event_loop(
    server: Served, model: refgpt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refgpt.server import state

    monkeypatch.setattr(state, "SHORT", 100)
    ids = model.tokenizer.encode("There was once a king who had a golden bird. " * 20)[:200]
    choices = server.post("/v1/completions", prompt=[ids] * 2, max_tokens=1, echo=True, logprobs=1, seed=1)["choices"]
    want = model.score(ids[:1], [ids[1:]])[0].tolist()
    assert all(choice["logprobs"]["token_logprobs"][1:-1] == want for choice in choices)
    assert len(choices) == 2


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/embeddings", "/tokenize", "/inspect", "/api/v1/generate"])
def test_a_text_of_too_many_characters_is_refused(model: refgpt.Model, path: str) -> None:
    with serving(model, max_prompt_chars=30) as server:
        body = {"prompt": "x" * 31, "input": "x" * 31, "max_tokens": 1, "seed": 1}
        refused = server.ask("POST", path, body)
        assert refused.status == 400 and b"31 characters are more than this server allows, 30" in refused.content
        assert server.post(path, prompt="x" * 30, input="x" * 30, max_tokens=1, seed=1)
