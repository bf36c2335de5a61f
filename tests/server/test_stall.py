"""A step of the model that does not return: requests end with an error, and the server works again when it returns."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest

import refgpt
from refgpt.tracing import embedding
from tests.helpers.servers import Served, serving
from tests.helpers.work import HANGS

ROOT = Path(__file__).parents[2]
LONG = {"prompt": "Once upon a time", "max_tokens": 480, "ignore_eos": True, "seed": 1}
SHORT = {"prompt": "Once upon a time", "max_tokens": 3, "seed": 1}
CHAT = {"messages": [{"role": "user", "content": "x"}]}


class Killed(BaseException):
    """Ends the model's thread."""


class Hanging:
    """The steps of a server's session; they wait for an event after ``hang``."""

    def __init__(self, server: Served) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        session = server.state.core._scheduler._session
        step = session.step

        def held(*arguments: Any) -> Any:
            sleep(0.003)  # texts that are written meanwhile do not end before others have come
            assert self.go_on.wait(HANGS)
            return step(*arguments)

        session.step = held

    def hang(self) -> None:
        """Steps that begin from now on do not return."""
        self.go_on.clear()


@pytest.fixture
def server(model: refgpt.Model) -> Iterator[Served]:
    with serving(model, step_timeout=1.0, speculate=0, max_slots=2) as served:
        yield served


@pytest.fixture
def hanging(server: Served) -> Iterator[Hanging]:
    found = Hanging(server)
    yield found
    found.go_on.set()


def events_of(answer: SimpleNamespace) -> list[str]:
    return [line[6:] for line in answer.content.decode().split("\n") if line.startswith("data: ")]


def test_a_step_that_hangs_and_returns(server: Served, hanging: Hanging, caplog: pytest.LogCaptureFixture) -> None:
    core = server.state.core
    want = server.post("/v1/completions", **SHORT)["choices"]
    with caplog.at_level(logging.WARNING, "refgpt.server"), ThreadPoolExecutor(5) as pool:
        asked = [
            pool.submit(server.ask, "POST", "/v1/completions", LONG | {"stream": True}),
            pool.submit(server.ask, "POST", "/v1/completions", LONG | {"n": 2}),
        ]
        server.wait_until(lambda: core.n_open == 3 and core.n_running == 2)
        asked += [  # they wait for a slot
            pool.submit(server.ask, "POST", "/api/extra/generate/stream", {"prompt": "x", "max_length": 400}),
            pool.submit(server.ask, "POST", "/v1/chat/completions", CHAT | {"stream": True}),
            pool.submit(server.ask, "POST", "/complete", {"context": "x"}),
        ]
        server.wait_until(lambda: core.n_open == 6)
        hanging.hang()
        streamed, whole, kobold, chat, mesh = [one.result() for one in asked]  # each ends, with one error
        for answer in (streamed, chat):
            (error,) = [event for event in events_of(answer) if '"error"' in event]
            assert json.loads(error)["error"]["code"] == "stalled" and events_of(answer)[-1] == "[DONE]"
        assert whole.status == 503 and whole.json["error"]["code"] == "stalled"
        assert int(whole.headers["retry-after"]) > 0
        assert kobold.content.count(b'"stalled"') == 1
        assert mesh.status == 503 and "does not return" in mesh.json["error"]
        # The server says so, takes no new requests, and answers what needs no model.
        for _ in range(3):
            health = server.ask("GET", "/health")
            assert health.status == 503 and int(health.headers["retry-after"]) > 0
            assert health.json["status"] == "stalled" and "does not return" in health.json["reason"]
        bodies = {"/v1/completions": SHORT, "/v1/chat/completions": CHAT, "/api/v1/generate": SHORT}
        bodies |= {"/complete": {"context": "x"}, "/v1/embeddings": {"input": "x"}, "/inspect": {"prompt": "x"}}
        for path, body in bodies.items():
            refused = server.ask("POST", path, body)
            assert refused.status == 503 and int(refused.headers["retry-after"]) > 0, path
        assert server.ask("GET", "/v1/models").status == 200 and core.n_open == 0
        assert server.state.metrics.failures.value() == 1
        hanging.go_on.set()
        server.wait_until(lambda: server.ask("GET", "/health").status == 200)
        assert server.post("/v1/completions", **SHORT)["choices"] == want
        server.wait_until(lambda: core.n_running == 0)  # what was cut off is not written for nobody
    told = [record.getMessage() for record in caplog.records if "step of the model has" in record.getMessage()]
    assert len(told) == 2 and "has not returned" in told[0] and "has returned" in told[1]


