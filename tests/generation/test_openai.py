"""Requests in OpenAI's form become prompts and parameters, and texts become answers in its form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from refgpt import GenerationError, GenerationParams
from refgpt.generation.chat_templates import TEMPLATES, chat_template
from refgpt.generation.constraint import json_schema, regex
from refgpt.generation.openai import parse_chat, parse_completion
from refgpt.generation.openai_answers import completion_body, error_body, token_text
from refgpt.generation.results import Generation
from refgpt.tokenizers import Tokenizer

BASE = TEMPLATES["base"]


class Bytes(Tokenizer):
    """One id a byte, an end of text, and a gap."""

    def __init__(self) -> None:
        super().__init__({i: bytes([i]) for i in range(256)} | {256: b"<end>", 258: b"A"}, 256)

    def _encode(self, text: str, special: bool = True) -> list[int]:
        return list(text.encode())


def test_a_completion_has_openais_defaults():
    request = parse_completion({"prompt": "Once"})
    assert request.prompts == ("Once",) and not request.chat and not request.stream and not request.echo
    assert request.params == GenerationParams(max_new_tokens=16) and request.n == 1 and request.logprobs is None


def test_fields_become_parameters_and_what_is_null_or_unknown_counts_as_absent():
    body: dict[str, Any] = {
        "model": "m",
        "prompt": ["a", "b"],
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "n": 2,
        "seed": -1,
        "stop": ["x", "y"],
        "logprobs": 3,
        "logit_bias": {"7": -100},
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "user": "somebody",
        "stream": True,
        "stream_options": {"include_usage": True},
        "echo": True,
        "suffix": None,
        "top_k": 4,
        "min_p": 0.01,
        "ignore_eos": True,
        "a_field_of_another_server": {"x": 1},
    }
    request = parse_completion(json.loads(json.dumps(body)))
    assert request.prompts == ("a", "b") and request.model == "m"
    assert request.stream and request.include_usage and request.echo
    assert (request.n, request.logprobs) == (2, 3)
    assert request.params == GenerationParams(
        max_new_tokens=5,
        temperature=0.5,
        top_p=0.9,
        num_return_sequences=2,
        seed=(1 << 64) - 1,
        stop=["x", "y"],
        logprobs=3,
        logit_bias={7: -100.0},
        presence_penalty=0.1,
        frequency_penalty=0.2,
        top_k=4,
        min_p=0.01,
        ignore_eos=True,
    )


def test_prompts_may_be_ids_and_lists_of_them():
    assert parse_completion({"prompt": [1, 2]}).prompts == ([1, 2],)
    assert parse_completion({"prompt": [[1, 2], [3]]}).prompts == ([1, 2], [3])


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": 7}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": "many"}, "max_completion_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 3, "best_of": 2}, "best_of"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"logit_bias": {"seven": 1}}, "logit_bias"),
        ({"logit_bias": {"7": "much"}}, "logit_bias"),
        ({"suffix": "the end"}, "suffix"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": 1}, "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"model": 1}, "model"),
        ({"seed": 1.5}, "seed"),
        ({"echo": 1}, "echo"),
        ({"num_beams": 2, "stop": "x"}, "stop"),
        ({"logits_processor": "x", "top_k": -2}, "top_k"),
    ],
)
def test_a_bad_field_is_refused_by_its_own_name(fields, where):
    with pytest.raises(GenerationError) as refused:
        parse_completion({"prompt": "x", **fields})
    assert refused.value.where == where
    found = error_body(refused.value)
    assert found["param"] == where and found["type"] == "invalid_request_error" and where in found["message"]


def test_values_of_other_servers_that_turn_a_filter_off():
    others = GenerationParams(max_new_tokens=16, top_k=7, typical_p=0.5, repeat_last_n=9)
    for n_last in (0, -1):
        body = {"prompt": "x", "top_k": -1, "typical_p": 0, "repeat_last_n": n_last}
        found = parse_completion(body, top_k=7, typical_p=0.5, repeat_last_n=9).params
        assert found == GenerationParams(max_new_tokens=16, top_k=0)
    assert parse_completion({"prompt": "x"}, top_k=7, typical_p=0.5, repeat_last_n=9).params == others
    with pytest.raises(GenerationError):
        parse_completion({"prompt": "x", "top_k": False})


def test_a_chat_is_one_prompt_that_ends_where_the_next_turn_would_begin():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Who"},
        {"role": "user", "content": "are you?"},
    ]
    request = parse_chat({"messages": messages, "stop": "!", "max_tokens": 3, "n": 2}, BASE, 100)
    assert request.chat and request.n == 2
    assert request.prompts == ("Be brief.\n\nUser: Hi\nAssistant: Hello.\nUser: Who\n\nare you?\nAssistant:",)
    assert request.params.stop == (*BASE.stop, "!") and request.params.max_new_tokens == 3
    assert parse_chat({"messages": messages}, BASE, 100).params.max_new_tokens == 100


def test_the_beginning_of_an_answer_can_be_given_and_a_character_may_speak_first():
    messages = [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Hi"}]
    template = chat_template("pygmalion", "Ada", "She knows {algebra}.")
    assert template.prompt_of(messages) == "Ada's Persona: She knows {algebra}.\n<START>\nAda: Hello.\nYou: Hi\nAda:"
    begun = [{"role": "developer", "content": "Short."}, *messages[::-1]]
    assert template.prompt_of(begun) == "Ada's Persona: Short.\n<START>\nYou: Hi\nAda: Hello."
    assert TEMPLATES["alpaca"].prompt_of(messages[1:]).endswith("\n\n### Instruction:\nHi\n\n### Response:\n")


@pytest.mark.parametrize("name", TEMPLATES)
def test_messages_and_turns_give_one_prompt(name):
    template = chat_template(name, "Ada", "She knows algebra.")
    messages = [("user", "Hi"), ("assistant", "Hello."), ("user", "Well?")]
    by_messages = template.prompt_of([{"role": role, "content": text} for role, text in messages])
    assert by_messages == template.prompt([("Hi", "Hello.")], "Well?")


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        (None, "messages"),
        ([], "messages"),
        ("Hi", "messages"),
        ([{"role": "system", "content": "x"}], "messages"),
        (["Hi"], "messages[0]"),
        ([{"role": "user", "content": "x"}, {"role": "tool", "content": "x"}], "messages[1].role"),
        ([{"role": ["user"], "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([{"role": "assistant", "content": "x", "tool_calls": [1]}], "messages[0]"),
    ],
)
def test_bad_messages_are_refused_where_they_are_bad(messages, where):
    with pytest.raises(GenerationError) as refused:
        parse_chat({"messages": messages}, BASE, 100)
    assert refused.value.where == where


def test_tools_and_other_formats_are_refused_and_their_defaults_not():
    messages = [{"role": "user", "content": "x"}]
    parse_chat({"messages": messages, "tools": [], "response_format": {"type": "text"}, "metadata": {}}, BASE, 100)
    for fields in ({"tools": [{}]}, {"response_format": {"type": "xml"}}, {"tool_choice": "required"}):
        with pytest.raises(GenerationError) as refused:
            parse_chat({"messages": messages, **fields}, BASE, 100)
        assert refused.value.where in fields
    with pytest.raises(GenerationError, match="top_logprobs"):
        parse_chat({"messages": messages, "top_logprobs": 2}, BASE, 100)
    assert parse_chat({"messages": messages, "logprobs": True, "top_logprobs": 2}, BASE, 100).logprobs == 2
    assert parse_chat({"messages": messages, "logprobs": True}, BASE, 100).logprobs == 0


def test_a_text_can_be_held_to_a_constraint():
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    want = json_schema(schema)
    described = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    for fields in ({"json_schema": schema}, {"json_schema": json.dumps(schema)}, {"response_format": described}):
        assert parse_completion({"prompt": "x", **fields}).params.constraint == want
    messages = [{"role": "user", "content": "x"}]
    asked = parse_chat({"messages": messages, "response_format": {"type": "json_object"}}, BASE, 100)
    assert asked.params.constraint == json_schema({"type": "object"})
    assert parse_completion({"prompt": "x", "regex": "a+"}).params.constraint == regex("a+")
    bad: list[tuple[dict[str, Any], str]] = [
        ({"regex": "("}, "regex"),
        ({"json_schema": 5}, "json_schema"),
        ({"regex": "a", "json_schema": {}}, "regex|json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"response_format": "json"}, "response_format"),
    ]
    for fields, where in bad:
        with pytest.raises(GenerationError) as refused:
            parse_completion({"prompt": "x", **fields})
        assert refused.value.where in where.split("|")


def generation(ids: list[int], text: str, logprobs: Any = None, top: Any = None) -> Generation:
    return Generation(text, ids, "stop", logprobs, top, 4)


def test_an_answer_has_openais_shape():
    request = parse_completion({"prompt": ["Once", [79, 110]], "echo": True, "logprobs": 2, "n": 1})
    ids = [0xC3, 0xA9, 65, 256]
    top = [{0xC3: -0.5, 66: -1.0}, {0xA9: -0.1, 300: -4.0}, {258: -0.2, 300: -2.0}, {256: -0.1, 65: -3.0}]
    one = generation(ids, "éA", [-0.5, -0.1, -3.5, -0.1], top)
    body = completion_body(request, [[one], [one]], Bytes(), "cmpl-1", 7, "m")
    assert json.loads(json.dumps(body)) == body
    assert (body["id"], body["object"], body["created"], body["model"]) == ("cmpl-1", "text_completion", 7, "m")
    assert body["usage"] == {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16}
    first, second = body["choices"]
    assert (first["text"], first["index"], first["finish_reason"]) == ("OnceéA", 0, "stop")
    assert (second["text"], second["index"]) == ("OnéA", 1)
    assert first["logprobs"]["tokens"] == [r"bytes:\xc3", r"bytes:\xa9", "A", "<end>"]
    assert first["logprobs"]["token_logprobs"] == [-0.5, -0.1, -3.5, -0.1]
    assert first["logprobs"]["text_offset"] == [4, 4, 5, 6]
    # of two tokens of one text each has its entry, and so has the token that was drawn
    assert first["logprobs"]["top_logprobs"][2] == {"A": -0.2, "token_id:300": -2.0, "token_id:65": -3.5}


def test_a_chats_answer_has_openais_shape():
    messages = [{"role": "user", "content": "x"}]
    request = parse_chat({"messages": messages, "logprobs": True, "top_logprobs": 1}, BASE, 100)
    one = generation([65, 0xC3], " A\n", [-0.5, -0.1], [{65: -0.5}, {0xC3: -0.1}])
    body = completion_body(request, [[one]], Bytes(), "chatcmpl-1", 7, "m")
    (choice,) = body["choices"]
    assert body["object"] == "chat.completion"
    assert choice["message"] == {"role": "assistant", "content": "A", "refusal": None}
    assert choice["logprobs"]["content"] == [
        {
            "token": "A",
            "logprob": -0.5,
            "bytes": [65],
            "top_logprobs": [{"token": "A", "logprob": -0.5, "bytes": [65]}],
        },
        {
            "token": r"bytes:\xc3",
            "logprob": -0.1,
            "bytes": [0xC3],
            "top_logprobs": [{"token": r"bytes:\xc3", "logprob": -0.1, "bytes": [0xC3]}],
        },
    ]


def test_the_likeliest_of_best_of_are_returned_without_what_was_not_asked_for():
    request = parse_completion({"prompt": "x", "n": 2, "best_of": 3})
    assert request.params.num_return_sequences == 3 and request.params.n_alternatives == 0
    texts = [
        generation([65], "a", [-2.0]),
        generation([65, 65], "b", [-2.0, -1.0]),
        generation([65], "c", [-0.1]),
    ]
    body = completion_body(request, [texts], Bytes(), "cmpl-1", 7, "m")
    assert [choice["text"] for choice in body["choices"]] == ["c", "b"]
    assert [choice["logprobs"] for choice in body["choices"]] == [None, None]
    assert body["usage"]["completion_tokens"] == 4


def test_a_token_without_text_is_shown_by_its_id():
    assert token_text(257, Bytes()) == "token_id:257" and token_text(3, None) == "token_id:3"
