"""SillyTavern's requests, of both kinds that fit this server: KoboldAI Classic, and Text Completion with its types.

Paths, fields and default values are those of its source: ``kobold.js``, ``text-completions.js`` and ``tokenizers.js``
in ``src/endpoints``, ``src/constants.js``, and ``kai-settings.js`` and ``textgen-settings.js`` in ``public/scripts``.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

import refgpt
from tests.helpers.servers import Served

PROMPT = "Assistant: Good morning!\nYou: Tell me a tale.\nAssistant:"
STOPS = ["\nYou:", "\nAssistant:", "\n***", "###", "dragon"]
N, SEED = 14, 3

#: KoboldAI Classic, with SillyTavern's own defaults.
KOBOLD_GUI = {
    **{"prompt": PROMPT, "use_story": False, "use_memory": False, "use_authors_note": False, "use_world_info": False},
    **{"max_context_length": 400, "max_length": N},
}
KOBOLD = KOBOLD_GUI | {
    **{"rep_pen": 1, "rep_pen_range": 0, "rep_pen_slope": 0.9, "temperature": 1, "tfs": 1, "top_a": 1, "top_k": 0},
    **{"top_p": 1, "min_p": 0, "typical": 1, "sampler_order": [0, 1, 2, 3, 4, 5, 6], "singleline": False},
    **{"use_default_badwordsids": False, "mirostat": 0, "mirostat_eta": 0.1, "mirostat_tau": 5, "grammar": ""},
    **{"sampler_seed": SEED, "stop_sequence": STOPS},
}

#: Text Completion: what all types send.
COMMON = {
    **{"prompt": PROMPT, "max_new_tokens": N, "max_tokens": N, "temperature": 0.7, "top_p": 0.5, "typical_p": 1},
    **{"typical": 1, "sampler_seed": SEED, "min_p": 0, "repetition_penalty": 1.2, "frequency_penalty": 0},
    **{"presence_penalty": 0, "top_k": 40, "skew": 0, "min_tokens": 0, "add_bos_token": True, "smoothing_factor": 0},
    **{"smoothing_curve": 1, "dry_allowed_length": 2, "dry_multiplier": 0, "dry_base": 1.75},
    **{"dry_sequence_breakers": '["\\n", ":", "\\"", "*"]', "dry_penalty_last_n": 0, "max_tokens_second": 0},
    **{"stopping_strings": STOPS, "stop": STOPS, "truncation_length": 400, "ban_eos_token": False},
    **{"skip_special_tokens": True, "include_reasoning": True, "top_a": 0, "tfs": 1, "mirostat_mode": 0},
    **{"mirostat_tau": 5, "mirostat_eta": 0.1, "custom_token_bans": "", "banned_strings": [], "xtc_threshold": 0.1},
    **{"xtc_probability": 0, "nsigma": 0, "top_n_sigma": 0, "min_keep": 0, "api_server": "http://127.0.0.1:8080"},
}
#: What most of them send beside it, among it llama.cpp's names.
MOST = {
    **{"rep_pen": 1.2, "rep_pen_range": 0, "repetition_penalty_range": 0, "seed": SEED, "guidance_scale": 1},
    **{"negative_prompt": "", "repeat_penalty": 1.2, "repeat_last_n": 0, "n_predict": N, "num_predict": N},
    **{"num_ctx": 400, "mirostat": 0, "ignore_eos": False, "rep_pen_slope": 1},
}
#: What each type sends to /v1/completions. "generic" and "vllm" send no other fields than these.
TYPES: dict[str, dict[str, Any]] = {
    "generic": {
        **{"prompt": PROMPT, "temperature": 0.7, "top_p": 0.5, "frequency_penalty": 0, "presence_penalty": 0},
        **{"stop": STOPS[:4], "seed": SEED, "max_tokens": N},
    },
    "vllm": {
        **{"prompt": PROMPT, "temperature": 0.7, "top_p": 0.5, "frequency_penalty": 0, "presence_penalty": 0},
        **{"stop": STOPS, "seed": SEED, "max_tokens": N, "n": 1, "top_k": -1, "min_p": 0, "repetition_penalty": 1.2},
        **{"ignore_eos": False, "min_tokens": 0, "skip_special_tokens": True, "spaces_between_special_tokens": True},
    },
    "ooba": COMMON
    | MOST
    | {
        **{"api_type": "ooba", "min_length": 0, "num_beams": 1, "length_penalty": 1, "early_stopping": False},
        **{"sampler_priority": ["repetition_penalty", "temperature", "top_k", "top_p"], "epsilon_cutoff": 0},
        **{"eta_cutoff": 0, "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0, "penalty_alpha": 0},
        **{"temperature_last": True, "do_sample": True},
    },
    "koboldcpp": COMMON
    | MOST
    | {
        **{"api_type": "koboldcpp", "sampler_order": [6, 0, 1, 3, 4, 2, 5], "trim_stop": True},
        **{"dry_sequence_breakers": ["\n", ":", '"', "*"], "logit_bias": {"11": -100}},
    },
    "tabby": COMMON
    | MOST
    | {"api_type": "tabby", "repetition_decay": 0, "temperature_last": True, "speculative_ngram": False, "n": 1},
    "aphrodite": COMMON
    | {
        **{"api_type": "aphrodite", "n": 1, "seed": SEED, "temperature_last": True, "eta_cutoff": 0},
        **{"epsilon_cutoff": 0, "ignore_eos": False, "spaces_between_special_tokens": True, "early_stopping": False},
        **{"include_stop_str_in_output": False, "custom_token_bans": [], "no_repeat_ngram_size": 0},
    },
}
#: What the fields that differ mean.
WANTED: dict[str, dict[str, Any]] = {
    "generic": {"repetition_penalty": 1.0, "top_k": 0, "stop": STOPS[:4]},
    "vllm": {"top_k": 0},
    "koboldcpp": {"logit_bias": {11: -100}},
}


def wanted(model: refgpt.Model, **changes: Any) -> refgpt.Generation:
    return model.generate(PROMPT, max_new_tokens=N, seed=SEED, **changes)


def events(server: Served, path: str, body: dict[str, Any]) -> list[Any]:
    """The events of a stream, as SillyTavern reads them: blocks that an empty line ends, with "data:" lines."""
    answer = server.ask("POST", path, body)
    assert answer.status == 200 and answer.headers["content-type"].startswith("text/event-stream")
    blocks = answer.content.decode().split("\n\n")
    assert blocks.pop() == ""
    data = [line[5:].strip() for block in blocks for line in block.split("\n") if line.startswith("data")]
    assert len(data) == len(blocks)
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def test_kobold_status(server: Served) -> None:
    """Three questions on connecting; all extras are used where the second one's result is "KoboldCpp"."""
    version = server.ask("GET", "/api/v1/info/version").json["result"]
    assert [int(part) for part in version.split(".")] >= [
        1,
        2,
        4,
    ]  # stop sequences since 1.2.2, the end banned since 1.2.4
    assert server.ask("GET", "/api/extra/version").json["result"] == "KoboldCpp"
    assert server.ask("GET", "/api/v1/model").json["result"] not in ("", "ReadOnly")


