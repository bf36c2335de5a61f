"""HTTP/1.1 connections with a limit for how long a client may take over the head of a request."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class TimedProtocol(H11Protocol):
    """uvicorn's protocol, which by itself waits for ever for headers.

    The application finds three functions in its scope: ``refgpt.abort`` drops a connection whose client does not read,
    ``refgpt.close`` closes one after what was sent has left, and ``refgpt.closing`` tells whether a connection is lost
    or ends, before ``http.disconnect`` arrives.

    Attributes
    ----------
    head_timeout : float
        Seconds from a connection, or from the first byte of a request, to the end of its headers.
    """

    head_timeout = 20.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_timer: asyncio.TimerHandle | None = None
        application = cast(Any, self).app

        async def with_abort(scope: Any, receive: Any, send: Any) -> None:
            to = self.transport
            functions = {"refgpt.abort": to.abort, "refgpt.close": to.close, "refgpt.closing": to.is_closing}
            await application({**scope, **functions}, receive, send)

        self.app = with_abort

    def connection_made(self, transport: Any) -> None:
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._forget_head()
        super().connection_lost(exc)

    def _watch_head(self) -> None:
        """Start the clock where a request may begin, and stop it when its headers are complete."""
        if self.conn.their_state is not h11.IDLE:
            self._forget_head()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_timeout, self._too_slow)

    def _forget_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self.transport.abort()
