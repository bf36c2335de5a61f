"""Many clients at once: the same bits in any company, slots that come free, limits, and an orderly end."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import socket
import ssl
import struct
import subprocess
import sys
import threading
from asyncio.constants import LOG_THRESHOLD_FOR_CONNLOST_WRITES
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import Any

import pytest

import refgpt
from refgpt.generation import GenerationParams
from tests.helpers.servers import Served, make_certificate, serving
from tests.helpers.work import HANGS

ROOT = Path(__file__).parents[2]
LONG = {"prompt": "Once upon a time", "max_tokens": 480, "ignore_eos": True, "seed": 1}


def idle(server: Served) -> bool:
    return server.state.core.n_open == server.state.core.n_running == 0


def test_a_text_is_the_same_alone_among_others_and_from_generate(model: refgpt.Model) -> None:
    body = {"prompt": "The old man said", "max_tokens": 12, "seed": 11, "logprobs": 3, "temperature": 0.9}
    want = model.generate(body["prompt"], max_new_tokens=12, seed=11, logprobs=3, temperature=0.9)
    with serving(model, prefix_cache_bytes=1 << 20) as server:
        alone = server.post("/v1/completions", **body)["choices"]

        def other(i: int) -> str:
            prompt = "It was so. " * (i % 7 + 1)
            events = server.stream("/v1/completions", prompt=prompt, max_tokens=4 + i % 8, seed=i, stream=True)
            return "".join(event["choices"][0]["text"] for event in events[:-1])

        with ThreadPoolExecutor(70) as pool:
            others = [pool.submit(other, i) for i in range(64)]
            mine = [pool.submit(server.post, "/v1/completions", **body) for _ in range(4)]
            assert all(one.result()["choices"] == alone for one in mine)
            texts = [one.result() for one in others]
    (choice,) = alone
    assert choice["text"] == want.text
    assert choice["logprobs"]["token_ids"] == want.ids and choice["logprobs"]["token_logprobs"] == want.logprobs
    prompts = ["It was so. " * (i % 7 + 1) for i in range(64)]
    assert texts == [model.generate(prompt, max_new_tokens=4 + i % 8, seed=i).text for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/api/v1/generate", "/complete"])
def test_a_client_that_leaves_frees_its_slot(server: Served, path: str, stream: bool) -> None:
    before = server.state.metrics.generated_tokens.value()
    body = LONG | {"stream": stream, "messages": [{"role": "user", "content": "x"}], "context": "x", "max_length": 400}
    connections = [server.send(path, **body) for _ in range(3)]
    server.wait_until(lambda: server.state.core.n_running == 3)
    for connection in connections:
        connection.close()
    server.wait_until(lambda: idle(server))
    assert server.state.metrics.generated_tokens.value() - before < 3 * 400


def test_a_client_that_leaves_while_its_prompt_is_read_or_waits(model: refgpt.Model) -> None:
    with serving(model, max_slots=1) as server:
        reading = server.send("/v1/completions", **LONG | {"prompt": ["long " * 450] * 20, "max_tokens": 2})
        waiting = server.send("/v1/completions", **LONG)
        server.wait_until(lambda: server.state.core.n_open == 21)
        waiting.close()
        server.wait_until(lambda: server.state.core.n_open <= 20)
        reading.close()
        server.wait_until(lambda: idle(server))
        assert server.state.metrics.generated_tokens.value() < 40


def test_a_slot_is_free_within_one_step(model: refgpt.Model) -> None:
    """Every step that begins after a request was cancelled runs without it."""
    pytest.importorskip("starlette")
    from refgpt.server import ServerSettings
    from refgpt.server.core import Core
    from refgpt.server.metrics import Metrics

    async def run() -> list[bool]:
        core = Core(model, ServerSettings(), Metrics())
        step, begun = core._scheduler.step, []

        def watched_step() -> list:
            begun.append((cancelled.is_set(), core._scheduler.n_running))
            return step()

        cancelled = asyncio.Event()
        core._scheduler.step = watched_step  # type: ignore[method-assign]
        core.start(asyncio.get_running_loop())
        other = core.submit([[5, 6, 7]], GenerationParams(max_new_tokens=60, ignore_eos=True, seed=1))
        job = core.submit([[5] * 300], GenerationParams(max_new_tokens=200, ignore_eos=True, seed=1))
        async for _ in other.events():
            if not cancelled.is_set() and len(begun) > 3:
                job.cancel()
                cancelled.set()
        core.stop()
        return [n == 1 for was_cancelled, n in begun[:-1] if was_cancelled][1:]

    found = asyncio.run(run())
    assert len(found) > 10 and all(found)


def test_a_request_that_fails_ends_no_other(model: refgpt.Model) -> None:
    """All prompts of a request fail in one step, and the text of another client goes on."""
    pytest.importorskip("starlette")
    from refgpt.generation.results import Event
    from refgpt.server import ServerSettings
    from refgpt.server.core import Core
    from refgpt.server.errors import ApiError
    from refgpt.server.jobs import Job
    from refgpt.server.metrics import Metrics

    async def length(job: Job) -> int:
        return len([event async for some in job.events() for event in some])

    async def run() -> tuple[int, str]:
        core = Core(model, ServerSettings(), Metrics())
        step = core._scheduler.step

        def failing_step() -> list[Event]:
            events, lost = step(), {number for number, (job, _) in core._texts.items() if len(job.prompts) > 1}
            kept = [event for event in events if event.seq not in lost]
            return [Event(n, None, "", "", "error", refgpt.GenerationError("broke")) for n in sorted(lost)] + kept

        core._scheduler.step = failing_step  # type: ignore[method-assign]
        params = GenerationParams(max_new_tokens=20, ignore_eos=True, seed=1)
        core.start(asyncio.get_running_loop())
        other, broken = core.submit([[5, 6, 7]], params), core.submit([[5], [6]], params)
        with pytest.raises(ApiError) as caught:
            await length(broken)
        n_events = await length(other)
        core.stop()
        return n_events, str(caught.value)

    n_events, message = asyncio.run(run())
    assert n_events == 20 and "broke" in message


def test_a_client_that_does_not_read_holds_nobody_up(model: refgpt.Model) -> None:
    with serving(model, send_timeout=0.3) as server:
        silent = server.send("/v1/completions", n_received=4096, **LONG | {"stream": True, "logprobs": 50, "n": 2})
        server.wait_until(lambda: server.state.core.n_running > 0)
        assert server.post("/v1/completions", prompt="A", max_tokens=4, seed=1)["choices"]
        server.wait_until(lambda: idle(server))
        server.wait_until(lambda: not server.running.server_state.connections)  # it was dropped
        silent.close()


def test_nothing_is_written_to_a_connection_that_is_lost(
    model: refgpt.Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Many events may be sent before the event loop tells that their client has left; asyncio warns of each write.

    uvicorn would complain of an answer that ends before it has been told, too.
    """
    from refgpt.server.jobs import Job

    connections: list[socket.socket] = []
    events, sent = Job.events, threading.Event()

    async def all_events(job: Job):
        kept = [event async for some in events(job) for event in some]
        await asyncio.get_running_loop().run_in_executor(None, sent.wait)
        connections[0].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connections[0].close()  # a reset, in the same turn of the event loop as all that is sent
        yield kept

    monkeypatch.setattr(Job, "events", all_events)
    with serving(model, speculate=0) as server:
        connections.append(server.send("/v1/completions", **LONG | {"max_tokens": 40, "stream": True}))
        sent.set()
        server.wait_until(lambda: connections[0].fileno() < 0 and not server.running.server_state.tasks)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_stream_that_has_nothing_to_say_gives_signs_of_life(
    model: refgpt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    from refgpt.server import exchange

    monkeypatch.setattr(exchange, "PING", 0.02)
    with serving(model, speculate=0) as server:
        step = server.state.core._scheduler.step

        def slow_step() -> list:
            sleep(0.2)
            return step()

        server.state.core._scheduler.step = slow_step
        answer = server.ask("POST", "/v1/completions", LONG | {"max_tokens": 3, "stream": True}).content.decode()
        assert ": wait" in answer.split("\n\n") and answer.count("data: {") == 3


def test_too_many_are_told_to_wait(model: refgpt.Model) -> None:
    with serving(model, max_slots=1, max_queue=2) as server:
        connections = [server.send("/v1/completions", **LONG) for _ in range(3)]
        server.wait_until(lambda: server.state.core.n_open == 3)
        answer = server.ask("POST", "/v1/completions", {"prompt": "x"})
        assert answer.status == 429 and int(answer.headers["retry-after"]) > 0
        assert answer.json["error"]["code"] == "queue_full"
        kobold = server.ask("POST", "/api/v1/generate", {"prompt": "x"})
        assert kobold.status == 429 and kobold.json["detail"].keys() == {"msg", "type"}
        for connection in connections:
            connection.close()
        server.wait_until(lambda: idle(server))
        assert server.post("/v1/completions", prompt="x", max_tokens=1, seed=1)


def test_a_thousand_requests_wait_in_line(model: refgpt.Model) -> None:
    with serving(model, max_queue=2000, max_connections=2000) as server:
        body = {"prompt": "The cat", "max_tokens": 1, "seed": 3}
        want = server.post("/v1/completions", **body)["choices"]
        connections = [server.send("/v1/completions", **body) for _ in range(1000)]
        for connection in connections:
            with connection, connection.makefile("rb") as answer:
                assert b" 200 " in answer.readline()
                n = 0
                while (line := answer.readline()) not in (b"\r\n", b""):
                    if line.lower().startswith(b"content-length:"):
                        n = int(line.split(b":")[1])
                assert json.loads(answer.read(n))["choices"] == want
        server.wait_until(lambda: idle(server))


def test_a_text_ends_when_its_time_is_over(model: refgpt.Model) -> None:
    with serving(model, **{"timeout": 0.05, "speculate": 0}) as server:
        answer = server.post("/v1/completions", **LONG)
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] < 480


