"""Clients that send nonsense: every field of every interface with every kind of value, and never a 500."""

from __future__ import annotations

import asyncio
import http.client
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refgpt
from tests.helpers.servers import Served, serving
from tests.helpers.work import HANGS

#: Values of every kind that JSON has, and some that are on an edge.
VALUES = [
    *(None, True, False, 0, 1, -1, 2, 7.5, -0.0, 1e308, 10**30, -(10**400), "", "x", "\0", "1", "true", "\ud800"),
    *([], [[]], {}, [None], [1, "x"], [[1], "x"], {"a": {}}, ["x"] * 40, "\u202e" * 50, [1.0], [True], [-1], [10**20]),
    *([[1, 2], [3]], [{}], {"include_usage": 7}, {"1": "x"}, {"x": 1}, {"-1": 1}, {"99999": 1}, {"1": 10**400}),
]
FIELDS = {
    "/v1/completions": [
        *("model", "prompt", "max_tokens", "temperature", "top_p", "n", "best_of", "stop", "seed", "echo", "logprobs"),
        *("logit_bias", "presence_penalty", "frequency_penalty", "stream", "stream_options", "user", "suffix", "top_k"),
        *("min_p", "typical_p", "repetition_penalty", "mask", "ignore_eos", "json_schema", "regex", "grammar"),
        *("parse_special", "truncate", "num_beams", "speculate", "bad_words_ids", "eos_token_id", "constraint"),
        *("suppress_tokens", "sequence_bias", "exponential_decay_length_penalty", "min_new_tokens", "length_penalty"),
        *("no_repeat_ngram_size", "logits_processor", "stopping_criteria", "response_format", "repeat_last_n"),
    ],
    "/v1/chat/completions": ["messages", "max_completion_tokens", "logprobs", "top_logprobs", "n", "tools", "stop"],
    "/v1/embeddings": ["model", "input", "encoding_format", "dimensions", "layer", "pooling", "user"],
    "/tokenize": ["prompt", "content", "text", "parse_special"],
    "/detokenize": ["tokens"],
    "/inspect": ["prompt", "position", "token", "what", "parse_special"],
    "/api/v1/generate": [
        *("prompt", "max_length", "max_context_length", "n", "temperature", "top_p", "top_k", "min_p", "typical"),
        *("rep_pen", "rep_pen_range", "sampler_order", "sampler_seed", "stop_sequence", "singleline", "trim_stop"),
        *("tfs", "genkey", "grammar", "ban_eos_token", "use_default_badwordsids"),
    ],
    "/api/extra/generate/stream": ["prompt", "genkey", "max_length"],
    "/api/extra/generate/check": ["genkey"],
    "/api/extra/abort": ["genkey"],
    "/api/extra/tokencount": ["prompt"],
    "/api/extra/embeddings": ["input", "model"],
    "/complete": ["context", "temp", "top_p", "length", "seed"],
    "/completion": ["context", "temp", "top_p", "response_length", "remove_input", "seed"],
    "/model/predict": ["context", "temp", "top_p", "top_k", "length"],
    "/model/get_prediction": ["qid"],
}
#: What makes each interface's answer short.
BASES = {
    "/v1/completions": {"prompt": "x", "max_tokens": 1, "seed": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, "seed": 1},
    "/v1/embeddings": {"input": "x"},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [5]},
    "/inspect": {"prompt": "x", "what": ["lens"]},
    "/api/v1/generate": {"prompt": "x", "max_length": 1},
    "/api/extra/generate/stream": {"prompt": "x", "max_length": 1},
    "/api/extra/tokencount": {"prompt": "x"},
    "/api/extra/embeddings": {"input": "x"},
    "/complete": {"context": "x", "length": 1},
    "/completion": {"context": "x", "response_length": 1},
    "/model/predict": {"context": "x", "length": 1},
    "/model/get_prediction": {"qid": 10**9},
}


@pytest.fixture(scope="module")
def small(model: refgpt.Model):
    """A server that writes few tokens whatever it is asked for."""
    with serving(model, max_tokens=2) as served:
        yield served


def raw(body: object) -> bytes:
    """JSON; numbers that are too large for Python's limits are written digit by digit."""
    return json.dumps(body, default=str).encode()


@pytest.mark.parametrize("path", FIELDS)
def test_no_value_of_any_field_is_the_servers_fault(small: Served, path: str) -> None:
    form = "detail" if path.startswith("/api") else "error"
    for field in FIELDS[path]:
        for value in VALUES:
            answer = small.ask("POST", path, raw(BASES.get(path, {}) | {field: value}), keep=True)
            assert answer.status in (200, 400, 404, 413, 422), (field, value, answer.content)
            if answer.status != 200:
                assert form in answer.json, (field, value)
            assert b"Traceback" not in answer.content
    assert small.post("/v1/completions", prompt="x", max_tokens=1, seed=1)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'"x"', 400),
        (b'{"prompt": "x", "temperature": NaN}', 400),
        (b'{"prompt": "x", "temperature": Infinity}', 400),
        (b'{"prompt": "x", "temperature": 1e999}', 400),
        (b'{"prompt": "\xff"}', 400),
        (b'{"prompt": "\\ud83d"}', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 100_000, 400),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", 400),
        (b'\xef\xbb\xbf{"prompt": "x", "max_tokens": 1}', 200),
        (b'{"prompt": "x", "max_tokens": 1, "prompt": "y"}', 200),
        (b" " * 100 + b'{"prompt": "x\\u0000y", "max_tokens": 1}', 200),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bodies_that_are_no_requests(small: Served, body: bytes, status: int) -> None:
    answer = small.ask("POST", "/v1/completions", body)
    assert answer.status == status
    assert status == 200 or answer.json["error"]["message"].isprintable()