def test_kobold_generates(server: Served, model: refgpt.Model) -> None:
    (result,) = server.post("/api/v1/generate", **KOBOLD)["results"]
    want = wanted(model, stop=STOPS)
    stop = model.tokenizer.decode(want.ids)[len(want.text) :] if want.finish_reason == "stop" else ""
    assert result["text"] == want.text + next((one for one in STOPS if stop.startswith(one)), "")
    pieces = events(server, "/api/extra/generate/stream", KOBOLD)
    assert "".join(piece["token"] for piece in pieces) == result["text"]
    (result,) = server.post("/api/v1/generate", **KOBOLD_GUI)["results"]
    assert result["completion_tokens"] <= N


def test_kobold_errors_have_a_message(server: Served) -> None:
    answer = server.ask("POST", "/api/v1/generate", KOBOLD | {"max_length": 0})
    assert answer.status == 422 and "max_length" in answer.json["detail"]["msg"]


def test_kobold_is_told_to_stop(server: Served) -> None:
    """By a request without a body or a media type, and by closing the connection."""
    body = KOBOLD | {"max_length": 400, "use_default_badwordsids": True, "stop_sequence": []}
    with server.send("/api/extra/generate/stream", **body) as connection:
        server.wait_until(lambda: server.state.core.n_running == 1)
        answer = server.ask("POST", "/api/extra/abort")
        assert answer.status == 200
        connection.close()
    server.wait_until(lambda: server.state.core.n_open == 0)


