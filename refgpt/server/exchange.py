"""One request over HTTP and its answer, as a pure ASGI application sees them.

No middleware is used, since it would hide that a client has disconnected.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from time import perf_counter
from typing import Any, TypeVar

from refgpt.server.errors import ApiError, ClientGone
from refgpt.server.jobs import Job
from refgpt.server.pieces import PIECE, loads
from refgpt.server.settings import ServerSettings

T = TypeVar("T")

#: Media types that a web page can send to another site without a CORS preflight. JSON is not among them.
SIMPLE_TYPES = ("text/plain", "multipart/form-data", "application/x-www-form-urlencoded")
#: Characters that JSON need not escape, but that Python's ``splitlines`` and others treat as line ends.
LINE_ENDS = {ord(character): f"\\u{ord(character):04x}" for character in "\x85\u2028\u2029"}
#: Seconds between the comments that keep an idle stream open.
PING = 15.0
#: Most bytes of a refused body that are received and discarded, and seconds for that: a client that sends more, or more
#: slowly, is cut off. Never more than twice the largest body that is taken, nor longer than ``body_timeout``.
MOST_DISCARDED, DISCARDING = 1 << 26, 5.0
#: What a page of another site that may ask is told.
CROSS_ORIGIN = {
    "vary": "Origin",
    "access-control-allow-methods": "GET, POST, OPTIONS",
    "access-control-allow-headers": "Authorization, Content-Type, X-API-Key",
    "access-control-max-age": "600",
}
HEADERS = {"x-content-type-options": "nosniff", "cache-control": "no-store"}


class Exchange:
    """A request and its answer.

    Attributes
    ----------
    scope : mapping
        ASGI's.
    status : int or None
        Of the answer, once it has begun.
    origin : str or None
        The site whose page asks and may read the answer.
    note : dict
        Values for the log.
    n_bytes : int
        Size of the body, once it was read.
    """

    def __init__(self, scope: Any, receive: Any, send: Any, settings: ServerSettings) -> None:
        self.scope, self._receive, self._send, self._settings = scope, receive, send, settings
        self.began = perf_counter()
        self.status: int | None = None
        self.origin: str | None = None
        self.note: dict[str, Any] = {}
        self.n_bytes = 0
        self._ended = self._stalled = self._streams = self._is_read = False
        self._last_put = self.began

    @property
    def headers(self) -> Mapping[bytes, bytes]:
        """The headers of the request, by their names in lower case; of several with one name, the last."""
        return dict(self.scope["headers"])

    @property
    def state(self) -> Any:
        """The state of the whole server."""
        return self.scope["app_state"]

    async def body(self) -> bytes:
        """All of the body.

        Raises
        ------
        ApiError
            413 if it is too large, 408 if it does not come in time.
        """
        most = self._settings.max_body_bytes
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > most:
            raise _too_large(most)
        try:
            body = await asyncio.wait_for(self._read(most), self._settings.body_timeout or None)
        except asyncio.TimeoutError:
            message = f"the body did not arrive within {self._settings.body_timeout:g} seconds"
            raise ApiError(408, message, code="timeout", headers={"connection": "close"}) from None
        self.n_bytes = len(body)
        return body

    async def _read(self, most: int) -> bytes:
        parts, size = [], 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise _too_large(most)
            if not message.get("more_body"):
                self._is_read = True
                return b"".join(parts)

    async def json(self) -> dict[str, Any]:
        """The body as a JSON object.

        Raises
        ------
        ApiError
            If it is not an object.
        """
        kind = self.headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        if kind in SIMPLE_TYPES:
            raise ApiError(
                415,
                "the body has to be JSON, and the request to say so: Content-Type: application/json",
                code="no_json",
            )
        return await self.parsed(await self.body())

    async def parsed(self, body: bytes) -> dict[str, Any]:
        """A body as a JSON object; large ones are parsed beside the event loop, one at a time."""
        if len(body) <= PIECE:
            return parsed(body)
        async with self.state.large_bodies:
            return await asyncio.get_running_loop().run_in_executor(None, parsed, body)

    async def prepare(self, work: Callable[[], T]) -> T:
        """Run work on the fields of the body, in a separate thread if the body is large (see ``State.do``)."""
        return await self.state.do(work, self.n_bytes)

    async def send_made(self, make: Callable[[], Any], size: int) -> None:
        """Answer with the JSON of what a function makes, in a separate thread if it has many entries."""
        await self.send_bytes(await self.state.do(lambda: dumped(make()), size), "application/json")

    async def send_json(self, value: Any, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        """Answer with JSON."""
        await self.send_bytes(dumped(value), "application/json", status, headers)

    async def send_bytes(self, body: bytes, kind: str, status: int = 200, headers: Mapping[str, str] = {}) -> None:
        """Answer with a whole body."""
        await self._start(status, {"content-type": kind, "content-length": str(len(body)), **headers})
        await self._put({"type": "http.response.body", "body": body})
        self._ended = True

    async def refuse(self, value: Any, status: int, headers: Mapping[str, str] = {}) -> None:
        """Answer with JSON, and discard the rest of the body; beyond some limits, close the connection.

        A client that is still sending when the connection is closed may never see the answer.
        """
        has_body = self.headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in self.headers
        if self._is_read or not has_body:
            await self.send_json(value, status, headers)
            return
        body = dumped(value)
        await self._start(status, {"content-type": "application/json", "content-length": str(len(body)), **headers})
        await self._put({"type": "http.response.body", "body": body, "more_body": True})
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._discard(), min(DISCARDING, self._settings.body_timeout or DISCARDING))
        await self._put({"type": "http.response.body", "body": b""})
        self._ended = True
        if not self._is_read and (close := self.scope.get("refgpt.close")):
            close()

    async def _discard(self) -> None:
        size, most = 0, min(MOST_DISCARDED, 2 * self._settings.max_body_bytes)
        while size < most:
            message = await self._receive()
            size += len(message.get("body", b""))
            if not message.get("more_body"):  # the end, or a client that has left
                self._is_read = True
                return

    async def start_stream(self) -> None:
        """Answer with server-sent events."""
        await self._start(200, {"content-type": "text/event-stream; charset=utf-8", "x-accel-buffering": "no"})
        self._streams = True

    async def send_event(self, value: Any, name: str = "") -> None:
        """Send an event with JSON, or a text or bytes as they are. Lines end in a line feed alone."""
        data = value if isinstance(value, bytes) else value.encode() if isinstance(value, str) else dumped(value)
        head = f"event: {name}\n".encode() if name else b""
        await self._put({"type": "http.response.body", "body": head + b"data: " + data + b"\n\n", "more_body": True})

    async def end_stream(self) -> None:
        """End the stream."""
        await self._put({"type": "http.response.body", "body": b""})
        self._ended = True

    @asynccontextmanager
    async def watched(self, job: Job | None = None) -> AsyncIterator[None]:
        """Context in which a client's disconnection cancels the running task. Leaving the context cancels the job too.

        An idle stream gets a comment at intervals, so that proxies do not close it.

        Raises
        ------
        ClientGone
        """
        task = asyncio.current_task()
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await self._receive())["type"] != "http.disconnect":
                pass
            if self._ended:
                return
            gone = True
            if task is not None:
                task.cancel()

        helpers = [asyncio.ensure_future(watch()), asyncio.ensure_future(self._ping())]
        timer = asyncio.get_running_loop().call_later(self._settings.timeout, _end, job)
        try:
            yield
        except asyncio.CancelledError:
            if gone:
                raise ClientGone from None
            raise
        finally:
            timer.cancel()
            if job is not None:
                job.cancel()
            for helper in helpers:
                helper.cancel()

    async def _ping(self) -> None:
        while True:
            await asyncio.sleep(PING)
            if self._streams and not self._ended and perf_counter() - self._last_put >= PING:
                with suppress(ClientGone):
                    await self._put({"type": "http.response.body", "body": b": wait\n\n", "more_body": True})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        cross = {} if self.origin is None else {**CROSS_ORIGIN, "access-control-allow-origin": self.origin}
        raw = [(name.encode(), value.encode("latin-1")) for name, value in {**HEADERS, **cross, **headers}.items()]
        await self._put({"type": "http.response.start", "status": status, "headers": raw})

    async def _put(self, message: Any) -> None:
        """Send a message; a ClientGone if the client has left, or does not receive it in time."""
        if (closing := self.scope.get("refgpt.closing")) and closing():  # asyncio would log a warning for such writes
            raise ClientGone
        timer = asyncio.get_running_loop().call_later(
            self._settings.send_timeout, self._give_up, asyncio.current_task()
        )
        try:
            await self._send(message)
        except asyncio.CancelledError:
            if self._stalled:
                raise ClientGone from None
            raise
        finally:
            timer.cancel()
            self._last_put = perf_counter()

    async def drop(self) -> None:
        """Drop the connection of a client that has left, and let uvicorn notice before the answer ends."""
        if abort := self.scope.get("refgpt.abort"):
            abort()
        await asyncio.sleep(0)

    def _give_up(self, task: asyncio.Task | None) -> None:
        self._stalled = True
        if abort := self.scope.get("refgpt.abort"):
            abort()
        if task is not None:
            task.cancel()


def _end(job: Job | None) -> None:
    if job is not None:
        job.end()


def parsed(body: bytes) -> dict[str, Any]:
    """Parse a body as a JSON object; an ApiError if it is not one, or contains values outside JSON, such as NaN."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    try:
        value = loads(body.decode("utf-8-sig"), refuse)
    except ValueError as error:  # a UnicodeDecodeError is one too
        raise ApiError(400, f"the body cannot be read as JSON: {str(error)[:200]}", code="invalid_json") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body has to be a JSON object", code="invalid_json")
    return value


def dumped(value: Any) -> bytes:
    """JSON in UTF-8, with escapes for characters that some clients take for line ends, and for invalid UTF-8."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return (text if text.isascii() else text.translate(LINE_ENDS)).encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body has more than {most} bytes", code="body_too_large", headers={"connection": "close"})