def test_the_scheduler_begins_anew_after_a_fault(model: refgpt.Model) -> None:
    with serving(model) as server:

        def broken() -> None:
            raise RuntimeError("broken")

        server.state.core._scheduler.step = broken
        answer = server.ask("POST", "/v1/completions", {"prompt": "x"})
        assert answer.status == 500 and "broken" not in answer.json["error"]["message"]
        assert server.post("/v1/completions", prompt="x", max_tokens=1, seed=1)


def test_prompts_are_found_again(model: refgpt.Model) -> None:
    with serving(model, prefix_cache_bytes=16 << 20) as server:
        body = {"prompt": "There was once a poor man who had nothing. " * 12, "max_tokens": 4, "seed": 2}
        first = server.post("/v1/completions", **body)["choices"]
        assert server.post("/v1/completions", **body)["choices"] == first
        scored = server.post("/v1/completions", **body, echo=True, logprobs=1)["choices"][0]["logprobs"]
        ids = model.tokenizer.encode(body["prompt"])
        assert scored["token_logprobs"][1 : len(ids)] == model.score(ids[:1], [ids[1:]])[0].tolist()
        text = server.ask("GET", "/metrics").content.decode()
        (found,) = [line for line in text.splitlines() if line.startswith("refgpt_prefix_cache_tokens_total ")]
        assert int(found.split()[1]) >= 32


