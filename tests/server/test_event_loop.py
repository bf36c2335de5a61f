"""The event loop answers others while large texts are tokenised, and large answers are built."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import refgpt
from tests.helpers.servers import Served, serving
from tests.helpers.work import HANGS

TEXT = "It rained all day. " * 1000
#: Every interface that takes a text, and what it has beside it.
TEXTS = {
    "/v1/completions": {"prompt": TEXT, "truncate": "left", "max_tokens": 1},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": TEXT}], "truncate": "left", "max_tokens": 1},
    "/v1/embeddings": {"input": [TEXT]},
    "/tokenize": {"prompt": TEXT},
    "/inspect": {"prompt": TEXT},
    "/api/v1/generate": {"prompt": TEXT, "max_length": 1},
    "/api/extra/generate/stream": {"prompt": TEXT, "max_length": 1},
    "/api/extra/tokencount": {"prompt": TEXT},
    "/complete": {"context": TEXT, "length": 1},
    "/completion": {"context": TEXT, "response_length": 1},
    "/model/predict": {"context": TEXT, "length": 1},
    "/detokenize": {"tokens": [300] * 9000},
}


class Held:
    """Calls of some functions that wait until others were answered. In the event loop they are only noted."""

    def __init__(self, loop_thread: threading.Thread) -> None:
        self.begun, self.go_on, self.in_loop = threading.Event(), threading.Event(), []
        self._loop_thread = loop_thread

    def hold(self, patch: pytest.MonkeyPatch, owner: Any, name: str, is_large: Any) -> None:
        """Let large calls of ``owner.name`` wait."""
        function = getattr(owner, name)

        def held(*arguments: Any, **options: Any) -> Any:
            if is_large(*arguments):
                if threading.current_thread() is self._loop_thread:
                    self.in_loop.append(name)
                else:
                    self.begun.set()
                    assert self.go_on.wait(HANGS)
            return function(*arguments, **options)

        patch.setattr(owner, name, held)

    def answers_meanwhile(self, server: Served, path: str, body: dict, status: tuple[int, ...]) -> None:
        """A large request, and small ones that are answered before it."""
        with ThreadPoolExecutor(1) as pool:
            large = pool.submit(server.ask, "POST", path, body)
            try:
                server.wait_until(lambda: self.begun.is_set() or self.in_loop or large.done())
                assert not self.in_loop, "it ran in the event loop"
                assert self.begun.is_set(), large.result().content
                assert server.ask("GET", "/health").status == 200
                assert server.post("/v1/completions", prompt="x", max_tokens=1, seed=1)["choices"]
                assert not large.done()
            finally:
                self.go_on.set()
            assert large.result().status in status, large.result().content


@pytest.fixture(scope="module")
def own_model() -> refgpt.Model:
    """A model whose tokenizer a test can replace."""
    return refgpt.load()


@pytest.fixture(scope="module")
def own_server(own_model: refgpt.Model):
    with serving(own_model) as served:
        yield served


@pytest.fixture
def held(own_server: Served) -> Held:
    name = own_server.running._loop.call_soon_threadsafe
    threads: list[threading.Thread] = []
    name(lambda: threads.append(threading.current_thread()))
    own_server.wait_until(lambda: threads)
    return Held(threads[0])


@pytest.mark.parametrize("path", TEXTS)
def test_a_large_text_is_tokenised_beside_the_event_loop(
    own_server: Served, held: Held, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = type(own_server.state.model.tokenizer)
    held.hold(monkeypatch, tokenizer, "encode", lambda self, text, *rest: len(text) > 5000)
    if path == "/detokenize":
        held.hold(monkeypatch, tokenizer, "decode", lambda self, ids: True)
    statuses = (400,) if path in ("/v1/embeddings", "/inspect") else (200,)  # it is too long for these
    held.answers_meanwhile(own_server, path, TEXTS[path], statuses)


@pytest.mark.parametrize("path", ["/tokenize", "/api/extra/tokencount"])
def test_a_large_answer_is_built_beside_the_event_loop(
    own_server: Served, held: Held, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refgpt.server import exchange

    held.hold(monkeypatch, exchange, "dumped", lambda value: isinstance(value, dict) and len(str(value)) > 5000)
    held.answers_meanwhile(own_server, path, {"prompt": TEXT}, (200,))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("n_new", [0, 1])
def test_log_probabilities_of_a_prompt_are_written_beside_the_event_loop(
    own_server: Served, held: Held, stream: bool, n_new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refgpt.server.texts import Entries

    held.hold(monkeypatch, Entries, "completion_form", lambda self, tokenizer: len(self.ids) > 300)
    body = {"prompt": [300] * 400, "echo": True, "logprobs": 20, "max_tokens": n_new, "stream": stream}
    held.answers_meanwhile(own_server, "/v1/completions", body, (200,))


def test_prompts_given_as_ids_are_decoded_beside_the_event_loop(
    own_server: Served, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refgpt.server import texts

    held.hold(monkeypatch, texts, "_offsets", lambda ids, tokenizer: True)
    body = {"prompt": [[300] * 400] * 20, "echo": True, "max_tokens": 0}
    held.answers_meanwhile(own_server, "/v1/completions", body, (200,))


def test_a_large_body_is_checked_beside_the_event_loop(
    own_server: Served, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refgpt.server import completions

    held.hold(monkeypatch, completions, "parse_completion", lambda body: len(body["prompt"]) > 5000)
    held.answers_meanwhile(own_server, "/v1/completions", {"prompt": [5] * 6000}, (400,))


def test_a_large_body_is_parsed_beside_the_event_loop(
    own_server: Served, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refgpt.server import exchange

    held.hold(monkeypatch, exchange, "loads", lambda text, *rest: len(text) > 50_000)
    held.answers_meanwhile(own_server, "/v1/completions", {"prompt": "x", "user": ["y"] * 20_000}, (200,))


def test_large_bodies_are_parsed_one_at_a_time(own_server: Served, held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many come at once, only one thread takes the interpreter from the streams."""
    from refgpt.server import exchange

    inside, most = [0], [0]
    loads = exchange.loads

    def counted(*arguments: Any) -> Any:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        try:
            return loads(*arguments)
        finally:
            inside[0] -= 1

    monkeypatch.setattr(exchange, "loads", counted)
    with ThreadPoolExecutor(6) as pool:
        body = {"prompt": "x", "max_tokens": 1, "user": [[1, 2]] * 30_000}
        asked = [pool.submit(own_server.ask, "POST", "/v1/completions", body) for _ in range(6)]
        assert [one.result().status for one in asked] == [200] * 6
    assert most == [1]