@pytest.mark.parametrize("how", ["large", "chunks", "no JSON", "no such path", "another site"])
def test_a_client_that_is_still_sending_sees_why_it_is_refused(model: refgpt.Model, how: str) -> None:
    """More than the buffers of a connection hold, sent before the answer is read."""
    body = b"x" * (24 << 20)
    headers = {"content-type": "text/plain" if how == "no JSON" else "application/json"}
    if how == "another site":
        headers["origin"] = "https://example.org"
    path = "/nothing" if how == "no such path" else "/v1/completions"
    want = {"no JSON": 415, "no such path": 404, "another site": 403}.get(how, 413)
    with serving(model, max_body_bytes=16 << 20) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=HANGS)
        sent = iter([body]) if how == "chunks" else body
        connection.request("POST", path, sent, headers, encode_chunked=how == "chunks")
        answer = connection.getresponse()
        assert answer.status == want and "error" in json.loads(answer.read())
        connection.close()


@pytest.mark.parametrize("body_timeout", [0, 30], ids=["any time", "30 s"])
def test_a_refused_client_that_goes_on_is_cut_off(
    model: refgpt.Model, monkeypatch: pytest.MonkeyPatch, body_timeout: float
) -> None:
    """The connection of one that sends no more is closed soon, however long a body may take."""
    from refgpt.server import exchange

    monkeypatch.setattr(exchange, "DISCARDING", 0.2)
    with serving(model, body_timeout=body_timeout) as server, server.connect() as connection:
        connection.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        answer = b""
        while piece := connection.recv(1000):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 404 ") and answer.endswith(b"}")


@pytest.mark.parametrize(("most", "taken"), [(1000, 2000), (1 << 30, 1 << 26)])
def test_how_much_of_a_refused_body_is_taken(most: int, taken: int) -> None:
    pytest.importorskip("starlette")
    from refgpt.server import ServerSettings
    from refgpt.server.exchange import Exchange

    n, piece = 0, bytes(taken // 10)
    closed = []

    async def receive() -> dict:
        nonlocal n
        n += 1
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(message: dict) -> None:
        pass

    scope = {"headers": [(b"transfer-encoding", b"chunked")], "refgpt.close": lambda: closed.append(n)}
    exchange = Exchange(scope, receive, send, ServerSettings(max_body_bytes=most))
    asyncio.run(exchange.refuse({}, 404))
    assert taken <= n * len(piece) < taken + 2 * len(piece) and closed == [n]


def test_large_bodies_are_refused_before_they_are_read(model: refgpt.Model) -> None:
    with serving(model, max_body_bytes=1000) as server:
        assert (
            server.ask("POST", "/v1/completions", {"prompt": "x" * 300, "user": "x" * 600, "max_tokens": 1}).status
            == 200
        )
        refused = server.ask("POST", "/v1/completions", {"prompt": "x", "user": "x" * 1000})
        assert refused.status == 413 and refused.json["error"]["code"] == "body_too_large"
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        with server.connect() as connection:  # it says so and sends nothing
            connection.sendall(head + b"Content-Length: 99999999999999\r\n\r\n")
            assert connection.recv(50).startswith(b"HTTP/1.1 413 ")
        with server.connect() as connection:  # it does not say so
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n" + b"800\r\n" + b" " * 0x800 + b"\r\n")
            assert connection.recv(50).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 20_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=lambda sent: str(sent[:40]),
)
def test_what_is_no_http(small: Served, sent: bytes) -> None:
    with small.connect() as connection:
        answer = b""
        try:
            connection.sendall(sent)
            connection.shutdown(1)
            while piece := connection.recv(4096):
                answer += piece
        except TimeoutError:
            raise
        except OSError:  # the server may drop it at any time
            pass
    assert not answer or answer.split(b" ", 2)[1] in (b"400", b"404", b"411", b"413", b"415", b"421", b"431"), answer
    assert small.ask("GET", "/health").status == 200


def test_clients_that_leave_at_any_byte(small: Served) -> None:
    body = raw({"prompt": "x", "max_tokens": 2, "stream": True, "seed": 1})
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    sent = head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body
    places = random.Random(1)
    for n in [*(places.randrange(len(sent)) for _ in range(40)), *([len(sent)] * 20)]:
        with small.connect() as connection:
            connection.sendall(sent[:n])
            if n == len(sent) and places.random() < 0.5:
                connection.recv(places.randrange(1, 400))
    small.wait_until(lambda: small.state.core.n_open == 0 == small.state.core.n_running)
    small.wait_until(lambda: not small.running.server_state.tasks)


@settings(max_examples=60)
@given(
    text=st.text(max_size=30),
    stop=st.lists(st.text(min_size=1, max_size=4), max_size=3),
    n=st.integers(1, 2),
    logprobs=st.one_of(st.none(), st.integers(0, 3)),
    echo=st.booleans(),
    stream=st.booleans(),
)
def test_any_text_goes_through(
    small: Served, text: str, stop: list, n: int, logprobs: object, echo: bool, stream: bool
):
    body = {"prompt": text, "stop": stop, "n": n, "logprobs": logprobs, "echo": echo, "stream": stream, "seed": 3}
    answer = small.ask("POST", "/v1/completions", body | {"max_tokens": 2})
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        assert answer.status == 400
        return
    assert answer.status == 200
    if not stream:
        choices = answer.json["choices"]
        assert all(choice["text"].startswith(text) for choice in choices if echo)