def test_another_hang_is_noticed_too(server: Served, hanging: Hanging) -> None:
    for _ in range(2):
        hanging.hang()
        assert server.ask("POST", "/v1/completions", SHORT).json["error"]["code"] == "stalled"
        hanging.go_on.set()
        server.wait_until(lambda: server.ask("GET", "/health").status == 200)
    assert server.state.metrics.failures.value() == 2


def test_a_thread_that_ends_while_it_hangs_has_not_returned(
    server: Served, hanging: Hanging, caplog: pytest.LogCaptureFixture
) -> None:
    core, ends = server.state.core, threading.Event()

    def step() -> None:
        assert ends.wait(HANGS)
        raise Killed

    core._scheduler.step = step
    with caplog.at_level(logging.WARNING, "refgpt.server"):
        assert server.ask("POST", "/v1/completions", SHORT).json["error"]["code"] == "stalled"
        ends.set()
        server.wait_until(lambda: not core._watch.stalled)
    assert server.ask("GET", "/health").json["status"] == "unavailable"
    said = [record.getMessage() for record in caplog.records]
    assert "the model's thread has failed" in said and not any("run again" in message for message in said)


@pytest.mark.parametrize(("hangs", "code"), [(True, "stalled"), (False, "shutting_down")])
def test_requests_that_are_given_up_are_told_why(server: Served, hanging: Hanging, hangs: bool, code: str) -> None:
    """A second Ctrl-C gives up requests although no step hangs."""
    core, told = server.state.core, []
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(server.ask, "POST", "/v1/completions", LONG)
        server.wait_until(lambda: core.n_running == 1)

        def give_up() -> None:
            core._watch.stalled = hangs
            core.give_up()
            core._watch.stalled = False
            told.append(core.n_open)

        core._loop.call_soon_threadsafe(give_up)
        answer = asked.result()
    assert answer.status == 503 and answer.json["error"]["code"] == code and told == [0]


def test_an_idle_server_does_not_hang(server: Served, hanging: Hanging) -> None:
    """Waiting for requests is no step, however long it takes; and many short steps are no long one."""
    watch = server.state.core._watch
    server.post("/v1/completions", **LONG | {"max_tokens": 200, "n": 2})
    server.wait_until(lambda: watch._began is None)
    server.state.core._watch._look(SimpleNamespace(call_later=lambda *arguments: None))
    assert not watch.stalled and server.ask("GET", "/health").status == 200


