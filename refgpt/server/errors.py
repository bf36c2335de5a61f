"""What goes wrong with a request, as the answer that its client gets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from refgpt._common.errors import RefgptError

#: A ``where`` of an error that is the name of a field of the body.
FIELD = re.compile(r"[a-z_][a-z0-9_]*(\[\d+\]|\.[a-z_][a-z0-9_]*)*")
#: Seconds after which a client that was refused for want of room may ask again.
RETRY_AFTER = 2


class ApiError(Exception):
    """An answer that is not the one that was asked for.

    Parameters
    ----------
    status : int
    message : str
    kind : str
        OpenAI's "type": "invalid_request_error", "server_error" and others.
    param : str or None
        The field at fault.
    code : str or None
    headers : mapping
        Of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] = {},
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code
        self.headers = dict(headers)


class ClientGone(Exception):
    """The client has closed the connection, or does not take what is sent."""


def refused(error: RefgptError) -> ApiError:
    """The answer to a request that the library cannot use."""
    where = error.where if isinstance(error.where, str) and FIELD.fullmatch(error.where) else None
    return ApiError(400, str(error), param=where)


def too_long(n_tokens: int, n_ctx: int, name: str = "prompt") -> ApiError:
    """The answer to a text that does not fit into the model's context."""
    return ApiError(
        400,
        f"{name}: the text has {n_tokens} tokens, and this model's context holds {n_ctx}, of which one is for a new "
        'token; shorten it, or keep only its end with "truncate": "left"',
        param=name,
        code="context_length_exceeded",
    )


def busy() -> ApiError:
    """The answer while too many requests wait."""
    return ApiError(
        429,
        "too many requests are waiting; try again later",
        "rate_limit_error",
        code="queue_full",
        headers={"retry-after": str(RETRY_AFTER)},
    )


def closing() -> ApiError:
    """The answer of a server that has been asked to end."""
    return ApiError(
        503,
        "the server is shutting down",
        "server_error",
        code="shutting_down",
        headers={"retry-after": str(RETRY_AFTER), "connection": "close"},
    )


def failed(error: Exception) -> ApiError:
    """The answer where the model cannot go on, or this program is at fault. What is at fault stays in the log."""
    if isinstance(error, ApiError):
        return error
    message = str(error) if isinstance(error, RefgptError) else "the server failed; its log has the details"
    return ApiError(500, message, "server_error", code="internal_error")


def openai_form(error: ApiError) -> dict[str, Any]:
    """OpenAI's object."""
    return {
        "error": {"message": error.message, "type": error.kind, "param": error.param, "code": error.code},
    }


def kobold_form(error: ApiError) -> dict[str, Any]:
    """KoboldAI's object."""
    return {"detail": {"msg": error.message, "type": error.code or error.kind}}


def plain_form(error: ApiError) -> dict[str, Any]:
    """The object of the first interfaces, which had a text alone."""
    return {"error": error.message}