def test_a_draft_model_changes_no_text(model: refgpt.Model) -> None:
    body = {"prompt": "Once upon a time", "max_tokens": 20, "seed": 6, "n": 2, "echo": True, "logprobs": 2}
    with serving(model, refgpt.load(dtype="q8"), speculate=0) as server:
        found = server.post("/v1/completions", **body)["choices"]
        text = server.ask("GET", "/metrics").content.decode()
    want = model.generate(body["prompt"], max_new_tokens=20, seed=6, n=2, logprobs=2)
    assert [choice["text"] for choice in found] == [body["prompt"] + one.text for one in want]
    assert [choice["logprobs"]["token_logprobs"][-20:] for choice in found] == [one.logprobs for one in want]
    assert int(text.partition("\nrefgpt_accepted_tokens_total ")[2].split()[0]) > 5


def test_metrics(server: Served) -> None:
    before = server.state.metrics.generated_tokens.value()
    server.post("/v1/completions", prompt="x", max_tokens=7, seed=1, ignore_eos=True)
    lines = dict(
        line.rsplit(" ", 1)
        for line in server.ask("GET", "/metrics").content.decode().splitlines()
        if not line.startswith("#")
    )
    assert float(lines["refgpt_generated_tokens_total"]) == before + 7
    assert lines["refgpt_requests_running"] == "0" and lines["refgpt_slots"] == "16"
    assert int(lines["refgpt_time_to_first_token_seconds_count"]) > 0
    assert float(lines['refgpt_requests_total{path="/v1/completions",status="200"}']) > 0


def test_slow_heads_and_bodies_are_dropped(model: refgpt.Model) -> None:
    with serving(model, head_timeout=0.2, body_timeout=0.2) as server:
        with server.connect() as nothing, server.connect() as head:
            head.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-")
            assert head.recv(100) == b"" and nothing.recv(100) == b""
        with server.connect() as body:
            start = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            body.sendall(start + b"Content-Length: 100\r\n\r\n{")
            assert body.recv(100).startswith(b"HTTP/1.1 408 ")


