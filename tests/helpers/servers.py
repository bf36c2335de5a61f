"""A real server on this machine, and the plainest client for it."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest

from refgpt import Model
from refgpt.server import ServerSettings
from tests.helpers.work import HANGS


class Served:
    """A running server, and requests to it."""

    def __init__(self, running: Any) -> None:
        self.running, self.state = running, running.state
        self.port: int = running.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._kept = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANGS)

    def ask(self, method: str, path: str, body: Any = None, keep: bool = False, **headers: str) -> SimpleNamespace:
        """One request -> its status, headers, bytes, and JSON if it is any. ``keep``: on a connection that stays."""
        connection = self._kept if keep else http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANGS)
        raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if raw is not None:
            given.setdefault("content-type", "application/json")
        try:
            connection.request(method, path, raw, given)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            if not keep:
                connection.close()
        kind = answer.headers.get("content-type", "")
        found = json.loads(content) if kind == "application/json" and content else None
        return SimpleNamespace(status=answer.status, headers=answer.headers, content=content, json=found)

    def post(self, path: str, **body: Any) -> Any:
        """The JSON that answers a request, which has to succeed."""
        answer = self.ask("POST", path, body)
        assert answer.status == 200, answer.content
        return answer.json

    def stream(self, path: str, **body: Any) -> list[Any]:
        """The events of a stream; what is no JSON, such as "[DONE]", stays a text."""
        answer = self.ask("POST", path, body)
        assert answer.status == 200, answer.content
        assert b"\r" not in answer.content
        return [
            data if data == "[DONE]" else json.loads(data)
            for line in answer.content.decode().split("\n")
            if line.startswith("data: ") and (data := line.removeprefix("data: "))
        ]

    def connect(self, n_received: int | None = None) -> socket.socket:
        """A connection for clients that behave badly. ``n_received``: bytes that it takes before they are read."""
        connection = socket.socket()
        if n_received is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, n_received)
        connection.settimeout(HANGS)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def send(self, path: str, n_received: int | None = None, **body: Any) -> socket.socket:
        """A connection on which a request was sent, and nothing read."""
        connection = self.connect(n_received)
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        return connection

    def wait_until(self, condition: Any) -> None:
        """Wait until something is so; a test that hangs fails."""
        for _ in range(HANGS * 100):
            if condition():
                return
            sleep(0.01)
        raise AssertionError("it did not become so")


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for localhost and its key, made by openssl. Skips the test where there is none."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run([*make, *names, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


@contextmanager
def serving(model: Model, draft: Model | None = None, **settings: Any) -> Iterator[Served]:
    """Serve a model in a thread while this lasts."""
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from refgpt.server.running import Running
    from refgpt.server.state import State

    given = {"port": 0, "grace": 0.0, "prefix_cache_bytes": 0} | settings
    running = Running(State.of(model, ServerSettings(**given), draft))
    thread = threading.Thread(target=lambda: asyncio.run(running.serve()), daemon=True)
    thread.start()
    while not running.started and thread.is_alive():
        sleep(0.01)
    try:
        yield Served(running)
    finally:
        running.handle_exit(15, None)
        thread.join(HANGS)
        assert not thread.is_alive()
