"""Serve a model over HTTP: OpenAI's interface, KoboldAI's, the first ones to GPT-J, and a web page.

One thread owns the scheduler (``core``); the event loop speaks HTTP and never waits for the model (``exchange``). Each
interface is one small module. Needs ``pip install "refgpt[server]"``.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from refgpt._common.arguments import instance_of
from refgpt._common.errors import ServerError
from refgpt._model import Model
from refgpt.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app", "serve"]


def create_app(model: Model, settings: ServerSettings | None = None, draft: Model | None = None) -> Any:
    """An ASGI application that serves a model, for a server of your own.

    Parameters
    ----------
    model : Model
    settings : ServerSettings, optional
        The addresses, TLS files and ``grace`` are ignored: the server that runs the application handles them.
    draft : Model, optional
        A smaller model with the same ids, which drafts tokens: see ``Scheduler``.

    Raises
    ------
    ServerError
        If the extra "server" is not installed.
    """
    check_installed()
    from refgpt.server.app import Server
    from refgpt.server.state import State

    instance_of("model", model, Model, ServerError)
    return Server(State.of(model, settings or ServerSettings(), draft))


def serve(
    model: Model,
    settings: ServerSettings | None = None,
    on_start: Callable[[str], object] = lambda url: None,
    draft: Model | None = None,
) -> None:
    """Serve a model until SIGTERM or Ctrl-C.

    Parameters
    ----------
    model : Model
    settings : ServerSettings, optional
    on_start : callable
        Called with the server's URL once it listens.
    draft : Model, optional
        A smaller model with the same ids, which drafts tokens: see ``Scheduler``.

    Raises
    ------
    ServerError
        If the extra "server" is not installed, the address cannot be listened on, or TLS cannot be set up.
    """
    check_installed()
    from refgpt.server.running import run

    instance_of("model", model, Model, ServerError)
    run(model, settings or ServerSettings(), on_start, draft)


def check_installed() -> None:
    """Raise a ServerError if a library of the extra is missing."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise ServerError(
            "a library is not installed", where="serve", got=", ".join(missing), fix='pip install "refgpt[server]"'
        )