@pytest.mark.parametrize("path", ["/inspect", "/v1/embeddings"])
def test_work_beside_the_texts_that_hangs_and_returns(
    server: Served, path: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ends with an error, like what waits for its thread; texts are still written."""
    monkeypatch.setattr(embedding, "ROWS", 1)  # a pass for each text
    bodies = {"/inspect": {"prompt": "x", "what": ["lens"]}, "/v1/embeddings": {"input": ["x", "y"]}}
    want = {name: server.post(name, **body) for name, body in bodies.items()}
    engine, go_on, n_begun = type(server.state.model.engine), threading.Event(), 0
    passes = {name: getattr(engine, name) for name in ("logits", "states")}

    def held(name: str, *arguments: Any) -> Any:
        nonlocal n_begun
        n_begun += 1
        assert path == "/inspect" or n_begun < 2 or go_on.wait(HANGS)  # the second pass of an embedding
        assert path != "/inspect" or go_on.wait(HANGS)
        return passes[name](*arguments)

    for name in passes:
        monkeypatch.setattr(engine, name, lambda *arguments, name=name: held(name, *arguments))
    with caplog.at_level(logging.WARNING, "refgpt.server"), ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(server.ask, "POST", path, bodies[path])]
        server.wait_until(lambda: n_begun)
        asked += [pool.submit(server.ask, "POST", name, body) for name, body in bodies.items()]
        for answer in [one.result() for one in asked]:
            assert answer.status == 503 and answer.json["error"]["code"] == "stalled"
        assert server.ask("POST", "/inspect", bodies["/inspect"]).json["error"]["code"] == "stalled"
        assert server.ask("GET", "/health").status == 200 and server.post("/v1/completions", **SHORT)
        go_on.set()
        server.wait_until(lambda: server.ask("POST", path, bodies[path]).status == 200)
    assert {name: server.post(name, **body) for name, body in bodies.items()} == want
    told = [record.getMessage() for record in caplog.records]
    assert sum("has not returned" in one for one in told) == sum("has returned" in one for one in told) == 1


def test_each_pass_beside_the_texts_is_a_step(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is one for each text's pass, and for the passes of an inspection's three parts."""
    engine, watch, began = type(server.state.model.engine), server.state.aside._watch, []

    def noted(work: Any, *arguments: Any) -> Any:
        began.append(watch._began)
        return work(*arguments)

    for name in ("logits", "states"):
        work = getattr(engine, name)
        monkeypatch.setattr(engine, name, lambda *arguments, work=work: noted(work, *arguments))
    monkeypatch.setattr(embedding, "ROWS", 1)
    for path, body in (("/v1/embeddings", {"input": ["x", "y", "z"]}), ("/inspect", {"prompt": "x"})):
        server.post(path, **body)
        assert len(began) == 3 and None not in began and sorted(set(began)) == began, path
        server.wait_until(lambda: watch._began is None)
        began.clear()


@pytest.mark.parametrize(
    ("path", "body", "leaves"),
    [
        ("/v1/embeddings", {"input": ["x", "y", "z"]}, False),
        ("/v1/embeddings", {"input": ["x", "y", "z"]}, True),
        ("/inspect", {"prompt": "x"}, True),
    ],
)
def test_work_for_which_nobody_waits_ends_after_its_pass(
    server: Served, path: str, body: dict, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client was told that a pass does not return, or has left."""
    engine, aside, go_on, n_begun = type(server.state.model.engine), server.state.aside, threading.Event(), 0

    def held(work: Any, *arguments: Any) -> Any:
        nonlocal n_begun
        n_begun += 1
        assert go_on.wait(HANGS)
        return work(*arguments)

    for name in ("logits", "states"):
        work = getattr(engine, name)
        monkeypatch.setattr(engine, name, lambda *arguments, work=work: held(work, *arguments))
    monkeypatch.setattr(embedding, "ROWS", 1)
    try:
        if leaves:
            connection = server.send(path, **body)
            server.wait_until(lambda: n_begun)
            connection.close()
            server.wait_until(lambda: not aside._waiting)
        else:
            assert server.ask("POST", path, body).json["error"]["code"] == "stalled"
    finally:
        go_on.set()
    server.wait_until(lambda: aside._watch._began is None)
    assert n_begun == 1
    server.wait_until(lambda: server.ask("POST", path, body).status == 200)


def test_no_bound() -> None:
    pytest.importorskip("starlette")
    from refgpt.server.watch import Watch

    def never(*arguments: Any) -> None:
        raise AssertionError

    watch = Watch(0, never, never)
    watch.begin()
    watch.start(SimpleNamespace(call_later=never))  # type: ignore[arg-type]
    assert not watch.stalled


SCRIPT = """
import sys, threading
import refgpt
from refgpt.runtime.session import RuntimeSession
from refgpt.server import ServerSettings, running, serve

running.LAST_WORDS = 1
RuntimeSession.step = lambda *arguments: (print("hangs", flush=True), threading.Event().wait())
settings = ServerSettings(port=0, grace=0.3, step_timeout=float(sys.argv[1]))
serve(refgpt.load(), settings, lambda url: print(url, flush=True))
"""


@pytest.mark.parametrize("step_timeout", [0.2, 1e6], ids=["noticed", "not noticed"])
def test_a_server_that_hangs_ends_when_it_is_asked_to(step_timeout: float) -> None:
    pytest.importorskip("starlette")
    command = [sys.executable, "-c", SCRIPT, str(step_timeout)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    server = Served.__new__(Served)
    try:
        server.port = int(process.stdout.readline().rstrip("/\n").rpartition(":")[2])
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(server.ask, "POST", "/v1/completions", LONG)
            assert process.stdout.readline() == "hangs\n"
            if step_timeout < 1:
                server.wait_until(lambda: server.ask("GET", "/health").status == 503)
            process.send_signal(signal.SIGTERM)
            answer = asked.result()
        process.wait(HANGS)
    finally:
        process.kill()
        _, log = process.communicate(timeout=HANGS)
    assert answer.status == 503
    assert answer.json["error"]["code"] == ("stalled" if step_timeout < 1 else "shutting_down")
    assert process.returncode == 0, log
    assert log.count("the server ends without it") == 1