def test_kobold_counts_tokens(server: Served, model: refgpt.Model) -> None:
    ids = model.tokenizer.encode(PROMPT)
    for extra in ({}, {"special": False}):  # KoboldAI Classic's, and Text Completion's
        assert server.post("/api/extra/tokencount", prompt=PROMPT, **extra) == {"value": len(ids), "ids": ids}


def test_kobold_embeds(server: Served, model: refgpt.Model) -> None:
    texts = ["A king", "A queen"]
    answer = server.post("/api/extra/embeddings", input=texts)
    assert answer["model"] and [one["index"] for one in answer["data"]] == [0, 1]
    assert [one["embedding"] for one in answer["data"]] == model.embed(texts).tolist()
    refused = server.ask("POST", "/api/extra/embeddings", {"input": []})
    assert refused.status == 400 and "msg" in refused.json["detail"]


def test_text_completion_status(server: Served) -> None:
    (model,) = server.ask("GET", "/v1/models", authorization="Bearer ").json["data"]
    assert model["id"]
    assert server.ask("GET", "/v1/internal/model/info").status == 404  # "ooba" goes on without it
    assert server.ask("GET", "/props").status == 404


@pytest.mark.parametrize("kind", TYPES)
def test_text_completion_generates(server: Served, model: refgpt.Model, kind: str) -> None:
    given = {"temperature": 0.7, "top_p": 0.5, "top_k": 40, "repetition_penalty": 1.2, "stop": STOPS}
    want = wanted(model, **(given | WANTED.get(kind, {})))
    (choice,) = server.post("/v1/completions", **TYPES[kind], stream=False)["choices"]
    assert (choice["text"], choice["finish_reason"]) == (want.text, want.finish_reason)
    *chunks, done = events(server, "/v1/completions", TYPES[kind] | {"stream": True})
    assert done == "[DONE]" and "".join(chunk["choices"][0]["text"] for chunk in chunks) == want.text


def test_text_completion_shows_probabilities(server: Served, model: refgpt.Model) -> None:
    body = TYPES["ooba"] | {"stream": True, "logprobs": 10, "n_probs": 10, "stop": []}
    *chunks, _ = events(server, "/v1/completions", body)
    tops = [chunk["choices"][0]["logprobs"]["top_logprobs"] for chunk in chunks if chunk["choices"][0]["text"]]
    assert tops and all(len(top) >= 1 and len(top[0]) in (10, 11) for top in tops)


def test_text_completion_shows_errors(server: Served) -> None:
    answer = server.ask("POST", "/v1/completions", TYPES["generic"] | {"prompt": "word " * 600, "stream": True})
    assert answer.status == 400 and "512" in answer.json["error"]["message"]


@pytest.mark.parametrize("body", [{"content": PROMPT}, {"model": "", "prompt": PROMPT}], ids=["llamacpp", "vllm"])
def test_text_completion_counts_tokens(server: Served, model: refgpt.Model, body: dict[str, str]) -> None:
    answer = server.post("/tokenize", **body)
    assert answer["tokens"] == model.tokenizer.encode(PROMPT) and answer["count"] == len(answer["tokens"])