def start_command(*arguments: str) -> tuple[subprocess.Popen, str]:
    """``refgpt serve`` in a process of its own, and its URL."""
    pytest.importorskip("starlette")
    command = [sys.executable, "-m", "refgpt", "serve", "--port", "0", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line.startswith("serving at http://127.0.0.1:"), process.stderr.read()
    return process, line.split()[-1]


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_server_in_order(sent: signal.Signals) -> None:
    """Running texts end with a reason when the time is over, others are refused meanwhile, and the exit status is 0."""
    process, url = start_command("--grace", "0.3", "--log-format", "json", "--speculate", "0")
    server = Served.__new__(Served)
    server.port = int(url.rstrip("/").rpartition(":")[2])
    try:
        body = LONG | {"stream": True, "prompt": ["Once upon a time"] * 16}  # takes more than the grace
        with server.send("/v1/completions", **body) as connection, connection.makefile("rb") as answer:
            while not answer.readline().startswith(b"data:"):
                pass
            idle = server.connect()  # it asks for nothing, and holds nothing up
            process.send_signal(sent)
            rest = answer.read()
        process.wait(HANGS)
        idle.close()
    finally:
        _, log = process.communicate(timeout=HANGS)
    assert process.returncode == 0, log
    events = [line[6:] for line in rest.decode().split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    reasons = [json.loads(event)["choices"][0]["finish_reason"] for event in events[:-1]]
    assert reasons.count("length") == 16
    lines = [json.loads(line) for line in log.splitlines()]
    assert any(line.get("path") == "/v1/completions" and line["status"] == 200 for line in lines)
    assert "Once upon" not in log


@pytest.mark.parametrize("name", ["uvicorn.error", "asyncio"])
def test_warnings_of_libraries_are_lines_of_the_log(name: str, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("uvicorn")
    from refgpt.server import ServerSettings
    from refgpt.server.logs import logging_as

    other = logging.getLogger(name)
    before = other.level, other.propagate, list(other.handlers)
    with logging_as(ServerSettings(log_format="json")):
        other.warning("a client did %s", "\x1b[2J")
        other.info("nothing")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"].startswith("a client did ") and "\x1b" not in line
    assert (other.level, other.propagate, other.handlers) == before


class LeftWhileAnswered(asyncio.Protocol):
    """A server's end of a connection that is lost while it still writes, as often as asyncio tolerates and more."""

    def connection_made(self, transport: Any) -> None:
        transport.abort()
        for _ in range(2 * LOG_THRESHOLD_FOR_CONNLOST_WRITES):
            transport.write(b"data: more\n\n")


@pytest.mark.parametrize("encrypted", [False, True])
def test_clients_that_leave_are_no_warnings(encrypted: bool, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("uvicorn")
    from refgpt.server import ServerSettings
    from refgpt.server.logs import CLIENT_LEFT, logging_as

    seen: list[str] = []
    spy = logging.Handler()
    spy.emit = lambda record: seen.append(record.getMessage())  # type: ignore[method-assign]
    context = client_context = None
    if encrypted:
        certificate, key = make_certificate(tmp_path)
        client_context = ssl.create_default_context(cafile=certificate)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

    async def leave() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(LeftWhileAnswered, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        with suppress(OSError):  # lost before its handshake is complete, on its side
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client_context)
            await reader.read()
            writer.close()
        server.close()
        logging.getLogger("asyncio").warning("a fault")

    logging.getLogger("asyncio").addHandler(spy)
    try:
        with logging_as(ServerSettings(log_format="json")):
            asyncio.run(leave())
    finally:
        logging.getLogger("asyncio").removeHandler(spy)
    quiet = encrypted and sys.version_info < (3, 11)  # there asyncio does not warn of writes over TLS
    assert (quiet or len(seen) > 1) and set(seen) <= {*CLIENT_LEFT, "a fault"}  # it did warn, in these words
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"] == "a fault"


def test_a_draining_server_takes_nothing_new(model: refgpt.Model) -> None:
    with serving(model, grace=float(HANGS)) as server:
        connection = server.send("/v1/completions", **LONG | {"n": 2, "max_tokens": 250})
        server.wait_until(lambda: server.state.core.n_running > 0)
        server.running.handle_exit(15, None)
        server.wait_until(lambda: server.state.core.draining)
        refused = server.ask("POST", "/v1/completions", {"prompt": "x"})
        assert refused.status == 503 and refused.json["error"]["code"] == "shutting_down"
        assert server.ask("GET", "/health").status == 503
        with connection, connection.makefile("rb") as answer:
            assert b" 200 " in answer.readline()  # what runs is finished


def test_a_missing_library_is_named(run, monkeypatch: pytest.MonkeyPatch) -> None:
    from refgpt import server

    monkeypatch.setattr(server, "find_spec", lambda name: None if name == "uvicorn" else True)
    done = run("serve")
    assert done.code == 1 and "uvicorn" in done.err and 'pip install "refgpt[server]"' in done.err


def test_a_taken_port_is_one_clear_error(server: Served, run) -> None:
    done = run("serve", "--port", str(server.port))
    assert done.code == 1 and "cannot listen there" in done.err and "Traceback" not in done.err
