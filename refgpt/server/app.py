"""The application, in pure ASGI: routes requests, checks them first, and logs a line for each afterwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route

from refgpt._common.errors import RefgptError
from refgpt.server import completions, information, kobold, looking, mesh
from refgpt.server.errors import ApiError, ClientGone, failed, kobold_form, openai_form, plain_form, refused
from refgpt.server.exchange import Exchange
from refgpt.server.logs import log_request
from refgpt.server.page_files import PageFiles
from refgpt.server.security import Guard
from refgpt.server.state import State

log = logging.getLogger("refgpt.server")

HERE = Path(__file__).parent

Handler = Callable[[Exchange], Awaitable[None]]
Form = Callable[[ApiError], dict[str, Any]]

#: Method, path, handler, and the format of errors.
ROUTES: list[tuple[str, str, Handler, Form]] = [
    ("POST", "/v1/completions", completions.completions, openai_form),
    ("POST", "/v1/chat/completions", completions.chat_completions, openai_form),
    ("POST", "/v1/embeddings", looking.embeddings, openai_form),
    ("GET", "/v1/models", information.models, openai_form),
    ("GET", "/v1/models/{name:path}", information.model, openai_form),
    ("POST", "/tokenize", information.tokenize, openai_form),
    ("POST", "/detokenize", information.detokenize, openai_form),
    ("GET", "/tokenizer_info", information.tokenizer_info, openai_form),
    ("GET", "/health", information.health, openai_form),
    ("GET", "/metrics", information.metrics, openai_form),
    ("GET", "/version", information.version, openai_form),
    ("GET", "/presets", information.presets, openai_form),
    ("POST", "/inspect", looking.inspect, openai_form),
    ("POST", "/api/v1/generate", kobold.generate, kobold_form),
    ("GET", "/api/v1/model", kobold.model, kobold_form),
    ("GET", "/api/v1/info/version", kobold.version, kobold_form),
    ("GET", "/api/v1/config/max_length", kobold.most_tokens, kobold_form),
    ("GET", "/api/v1/config/max_context_length", kobold.context, kobold_form),
    ("GET", "/api/extra/true_max_context_length", kobold.context, kobold_form),
    ("GET", "/api/extra/version", kobold.cpp_version, kobold_form),
    ("POST", "/api/extra/generate/stream", kobold.stream, kobold_form),
    ("GET", "/api/extra/generate/check", kobold.check, kobold_form),
    ("POST", "/api/extra/generate/check", kobold.check, kobold_form),
    ("POST", "/api/extra/abort", kobold.abort, kobold_form),
    ("POST", "/api/extra/tokencount", kobold.token_count, kobold_form),
    ("POST", "/api/extra/embeddings", looking.embeddings, kobold_form),
    ("POST", "/complete", mesh.complete, plain_form),
    ("POST", "/completion", mesh.completion, plain_form),
    ("POST", "/generate", mesh.generate, plain_form),
    ("POST", "/model/predict", mesh.predict, plain_form),
    ("POST", "/model/get_prediction", mesh.get_prediction, plain_form),
]


class Server:
    """The ASGI application of a server.

    Parameters
    ----------
    state : State
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self._guard = Guard(state.settings)
        self._page = PageFiles({"/": HERE / "page", "/views/": HERE.parent / "inspect" / "views"})
        self._forms = {path: form for _, path, _, form in ROUTES}
        paths: dict[str, dict[str, Handler]] = {}
        for method, path, handler, _ in ROUTES:
            paths.setdefault(path, {})[method] = handler
        routes = [Route(path, _Endpoint(self, path, methods)) for path, methods in paths.items()]
        self._app = Starlette(routes=routes, lifespan=self._lifespan)
        self._app.router.redirect_slashes = False
        self._app.router.default = _Endpoint(self, "", {})

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] == "http":
            scope = {**scope, "app_state": self.state}
        elif scope["type"] != "lifespan":  # web sockets
            return
        await self._app(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, app: Any) -> AsyncIterator[None]:
        self.state.core.start(asyncio.get_running_loop())
        try:
            yield
        finally:
            await asyncio.get_running_loop().run_in_executor(None, self.state.core.stop)

    async def answer(self, exchange: Exchange, path: str, methods: dict[str, Handler]) -> None:
        """Check a request, call its handler, and log it. Every error becomes an answer too."""
        form = self._forms.get(path, openai_form)
        method, given = exchange.scope["method"], exchange.scope["path"]
        try:
            file = self._page.get(given) if not methods and method in ("GET", "HEAD") else None
            self._guard.check(method, given, exchange.headers, file is not None)
            exchange.origin = self._guard.allowed_origin(exchange.headers)
            if file is not None:
                await file.send(exchange)
            elif method == "OPTIONS" and exchange.origin:
                await exchange.send_bytes(b"", "text/plain", 204)
            elif not methods:
                raise ApiError(404, f"there is nothing at {given[:200]!a}", code="not_found")
            elif (handler := methods.get("GET" if method == "HEAD" else method)) is None:
                allowed = ", ".join(sorted(methods))
                raise ApiError(405, f"{method[:20]!a} is not possible here", headers={"allow": allowed})
            else:
                await handler(exchange)
        except ClientGone:
            await self._leave(exchange)
        except Exception as fault:
            await self._refuse(exchange, fault, form)
        finally:
            seconds = perf_counter() - exchange.began
            self.state.metrics.requests.add(1, path or "other", str(exchange.status or "left"))
            self.state.metrics.seconds.add(seconds)
            log_request(exchange, seconds)

    async def _refuse(self, exchange: Exchange, fault: Exception, form: Form) -> None:
        if isinstance(fault, ApiError):
            error = fault
        elif isinstance(fault, RefgptError):
            error = refused(fault)
        else:
            log.exception("a request failed")
            error = failed(fault)
        exchange.note["error"] = error.code or error.kind
        if error.param is not None:
            exchange.note["param"] = error.param
        if self.state.settings.log_prompts:  # messages quote what they are about
            exchange.note["message"] = error.message
        if exchange.status is not None:  # the answer has begun, so it can only be cut off
            return
        try:
            await exchange.refuse(form(error), error.status, error.headers)
        except ClientGone:
            await self._leave(exchange)

    @staticmethod
    async def _leave(exchange: Exchange) -> None:
        """Note that the client has left."""
        exchange.note["left"] = True
        await exchange.drop()


class _Endpoint:
    """What answers at one path: an ASGI application."""

    def __init__(self, server: Server, path: str, methods: dict[str, Handler]) -> None:
        self._server, self._path, self._methods = server, path, methods

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        exchange = Exchange(scope, receive, send, self._server.state.settings)
        await self._server.answer(exchange, self._path, self._methods)
