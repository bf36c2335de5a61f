"""The log: one line for each request, as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from refgpt._common.wording import printable
from refgpt.server.settings import ServerSettings

if TYPE_CHECKING:
    from refgpt.server.exchange import Exchange

log = logging.getLogger("refgpt.server")

#: Paths that are polled all the time. Successful answers are not logged.
QUIET = ("/health", "/metrics")


def log_request(exchange: Exchange, seconds: float) -> None:
    """Write a request's line. Prompts and texts are in its notes only if the settings ask for them."""
    path, status = exchange.scope["path"][:200], exchange.status or 499
    level = logging.DEBUG if path in QUIET and status == 200 else logging.INFO
    if not log.isEnabledFor(level):
        return
    client = exchange.scope.get("client")
    head = {
        "client": str(client[0]) if client else "",
        "method": exchange.scope["method"][:20],
        "path": path,
        "status": status,
    }
    notes = {"seconds": round(seconds, 4), **exchange.note}
    told = [f"{name}={value if isinstance(value, (int, float)) else repr(value)}" for name, value in notes.items()]
    text = printable(" ".join([*map(str, head.values()), *told]))
    log.log(level, "%s", text, extra={"fields": {**head, **notes}})


class JsonFormatter(logging.Formatter):
    """Each record is one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter``."""
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        said = getattr(record, "fields", None) or {"message": record.getMessage()}
        if record.exc_info:
            said = {**said, "traceback": self.formatException(record.exc_info)}
        return json.dumps({"time": when, "level": record.levelname.lower(), **said}, default=str)


#: Loggers of libraries whose warnings are part of the log.
OTHERS = ("uvicorn.error", "asyncio")

#: What asyncio warns of when parts of an answer are written after its client has left, without and with TLS (since
#: Python 3.11). A client may leave whenever it likes, and its request has a line of its own.
CLIENT_LEFT = ("socket.send() raised exception.", "SSL connection is closed")


class _Forward(logging.Handler):
    """Forwards other libraries' records to this package's logger; warnings that a client left become debug messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """See ``logging.Handler``."""
        left = record.name == "asyncio" and record.msg in CLIENT_LEFT
        level = logging.DEBUG if left else record.levelno
        log.log(level, "%s", printable(record.getMessage()), exc_info=record.exc_info)


@contextmanager
def logging_as(settings: ServerSettings) -> Iterator[None]:
    """Context in which the log has the configured format and includes warnings of uvicorn and asyncio."""
    others, forward = [logging.getLogger(name) for name in OTHERS], _Forward(logging.WARNING)
    before, propagated = [(one.level, one.propagate) for one in others], log.propagate
    for one in others:
        one.addHandler(forward)
        one.setLevel(logging.WARNING)
        one.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    if settings.log_format == "json":
        log.addHandler(handler)
        log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagated
        for one, (level, propagates) in zip(others, before, strict=True):
            one.removeHandler(forward)
            one.setLevel(level)
            one.propagate = propagates
