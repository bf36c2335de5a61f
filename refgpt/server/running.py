"""Runs a server until it is asked to end, and then lets running requests finish."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import uvicorn

from refgpt._common.errors import ServerError
from refgpt._model import Model
from refgpt.server.app import Server
from refgpt.server.logs import logging_as
from refgpt.server.protocol import TimedProtocol
from refgpt.server.security import is_loopback
from refgpt.server.settings import ServerSettings
from refgpt.server.state import State

log = logging.getLogger("refgpt.server")

#: Seconds for clients to receive the ends of their answers after all texts have ended.
LAST_WORDS = 5
KEEP_ALIVE = 75
#: Files that are open beside connections.
OTHER_FILES = 128
#: Seconds after which a Python thread lets another run, so that large requests hardly slow down streams.
SWITCH_INTERVAL = 0.001


class Running(uvicorn.Server):
    """uvicorn's server with a shutdown in three steps: refuse new requests, wait for running ones, end the rest.

    Parameters
    ----------
    state : State
    on_start : callable
        Called with the URL of the server once it listens.
    """

    def __init__(self, state: State, on_start: Callable[[str], object] = lambda url: None) -> None:
        settings = state.settings
        super().__init__(
            uvicorn.Config(
                Server(state),
                host=settings.host,
                port=settings.port,
                http=type("Protocol", (TimedProtocol,), {"head_timeout": settings.head_timeout}),
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=settings.max_connections,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=LAST_WORDS,
                backlog=2048,
                ssl_certfile=settings.ssl_certfile,
                ssl_keyfile=settings.ssl_keyfile,
                ssl_keyfile_password=settings.ssl_keyfile_password,
            )
        )
        self.state, self._on_start = state, on_start
        self._drain_task: asyncio.Task | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: Any = None) -> None:
        """See ``uvicorn.Server``."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            self._on_start(self.url)

    def _log_started_message(self, listeners: Any) -> None:
        """The command says it."""

    @property
    def url(self) -> str:
        """The URL on which the server listens."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        scheme = "https" if self.config.is_ssl else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal shuts down gracefully, the second one at once."""
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self.drain)

    def drain(self) -> None:
        """Begin the shutdown; if it has begun already, end at once."""
        if self._drain_task is None:
            self._drain_task = asyncio.ensure_future(self._drain())
        else:
            self.should_exit = self.force_exit = True

    async def _drain(self) -> None:
        core, grace = self.state.core, self.state.settings.grace
        core.draining = True
        log.info("shutting down: running requests have %g seconds to finish", grace)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        while core.n_open and loop.time() < deadline and not self.force_exit:
            await asyncio.sleep(0.05)
        core.end_all()
        while core.n_open and loop.time() < deadline + LAST_WORDS and not self.force_exit:
            await asyncio.sleep(0.02)
        core.give_up()
        self.should_exit = True


def run(model: Model, settings: ServerSettings, on_start: Callable[[str], object], draft: Model | None) -> None:
    """Serve a model until SIGTERM or Ctrl-C.

    Raises
    ------
    ServerError
        If the address cannot be listened on, or the files of TLS cannot be used.
    """
    try:
        server = Running(State.of(model, settings, draft), on_start)
        server.config.load()
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise ServerError("the certificate or key cannot be used", where="ssl_certfile", got=str(error)) from None
    if not is_loopback(settings.host) and not settings.api_keys:
        log.warning("%s can be reached from elsewhere, and no key is needed: see --api-key-file", settings.host)
    _allow_open_files(settings.max_connections + OTHER_FILES)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        with logging_as(settings):
            asyncio.run(server.serve())
    except SystemExit:  # uvicorn's way to say that it could not start
        where = f"{settings.host}:{settings.port}"
        raise ServerError("cannot listen there", where=where, fix="choose another --port or --host") from None
    finally:
        sys.setswitchinterval(interval)


def _allow_open_files(n: int) -> None:
    """Raise this process's limit of open files to ``n``, as far as it may: each connection is one."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = n if most == resource.RLIM_INFINITY else min(n, most)
    if least != resource.RLIM_INFINITY and least < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
